"use strict";
// Shows the inert block of transcripts, a slice at a time. Every text of the block reaches the page
// through text nodes only; nothing is parsed as markup, and nothing is built before it is scrolled to.
(() => {
  const HEAD = 400, PIECE = 20000, SLICE = 20, COLUMNS = 3;
  const source = document.getElementById("transcript-data");
  const browser = document.getElementById("browser");
  if (!source) return;
  const [search, endpoint, trait, kind, order] = ["search", "endpoint", "trait", "kind", "order"]
    .map((id) => document.getElementById(id));
  const pickers = Array.from(document.querySelectorAll("#columns select"));
  const list = document.getElementById("items");
  const counter = document.getElementById("found");
  const more = document.getElementById("more");
  let data, hidden, hits = [], drawn = 0, waiting = 0;

  function el(name, className, ...children) {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  // --- text ---

  const code = (c) => {
    const point = c.codePointAt(0), hex = point.toString(16);
    if (point < 0x100) return `\\x${hex.padStart(2, "0")}`;
    return point < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
  };
  const escapeInvisible = (run) => Array.from(run, code).join("");
  const plain = (text) => text.replace(hidden, escapeInvisible);

  function showText(text) {
    const box = el("bdi", "said");
    let end = 0;
    for (const run of text.matchAll(hidden)) {
      box.append(text.slice(end, run.index), el("span", "esc", escapeInvisible(run[0])));
      end = run.index + run[0].length;
    }
    box.append(text.slice(end));
    return box;
  }

  // A cut never parts the two halves of one character.
  const cut = (text, at) => (/[\ud800-\udbff]/.test(text.charAt(at - 1)) ? at + 1 : at);
  const number = (n) => n.toLocaleString("en");

  function showFolded(place) {
    const text = data.texts[place], left = data.longer[place] ?? 0;
    const rest = left ? `${number(left)} more characters in the file` : "";
    if (text.length <= HEAD * 1.5) return el("span", "", showText(text), rest && el("span", "more", ` ${rest}`));
    let at = cut(text, HEAD);
    const hint = el("span", "more", ` unfold ${number(text.length - at + left)} more characters`);
    const fold = el("details", "long", el("summary", "", showText(text.slice(0, at)), hint));
    const next = el("button", "", "");
    next.type = "button";
    function unfold() {
      const end = cut(text, Math.min(text.length, at + PIECE));
      next.before(showText(text.slice(at, end)));
      at = end;
      next.hidden = at >= text.length;
      next.textContent = `Show the next ${number(Math.min(PIECE, text.length - at))} of ${number(text.length - at)} characters`;
      if (next.hidden && rest) next.after(el("span", "more", ` ${rest}`));
    }
    next.addEventListener("click", unfold);
    fold.append(next);
    fold.addEventListener("toggle", unfold, { once: true });
    return fold;
  }

  // --- signs ---

  const PATHS = {
    suspect: "M7 0l7 7l-7 7l-7 -7z", itself: "M7 1l6 6l-6 6l-6 -6z",
    organism: "M7 2l5 9h-10z", m0: "M3 3l8 8m0 -8l-8 8", reference: "M3 7a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
  };

  function svg(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const glyph = (mark, at = {}) => svg("path", { class: mark, d: PATHS[mark], ...at });
  const sign = (mark) => svg("svg", { class: "sign", viewBox: "0 0 14 14", "aria-hidden": "true" }, glyph(mark));

  const median = (sorted) => (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;

  // Draws the suspect's mean on one item among the references' means and M0's.
  function drawAmongReferences(item, m0) {
    const [suspectMean, others] = data.others[item] ?? [null, []];
    if (suspectMean === null || !others.length) return "";
    const sorted = others.slice().sort((a, b) => a - b);
    const x = (value) => 8 + 284 * value;
    const parts = [svg("line", { class: "axis", x1: 8, x2: 292, y1: 16, y2: 16 })];
    for (const end of [0, 0.5, 1]) parts.push(svg("line", { class: "axis", x1: x(end), x2: x(end), y1: 13, y2: 19 }));
    for (const value of sorted) parts.push(svg("circle", { class: "reference", cx: x(value), cy: 16, r: 3.5 }));
    if (m0 !== null) parts.push(glyph("m0", { transform: `translate(${x(m0) - 7} 9)` }));
    parts.push(glyph("suspect", { transform: `translate(${x(suspectMean) - 6} 10) scale(.86)` }));
    const above = sorted.filter((value) => value >= suspectMean).length;
    const words = `Suspect's students ${suspectMean.toFixed(3)}; references' ${sorted[0].toFixed(3)} to ` +
      `${sorted.at(-1).toFixed(3)}, median ${median(sorted).toFixed(3)}, ${above} of ${sorted.length} at or above` +
      (m0 === null ? "" : `; M0 ${m0.toFixed(3)}`);
    const drawing = svg("svg", { class: "standing", viewBox: "0 0 300 32", role: "img", "aria-label": words }, svg("g", { "aria-hidden": "true" }, ...parts));
    return el("div", "among", drawing, el("p", "note", `${words}.`));
  }

  // --- items ---

  const lineOf = (model, item) => {
    model.index ??= new Map(model.lines.map((line) => [line[0], line]));
    return model.index.get(item);
  };

  function turns(places) {
    const box = el("div", "turns");
    for (let i = 0; i < places.length; i += 2)
      box.append(el("div", "turn", el("b", "who", showText(data.texts[places[i]].slice(0, 120))), " ", showFolded(places[i + 1])));
    return box;
  }

  function bar(share) {
    const fill = el("span", "fill");
    fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    return el("span", "bar", fill);
  }

  function answer(model, content) {
    return el("div", "answer", el("span", "whose", sign(model.mark), ` ${model.role}`), content);
  }

  // The options of an item, each with every shown model's probability of it.
  function options(pairs) {
    const box = el("div", "options"), shares = new Map();
    for (const [model, line] of pairs)
      for (let i = 0; i < line[4].length; i += 2) {
        if (!shares.has(line[4][i])) shares.set(line[4][i], []);
        shares.get(line[4][i]).push([model, line[4][i + 1]]);
      }
    const keys = new Set(pairs.map(([, line]) => line[2]));
    for (const [place, rows] of shares) {
      const keyed = keys.has(place);
      const head = el("div", "option-text", keyed ? el("b", "key", "key") : "", keyed ? " " : "", showFolded(place));
      const bars = rows.map(([model, p]) => answer(model, el("span", "share", bar(p), el("span", "number", p.toFixed(3)))));
      box.append(el("div", keyed ? "option keyed" : "option", head, ...bars));
    }
    return box;
  }

  function card(item) {
    const [audit, name, id, use] = data.items[item].map((place) => data.texts[place]);
    const shown = columns().map((model) => [model, lineOf(model, item)]);
    const pairs = shown.filter(([, line]) => line);
    const base = data.models.find((model) => model.mark === "m0");
    const m0 = base ? (lineOf(base, item)?.[1] ?? null) : null;
    const element = el("article", "item", el("h3", "", showText(name)), el("p", "note", showText(id), " · ", showText(audit), use && ` · ${use}`));
    element.tabIndex = -1;
    element.setAttribute("aria-label", plain(`${name}, ${id}`));
    const same = new Set(pairs.map(([, line]) => line[3].join())).size === 1;
    if (same) element.append(turns(pairs[0][1][3]));
    else for (const [model, line] of pairs) element.append(answer(model, turns(line[3])));
    const [listed, free] = [pairs.filter(([, line]) => line[4].length), pairs.filter(([, line]) => line[5] >= 0)];
    if (listed.length) element.append(options(listed));
    if (free.length) element.append(el("div", "options", ...free.map(([model, line]) => el("div", "option", answer(model, showFolded(line[5]))))));
    for (const [model, line] of shown) {
      if (line?.[1] === null) element.append(el("p", "absent", `${model.role}: unscored`));
      if (line?.[6]) element.append(el("p", "note", `${model.role}: ${line[6]} more turns or options in the file.`));
      if (!line) element.append(el("p", "absent", `${model.role}: not among the lines that this page holds`));
    }
    element.append(drawAmongReferences(item, m0));
    return element;
  }

  // --- choosing ---

  const columns = () => pickers.filter((p) => p.value !== "").map((p) => data.models[p.value]);

  function matching() {
    const wanted = search.value.trim().toLowerCase();
    const texts = wanted ? data.texts.map((text) => text.toLowerCase().includes(wanted)) : null;
    const chosen = columns();
    const holds = (line) => line && (texts[line[5]] || line[3].some((place) => texts[place]) || line[4].some((place, i) => i % 2 === 0 && texts[place]));
    return data.items.map((_, item) => item).filter((item) => {
      const [question, subject] = endpointParts[item];
      if ((endpoint.value && question !== endpoint.value) || (trait.value && subject !== trait.value)) return false;
      const lines = chosen.map((model) => lineOf(model, item));
      if (!lines.some(Boolean)) return false;
      return !wanted || data.items[item].some((place) => texts[place]) || lines.some(holds);
    });
  }

  const gap = (item) => {
    const [suspectMean, others] = data.others[item] ?? [null, []];
    return suspectMean === null || !others.length ? -Infinity : suspectMean - median(others.slice().sort((a, b) => a - b));
  };

  function refresh() {
    hits = matching();
    if (order.value === "gap") {
      const gaps = new Map(hits.map((item) => [item, gap(item)]));
      hits.sort((a, b) => gaps.get(b) - gaps.get(a) || a - b);
    }
    document.getElementById("picked").hidden = order.value !== "gap";
    list.replaceChildren();
    drawn = 0;
    slice();
  }

  function slice() {
    list.append(...hits.slice(drawn, drawn + SLICE).map(card));
    drawn = Math.min(hits.length, drawn + SLICE);
    counter.textContent = `${number(drawn)} of ${number(hits.length)} items shown`;
    more.hidden = drawn >= hits.length;
    more.textContent = `Show ${Math.min(SLICE, hits.length - drawn)} more`;
  }

  function offer(select, names, all) {
    const entries = names.map((name) => {
      const entry = el("option", "", plain(name) || "(none)");
      entry.value = name;
      return entry;
    });
    const first = el("option", "", all);
    first.value = "";
    select.replaceChildren(first, ...entries);
  }

  // Fill the columns' pickers with the models of one kind, or with all of them side by side.
  function offerModels() {
    const offered = data.models.filter((model) => !kind.value || model.kind === kind.value);
    const firstOf = (...marks) => marks.map((m) => data.models.findIndex((model) => model.mark === m)).find((i) => i >= 0);
    let chosen = [firstOf("suspect"), firstOf("reference", "itself", "organism"), firstOf("m0")];
    if (kind.value) chosen = offered.slice(0, COLUMNS).map((model) => data.models.indexOf(model));
    pickers.forEach((picker, i) => {
      const none = el("option", "", "none");
      none.value = "";
      const groups = new Map();
      for (const model of offered) {
        if (!groups.has(model.kind)) groups.set(model.kind, el("optgroup", ""));
        const entry = el("option", "", model.name);
        entry.value = data.models.indexOf(model);
        groups.get(model.kind).append(entry);
        groups.get(model.kind).label = model.kind;
      }
      picker.replaceChildren(none, ...groups.values());
      picker.value = chosen[i] ?? "";
      picker.disabled = offered.length === 0;
    });
  }

  let endpointParts = [];

  function open() {
    watch.disconnect();
    if (data) return;
    data = JSON.parse(source.textContent);
    hidden = new RegExp(data.hidden, "gu");
    for (const model of data.models)
      for (const key of ["name", "kind", "role"]) model[key] = plain(data.texts[model[key]]);
    endpointParts = data.items.map(([, place]) => {
      const name = data.texts[place], at = name.indexOf("/");
      return at < 0 ? [name, ""] : [name.slice(0, at), name.slice(at + 1)];
    });
    const distinct = (values) => Array.from(new Set(values)).filter(Boolean);
    offer(endpoint, distinct(endpointParts.map(([question]) => question)), "every endpoint");
    offer(trait, distinct(endpointParts.map(([, subject]) => subject)), "every trait");
    offer(kind, distinct(data.models.map((model) => model.kind)), "side by side");
    offerModels();
    browser.hidden = false;
    refresh();
  }

  const watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && open(), { rootMargin: "800px" });
  watch.observe(document.getElementById("transcripts"));
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 150);
  });
  for (const select of [endpoint, trait, order, ...pickers]) select.addEventListener("change", refresh);
  kind.addEventListener("change", () => {
    offerModels();
    refresh();
  });
  more.addEventListener("click", () => {
    const last = list.lastElementChild;
    slice();
    last?.nextElementSibling?.focus();
  });
  list.addEventListener("keydown", (event) => {
    const step = { j: "nextElementSibling", k: "previousElementSibling" }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.target.closest("article")?.[step]?.focus();
  });
  addEventListener("beforeprint", open);
})();
