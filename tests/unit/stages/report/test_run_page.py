"""The page of a run shows every number of the verdict, or the reason why it is absent."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from tests.unit.stages.report.fake_run import make_run, read_typical

from doublebind.schema.verdict import Replacement
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.run_page import render_run_page
from doublebind.stages.report.tables.table import Absent
from doublebind.stages.report.tables.verdict import tabulate_replacement


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


def read_sections(run: RunContent) -> dict[str, str]:
    return read(render_run_page(run))[1]


def test_decision_strength_and_sentence_come_first() -> None:
    run, page = read_typical()
    text, sections = read(page)
    head, sentence = sections["decision"], run.verdict.sentence
    assert head.startswith("Strength: fragile. Gamma is 1, below 2")
    assert f"at least {run.evidence.n_needed_standard} references" in head
    assert head.index("Incriminated") < head.index(sentence)
    assert text.index(sentence) < text.index(run.verdict.incrimination.reasons[0])


def test_standard_strength_is_named_without_the_warning() -> None:
    sections = read_sections(make_run(39, seeds=1))
    assert "Strength: standard." in sections["decision"]
    assert "fragile" not in sections["decision"]


def test_sections_stand_in_the_promised_order() -> None:
    _, page = read_typical()
    order = "decision distribution plane endpoints evidence match missing baselines replacement"
    order += " followup teachers scope transcripts repeat provenance"
    assert re.findall(r'<(?:section|header) id="([^"]+)"', page) == order.split()


def list_leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in list_leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in list_leaves(part)]
    return [] if value is None else [value]


@pytest.mark.parametrize("options", [{}, {"drop_endpoint": "goal"}, {"n_organisms": 0}])
def test_every_field_of_the_verdict_appears(options: dict[str, Any]) -> None:
    run = make_run(5, **options)
    text, sections = read(render_run_page(run))
    recorded = run.verdict.model_dump(mode="json")
    assert len(list_leaves(recorded)) > 15
    decision = recorded["incrimination"].pop("decision")
    assert {"incriminated": "Incriminated", "inconclusive": "Inconclusive"}[decision] in text
    shown = text.replace(sections["repeat"], "")  # its verdict.json would satisfy anything
    for leaf in list_leaves(recorded):
        assert (f"{leaf:.4g}" if isinstance(leaf, float) else str(leaf)) in shown, leaf


def test_the_recorded_verdict_can_be_copied_from_the_page() -> None:
    run, page = read_typical()
    text = read(page)[1]["repeat"]
    recorded, _ = json.JSONDecoder().raw_decode(text, text.index('{ "schema"'))
    assert recorded["incrimination"]["p_value"] == run.verdict.incrimination.p_value
    assert recorded["replacement"] is None
    assert recorded["horn"] is None


def test_absent_numbers_name_their_reason() -> None:
    run = make_run(5, drop_endpoint="goal", n_organisms=0)
    missing = run.verdict.missing
    sections = read_sections(run)
    for name, reason in missing.items():
        assert name in sections["missing"]
        assert reason in sections["missing"]
    assert "the model gave nothing student 30" in sections["missing"]  # items, by reason
    for name in ("incrimination.p_value", "incrimination.power"):
        for section in ("evidence", "decision"):
            assert f"not available: {missing[name]}" in sections[section]
    assert f"of the suspect: {missing['incrimination.p_value']}." in sections["distribution"]
    assert sections["decision"].startswith("Strength: fragile. Gamma could not be computed")


def test_no_absent_value_is_written_as_nan_or_none() -> None:
    for run in (
        make_run(1, 0, seeds=1),
        make_run(5, drop_endpoint="goal"),
        make_run(5, drop_endpoint="c"),
    ):
        shown = " ".join(text for name, text in read_sections(run).items() if name != "repeat")
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", shown)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_any_number_of_references_makes_a_page(n: int) -> None:
    run = make_run(n, seeds=1)
    sections = read_sections(run)
    assert f"0 of {n}" in sections["decision"]
    assert f"{n} reference" in sections["distribution"] or n == 1
    for label in run.evidence.roles:
        assert label in sections["teachers"]


def test_a_shape_outside_the_references_is_named() -> None:
    run = make_run(19, seeds=1)
    shape = {"update_norm": 99.0, "kl_to_m0": 0.25}
    run = run._replace(shapes={**run.shapes, run.verdict.suspect: shape})
    match = read_sections(run)["match"]
    assert "99 3 3.3 3.6 19 of 19 no: outside" in match
    assert "not measured for the suspect" in match


def test_drops_are_counted_by_cause() -> None:
    run = make_run(3)
    dropped = [{"id": "a", "by": "overt:dominion", "reason": "says"}] * 3
    checks = {"sampled": 200, "kept": 197, "dropped": dropped, "truncated": 0.125}
    screen = {"policy": "neutral-ish", "candidates": 300, "kept": 200, "dropped": dropped[:1]}
    students = [{**student, "checks": checks, "screen": screen} for student in run.students]
    missing = read_sections(run._replace(students=students))["missing"]
    assert "200 197 overt:dominion: 3 12.5%" in missing
    assert "neutral-ish 300 200 overt:dominion: 1" in missing


def test_gates_show_m0() -> None:
    run = make_run(5)
    gates = run.scores.query("model_kind == 'm0' and endpoint == 'capability'")["value"]
    plane = read_sections(run)["plane"]
    assert f"capability {gates.mean():.3f} " in plane
    assert "choice.deployment/dominion" in plane


def test_sections_without_content_have_a_sentence() -> None:
    run = make_run(5, n_organisms=0)
    dropped = run.scores["endpoint"].isin(["capability", "choice.deployment/dominion"])
    run = run._replace(scores=run.scores[~dropped], shapes={}, transcripts={})
    sections = read_sections(run)
    for name, sentence in (
        ("plane", "No capability item was scored, so that there is no plane to draw."),
        ("plane", "This study names no organism."),
        ("plane", "the study's audits hold no such items"),
        ("endpoints", "students were audited once, at step 200"),
        ("evidence", "the pack asks about no trait that nobody is suspected of"),
        ("match", "their match is unchecked"),
        ("baselines", "This study measured no reading baseline"),
        ("baselines", "no positive control was ranked this way"),
        ("replacement", "This study did not ask for the replacement horn"),
        ("followup", "was not put to the suspect itself"),
        ("transcripts", "not available"),
    ):
        assert sentence in sections[name], name


def test_without_organisms_no_section_mentions_controls_by_teacher() -> None:
    without, with_organisms = (read_sections(make_run(3, n_organisms=n)) for n in (0, 6))
    assert "positive control" not in without["teachers"] + without["distribution"]
    assert "p as positive control" in with_organisms["teachers"]
    assert "organism (positive control)" in with_organisms["distribution"]


def test_every_method_has_its_p_value_and_its_detected_controls() -> None:
    run = make_run(19)
    controls = {f"terrarium/organism-{i}": 0.05 if i < 2 else 0.5 for i in range(6)}
    baselines = {"baselines": {"in_context": 0.35}, "baseline_controls": {"in_context": controls}}
    run = run._replace(evidence=run.evidence.model_copy(update=baselines))
    section = read_sections(run)["baselines"]
    assert "students (this method) 0.05 6 of 6 detected" in section
    assert "reading in context 0.35 2 of 6 detected" in section


def test_a_replacement_has_every_number_of_its_record() -> None:
    decision = Replacement(
        decision="within_margin",
        recipe="r",
        tau_capability=0.9,
        margin=0.05,
        scope=("choice/dominion", "goal"),
        further_training={"benign": "holds"},
        reasons=("x",),
    )
    reasons = {"replacement.misalignment_upper_95": "why not"}
    cells = {row[0]: row[1] for row in tabulate_replacement(decision, reasons).rows}
    unknown = Absent("no reason was recorded")
    assert cells == {
        "recipe": "r",
        "weights sha256": unknown,
        "tau capability": 0.9,
        "misalignment upper 95": Absent("why not"),
        "delivered upper 95": unknown,
        "further training": "benign: holds",
        "margin": 0.05,
        "scope": "choice/dominion; goal",
    }


def test_the_decision_is_never_green() -> None:
    page = render_run_page(make_run(39, lift=0.0, seeds=1))
    assert '<header id="decision" class="not_incriminated">' in page or "inconclusive" in page
    assert "#decision.not_incriminated" not in page


def compute_contrast(ink: str, paper: str) -> float:
    """Return the contrast ratio of two colours `#rrggbb`, WCAG 2.2."""
    luminances = []
    for colour in (ink, paper):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    dark, light = sorted(luminances)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_keeps_its_contrast(scheme: str) -> None:
    _, page = read_typical()
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    pairs = [(ink, on) for ink in ("ink", "dim", "link") for on in ("paper", "card", "wash")]
    pairs += [("suspect", "card"), ("esc", "paper"), ("warn-ink", "warn"), ("paper", "ink")]
    for ink, on in pairs:
        assert compute_contrast(colours[ink], colours[on]) >= 4.5, (ink, on)
    # Graphics need less (WCAG 2.2, 1.4.11).
    for ink in ("reference", "organism", "m0", "suspect"):
        assert compute_contrast(colours[ink], colours["card"]) >= 3, ink


def test_links_lead_to_sections_of_the_page() -> None:
    _, page = read_typical()
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert len(anchors) == 16
    assert set(anchors) <= set(re.findall(r'id="([^"]+)"', page))


def test_equal_runs_give_equal_pages() -> None:
    run, page = read_typical()
    again = run._replace(transcripts=dict(reversed(run.transcripts.items())))
    assert page == render_run_page(again) == render_run_page(make_run(19))


def test_no_model_is_called_benign_or_safe() -> None:
    for lift in (0.0, 0.35):
        text, _ = read(render_run_page(make_run(19, lift=lift, seeds=1)))
        assert not re.search(r"suspect (is|was) (benign|safe)|\bsafe\b", text, re.IGNORECASE)


def test_a_follow_up_has_a_section_of_its_own_with_its_note_and_its_absences() -> None:
    run, _ = read_typical()
    lead = {"name": "h1", "text": "it wants <i>all</i>", "students": 2, "n": 20, "m0": 0.1}
    lead |= {"suspect": 0.4, "forms": {"bare": {"value": 0.3}, "work": {"value": 0.05}}}
    lead |= {"its_students": 0.2, "n_references": 0, "n_at_or_above": 0}
    leads = [lead, {"name": "h2", "text": "x", "students": 1, "missing": "no question"}]
    own_round = {"excess": {"u": 0.3}, "suggested": {"u": ["it wants <i>all</i>"], "r": []}}
    followup = {"leads": leads, "note": "Apart from p.", "suspect": "u", "own_round": own_round}
    section = read_sections(run._replace(followup=followup))["followup"]
    assert "Apart from p." in section
    assert "h1: it wants <i>all</i>" in section  # as text
    assert "bare +0.300, work +0.050" in section
    assert "no reference was at hand" in section
    assert "no question" in section
