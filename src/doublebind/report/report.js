"use strict";
const box = document.getElementById("search");
const found = document.getElementById("found");
const models = Array.from(document.querySelectorAll("#transcripts .model"), (fold) => ({
  fold,
  name: fold.querySelector("summary").textContent.toLowerCase(),
  rows: Array.from(fold.querySelectorAll("article"), (row) => ({ row, text: null })),
}));
document.getElementById("searching").hidden = models.length === 0;
let waiting = 0;
function search() {
  const wanted = box.value.trim().toLowerCase();
  let shown = 0;
  for (const { fold, name, rows } of models) {
    let hits = 0;
    for (const entry of rows) {
      entry.text ??= entry.row.textContent.toLowerCase();
      const hit = entry.text.includes(wanted) || name.includes(wanted);
      entry.row.hidden = !hit;
      hits += hit;
    }
    fold.hidden = hits === 0 && wanted !== "";
    fold.open = hits > 0 && wanted !== "";
    shown += hits;
  }
  found.textContent = wanted === "" ? "" : `${shown} items`;
}
box.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, 150);
});
