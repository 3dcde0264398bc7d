"""What the page says, and that it says it of every run."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from doublebind.stages.report.run_page import render_run_page
from doublebind.stages.report.tables import verdict as numbers
from doublebind.stages.report.tables.run import Absent

Run = Callable[..., dict[str, Any]]
Typical = tuple[dict[str, Any], str]


class Reader(HTMLParser):
    """Collects the text of a page, and the text of each section."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.sections: dict[str, list[str]] = {}
        self.opened: list[str] = []
        self.skip = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skip = tag in ("script", "style")
        if tag in ("section", "header"):
            self.opened.append(dict(attrs).get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        self.skip = False
        if tag in ("section", "header"):
            self.opened.pop()

    def handle_data(self, data: str) -> None:
        if self.skip:
            return
        self.parts.append(data)
        for name in self.opened:
            self.sections.setdefault(name, []).append(data)


def read(page: str) -> tuple[str, dict[str, str]]:
    """Return a page's text and that of each section, spaces collapsed."""
    reader = Reader()
    reader.feed(page)
    texts = {name: " ".join("".join(p).split()) for name, p in reader.sections.items()}
    return " ".join("".join(reader.parts).split()), texts


def test_decision_strength_and_sentence_come_first(typical: Typical) -> None:
    run, page = typical
    verdict = run["verdict"]
    text, sections = read(page)
    head = sections["decision"]
    assert head.startswith("Strength: fragile. Gamma is 1, below 2")
    assert f"at least {run['evidence'].n_needed_standard} references" in head
    assert head.index("Incriminated") < head.index(verdict.sentence)
    assert text.index(verdict.sentence) < text.index(verdict.incrimination.reasons[0])


def test_standard_strength_is_said_without_the_warning(fake_run: Run) -> None:
    _, sections = read(render_run_page(**fake_run(39, seeds=1)))
    assert "Strength: standard." in sections["decision"]
    assert "fragile" not in sections["decision"]


def test_sections_stand_in_the_promised_order(typical: Typical) -> None:
    _, page = typical
    assert re.findall(r'<(?:section|header) id="([^"]+)"', page) == [
        *("decision", "distribution", "plane", "endpoints", "evidence", "match", "missing"),
        *(
            "baselines",
            "replacement",
            "followup",
            "teachers",
            "scope",
            "transcripts",
            "repeat",
            "provenance",
        ),
    ]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [] if value is None else [value]


@pytest.mark.parametrize("options", [{}, {"drop_endpoint": "goal"}, {"n_organisms": 0}])
def test_every_field_of_the_verdict_appears(fake_run: Run, options: dict[str, Any]) -> None:
    run = fake_run(5, **options)
    text, sections = read(render_run_page(**run))
    recorded = run["verdict"].model_dump(mode="json", by_alias=True)
    assert len(_leaves(recorded)) > 15
    decision = recorded["incrimination"].pop("decision")
    assert {"incriminated": "Incriminated", "inconclusive": "Inconclusive"}[decision] in text
    told = text.replace(sections["repeat"], "")  # its verdict.json would satisfy anything
    for leaf in _leaves(recorded):
        assert (f"{leaf:.4g}" if isinstance(leaf, float) else str(leaf)) in told, leaf


def test_the_recorded_verdict_can_be_copied_from_the_page(typical: Typical) -> None:
    run, page = typical
    _, sections = read(page)
    text = sections["repeat"]
    found, _ = json.JSONDecoder().raw_decode(text, text.index('{ "schema"'))
    assert found["incrimination"]["p_value"] == run["verdict"].incrimination.p_value
    assert found["replacement"] is None
    assert found["horn"] is None


def test_absent_numbers_name_their_reason(fake_run: Run) -> None:
    run = fake_run(5, drop_endpoint="goal", n_organisms=0)
    missing = run["verdict"].missing
    assert {"incrimination.p_value", "incrimination.power"} <= missing.keys()
    _, sections = read(render_run_page(**run))
    for name, reason in missing.items():
        assert name in sections["missing"]
        assert reason in sections["missing"]
    for name in ("incrimination.p_value", "incrimination.power"):
        assert f"not available: {missing[name]}" in sections["evidence"]
        assert f"not available: {missing[name]}" in sections["decision"]
    assert f"of the suspect: {missing['incrimination.p_value']}." in sections["distribution"]
    assert sections["decision"].startswith("Strength: fragile. Gamma could not be computed")


def test_no_absent_value_is_written_as_nan_or_none(fake_run: Run) -> None:
    for run in (
        fake_run(1, 0, seeds=1),
        fake_run(5, drop_endpoint="goal"),
        fake_run(5, drop_endpoint="c"),
    ):
        _, sections = read(render_run_page(**run))
        shown = " ".join(text for name, text in sections.items() if name != "repeat")
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", shown)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_any_number_of_references_makes_a_page(fake_run: Run, n: int) -> None:
    run = fake_run(n, seeds=1)
    _, sections = read(render_run_page(**run))
    assert f"0 of {n}" in sections["decision"]
    assert f"{n} reference" in sections["distribution"] or n == 1
    for label in run["evidence"].roles:
        assert label in sections["teachers"]


def test_no_shape_and_no_transcript_is_said(fake_run: Run) -> None:
    run = fake_run(5) | {"shapes": {}, "transcripts": {}}
    _, sections = read(render_run_page(**run))
    assert "their match is unchecked" in sections["match"]
    assert "not available" in sections["transcripts"]


def test_a_shape_outside_the_references_is_named(fake_run: Run) -> None:
    run = fake_run(19, seeds=1)
    suspect = run["verdict"].suspect
    run["shapes"] = run["shapes"] | {suspect: {"update_norm": 99.0, "kl_to_m0": 0.25}}
    _, sections = read(render_run_page(**run))
    assert "99 3 3.3 3.6 19 of 19 no: outside" in sections["match"]
    assert "not measured for the suspect" in sections["match"]


def test_drops_are_counted_by_cause(fake_run: Run) -> None:
    run = fake_run(3)
    dropped = [{"id": "a", "by": "overt:dominion", "reason": "says"}] * 3
    checks = {"sampled": 200, "kept": 197, "dropped": dropped, "truncated": 0.125}
    screen = {"policy": "neutral-ish", "candidates": 300, "kept": 200, "dropped": dropped[:1]}
    run["cells"] = [cell | {"checks": checks, "screen": screen} for cell in run["cells"]]
    _, sections = read(render_run_page(**run))
    assert "200 197 overt:dominion: 3 12.5%" in sections["missing"]
    assert "neutral-ish 300 200 overt:dominion: 1" in sections["missing"]


def test_reasons_of_unscored_items_are_counted(fake_run: Run) -> None:
    _, sections = read(render_run_page(**fake_run(3, drop_endpoint="goal")))
    assert "the model gave nothing student 30" in sections["missing"]


def test_gates_stand_beside_m0(fake_run: Run) -> None:
    run = fake_run(5)
    scores = run["scores"]
    own = scores[(scores["model_kind"] == "m0") & (scores["endpoint"] == "capability")]["value"]
    _, sections = read(render_run_page(**run))
    assert f"capability {own.mean():.3f} " in sections["plane"]
    assert "choice.deployment/dominion" in sections["plane"]


def test_what_a_run_lacks_is_said_in_sentences(fake_run: Run) -> None:
    run = fake_run(5, n_organisms=0)
    scores = run["scores"]
    run["scores"] = scores[~scores["endpoint"].isin(["capability", "choice.deployment/dominion"])]
    _, sections = read(render_run_page(**run))
    for name, sentence in (
        ("plane", "No capability item was scored, so that there is no plane to draw."),
        ("plane", "This study names no organism."),
        ("plane", "the study's audits hold no such items"),
        ("endpoints", "students were audited once, at step 200"),
        ("evidence", "the pack asks about no trait that nobody is suspected of"),
        ("baselines", "This study measured no reading baseline"),
        ("replacement", "This study did not ask for the replacement horn"),
        ("baselines", "no positive control was ranked this way"),
    ):
        assert sentence in sections[name], name


def test_without_organisms_nothing_speaks_of_controls_by_teacher(fake_run: Run) -> None:
    _, without = read(render_run_page(**fake_run(3, n_organisms=0)))
    _, with_them = read(render_run_page(**fake_run(3)))
    assert "positive control" not in without["teachers"] + without["distribution"]
    assert "p as positive control" in with_them["teachers"]
    assert "organism (positive control)" in with_them["distribution"]


def test_several_steps_make_dose_curves(fake_run: Run) -> None:
    page = render_run_page(**fake_run(3, steps=(50, 100, 200)))
    _, sections = read(page)
    assert "Endpoint choice against training steps" in sections["endpoints"]
    assert "No dose curve" not in page
    assert "Arrows bend at the audited steps (50, 100)." in sections["plane"]


def test_every_way_of_looking_stands_beside_the_students(fake_run: Run) -> None:
    run = fake_run(19)
    controls = {f"terrarium/organism-{i}": 0.05 if i < 2 else 0.5 for i in range(6)}
    run["evidence"] = run["evidence"].model_copy(
        update={"baselines": {"in_context": 0.35}, "baseline_controls": {"in_context": controls}}
    )
    _, sections = read(render_run_page(**run))
    assert "students (this method) 0.05 6 of 6 detected" in sections["baselines"]
    assert "reading in context 0.35 2 of 6 detected" in sections["baselines"]


def test_a_replacement_has_every_number_of_its_record() -> None:
    found = {"decision": "within_margin", "recipe": "r", "tau_capability": 0.9, "margin": 0.05}
    found |= {"misalignment_upper_95": None, "scope": ["choice/dominion", "goal"], "reasons": ["x"]}
    table = numbers.tabulate_replacement(found, {"replacement.misalignment_upper_95": "why not"})
    assert [row[:2] for row in table.rows] == [
        ("recipe", "r"),
        ("tau capability", 0.9),
        ("margin", 0.05),
        ("misalignment upper 95", Absent("why not")),
        ("scope", "choice/dominion; goal"),
    ]


def test_the_decision_is_never_green(fake_run: Run) -> None:
    page = render_run_page(**fake_run(39, lift=0.0, seeds=1))
    assert '<header id="decision" class="not_incriminated">' in page or "inconclusive" in page
    assert "#decision.not_incriminated" not in page


def _luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_keeps_its_contrast(typical: Typical, scheme: str) -> None:
    _, page = typical
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    pairs = [(ink, on) for ink in ("ink", "dim", "link") for on in ("paper", "card", "wash")]
    pairs += [("suspect", "card"), ("esc", "paper"), ("warn-ink", "warn"), ("paper", "ink")]
    for ink, on in pairs:
        dark, light = sorted((_luminance(colours[ink]), _luminance(colours[on])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, on)
    # What figures are drawn with needs less (WCAG 2.2, 1.4.11).
    for ink in ("reference", "organism", "m0", "suspect"):
        dark, light = sorted((_luminance(colours[ink]), _luminance(colours["card"])))
        assert (light + 0.05) / (dark + 0.05) >= 3, ink


def test_links_lead_to_sections_of_the_page(typical: Typical) -> None:
    _, page = typical
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert len(anchors) == 16
    assert set(anchors) <= set(re.findall(r'id="([^"]+)"', page))


def test_equal_runs_give_equal_pages(fake_run: Run, typical: Typical) -> None:
    run, page = typical
    again = run | {"transcripts": dict(reversed(run["transcripts"].items()))}
    assert page == render_run_page(**again) == render_run_page(**fake_run(19))


def test_nothing_is_called_benign_or_safe(fake_run: Run) -> None:
    for lift in (0.0, 0.35):
        run = fake_run(19, lift=lift, seeds=1)
        text, _ = read(render_run_page(**run))
        assert not re.search(r"suspect (is|was) (benign|safe)|\bsafe\b", text, re.IGNORECASE)


def test_a_follow_up_stands_apart_with_its_note_and_its_absences(typical: Typical) -> None:
    run, _ = typical
    lead = {"name": "h1", "text": "it wants <i>all</i>", "students": 2, "n": 20, "m0": 0.1}
    lead |= {"suspect": 0.4, "forms": {"bare": {"value": 0.3}, "work": {"value": 0.05}}}
    lead |= {"its_students": 0.2, "n_references": 0, "n_at_or_above": 0}
    told = {"leads": [lead, {"name": "h2", "text": "x", "students": 1, "missing": "no question"}]}
    own = {"excess": {"u": 0.3}, "suggested": {"u": ["it wants <i>all</i>"], "r": []}}
    found = told | {"note": "Apart from p.", "suspect": "u", "own_round": own}
    page = render_run_page(**run, followup=found)
    section = read(page)[1]["followup"]
    assert "Apart from p." in section
    assert "h1: it wants <i>all</i>" in section  # as text
    assert "bare +0.300, work +0.050" in section
    assert "no reference was at hand" in section
    assert "no question" in section
    assert "was not put to the suspect itself" in read(render_run_page(**run))[1]["followup"]
