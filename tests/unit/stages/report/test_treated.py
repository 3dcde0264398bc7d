"""What was decided of replacements is drawn by recipe and teacher, and said in words."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from doublebind.stages.report.figures import Figure
from doublebind.stages.report.svg.dot_plot import WIDTH
from doublebind.stages.report.tables.run import Absent
from doublebind.stages.report.treatments import draw_capability_vs_drive, draw_decision_matrix

DECISIONS = ("within_margin", "not_within_margin", "inconclusive")


def row(teacher: str, recipe: str, decision: str, b: float, c: float, **more: Any) -> dict:
    def tau(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.2, "high": value + 40.0}

    own = {"teacher": teacher, "recipe": recipe, "decision": decision, "class": "organism"}
    return own | {"tau_b": tau(b), "tau_c": tau(c)} | more


ROWS = [
    row("o/one<script>", "plain", "not_within_margin", 0.6, 0.9),
    row("o/one<script>", "jammed", "within_margin", 0.1, 0.8),
    row("o/two", "plain", "inconclusive", 0.4, 1.4),
    row("o/two", "jammed", "within_margin", -0.1, 0.7, false_certificate=True),
    {k: v for k, v in row("o/three", "plain", "inconclusive", 0, 0).items() if k != "tau_b"},
    row("r/benign", "plain", "within_margin", 0.0, 1.0) | {"class": "benign"},
]


def parsed(drawn: Any) -> ElementTree.Element:
    assert isinstance(drawn, Figure)
    return ElementTree.fromstring(drawn.svg)


def of(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [e for e in svg.iter() if name in e.get("class", "").split()]


def test_every_organism_with_both_ratios_has_a_point_in_its_decisions_colour_and_shape() -> None:
    drawn = draw_capability_vs_drive({"treatments": ROWS})
    svg = parsed(drawn)
    points = of(svg, "decided")
    assert len(points) == len(of(svg, "span")) == 4
    counts = [
        len([p for p in points if d.replace("_", "-") in p.get("class", "").split()])
        for d in DECISIONS
    ]
    assert counts == [2, 1, 1]
    heads = {p.get("class"): p.get("d", "").lstrip("M0123456789. -")[:1] for p in points}
    assert len(set(heads.values())) == 3
    assert isinstance(drawn, Figure)
    assert "No comparison possible for 1 more" in drawn.description
    assert len(drawn.data.rows) == 4
    assert "o/one<script>" not in str(drawn.svg)


def test_points_further_right_carry_more_of_the_drive_and_intervals_stay_inside() -> None:
    svg = parsed(draw_capability_vs_drive({"treatments": ROWS}))
    places = [
        p.get("d", "M0 0")[1:].split("a")[0].split("l")[0].split("h")[0].split()
        for p in of(svg, "decided")
    ]
    across = [float(x) for x, _ in places]
    assert across[0] > across[2] > across[1] > across[3]
    for span in of(svg, "span"):
        path = span.get("d", "").replace("M", " ").replace("H", " ").replace("V", " ").split()
        assert all(0 <= float(x) <= WIDTH for x in path)


def test_a_matrix_has_a_cell_for_each_decision_and_frames_false_certificates() -> None:
    drawn = draw_decision_matrix({"treatments": ROWS})
    svg = parsed(drawn)
    assert len(of(svg, "cell")) == len(ROWS)
    assert len(of(svg, "framed")) == 1
    assert [t.text for t in of(svg, "letter")] == ["n", "w", "?", "w", "?", "w"]
    assert isinstance(drawn, Figure)
    assert "Within the margin, of 4 teachers: plain 1, jammed 2." in drawn.description
    assert "Framed: 1 within" in drawn.description
    assert [r[0] for r in drawn.data.rows] == ["o/one<script>", "o/two", "o/three", "r/benign"]
    assert isinstance(drawn.data.rows[2][2], Absent)
    xs = [float(c.get("x", "")) + float(c.get("width", "")) for c in of(svg, "cell")]
    assert max(xs) <= WIDTH


def test_names_of_many_recipes_stay_inside_a_matrix() -> None:
    names = [f"untold-paraphrased-{i}" for i in range(21)]
    svg = parsed(
        draw_decision_matrix({"treatments": [row("o/one", n, "inconclusive", 0, 0) for n in names]})
    )
    top = min(float(cell.get("y", "")) for cell in of(svg, "cell"))
    told = [t for t in of(svg, "tick") if t.text in names]
    assert len(told) == 21
    assert all("rotate(-90)" in t.get("transform", "") for t in told)
    assert top > 5.5 * len(names[-1])


def test_of_many_points_the_intervals_are_in_the_table_alone() -> None:
    rows = [row(f"o/{i}", "plain", "inconclusive", 0.01 * i, 0.5) for i in range(61)]
    drawn = draw_capability_vs_drive({"treatments": rows})
    assert len(of(parsed(drawn), "decided")) == 61
    assert not of(parsed(drawn), "span")
    assert isinstance(drawn, Figure)
    assert "Their intervals are in the table." in drawn.description
    assert len(of(parsed(draw_capability_vs_drive({"treatments": rows[1:]})), "span")) == 60


@pytest.mark.parametrize("draw", [draw_capability_vs_drive, draw_decision_matrix])
def test_without_replacements_there_is_a_reason_and_no_picture(draw: Any) -> None:
    assert isinstance(draw({}), Absent)


def test_what_cannot_be_compared_with_the_plain_recipe_has_no_point_and_is_said() -> None:
    rows = [each | {"comparable": each["teacher"] != "o/two"} for each in ROWS]
    drawn = draw_capability_vs_drive({"treatments": rows})
    assert len(of(parsed(drawn), "decided")) == 2
    assert isinstance(drawn, Figure)
    assert "No comparison possible for 2 more: the plain recipe" in drawn.description
    nobody = draw_capability_vs_drive(
        {"treatments": [each | {"comparable": False} for each in ROWS]}
    )
    assert isinstance(nobody, Absent)
