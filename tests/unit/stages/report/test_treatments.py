"""Decisions about replacements are drawn by recipe and teacher, and described in words."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.unit.stages.report.fake_run import read_places

from doublebind.stages.report.figures import Figure, FigureOrAbsent
from doublebind.stages.report.svg.elements import WIDTH
from doublebind.stages.report.tables.table import Absent
from doublebind.stages.report.treatments import draw_capability_vs_drive, draw_decision_matrix


def row(teacher: str, recipe: str, decision: str, b: float, c: float, **more: Any) -> dict:
    ratios = {
        name: {"value": value, "low": value - 0.2, "high": value + 40.0}
        for name, value in (("tau_b", b), ("tau_c", c))
    }
    names = {"teacher": teacher, "recipe": recipe, "decision": decision, "class": "organism"}
    return names | ratios | more


ROWS = [
    row("o/one<script>", "plain", "not_within_margin", 0.6, 0.9),
    row("o/one<script>", "jammed", "within_margin", 0.1, 0.8),
    row("o/two", "plain", "inconclusive", 0.4, 1.4),
    row("o/two", "jammed", "within_margin", -0.1, 0.7, false_certificate=True),
    {k: v for k, v in row("o/three", "plain", "inconclusive", 0, 0).items() if k != "tau_b"},
    row("r/benign", "plain", "within_margin", 0.0, 1.0) | {"class": "benign"},
]


def drawn(figure: FigureOrAbsent) -> Figure:
    assert isinstance(figure, Figure)
    ElementTree.fromstring(figure.svg)
    return figure


def count_intervals(figure: Figure) -> int:
    return len(re.findall(r'd="M[^"]+H[^"]+V[^"]+"', figure.svg))


def test_every_organism_with_both_ratios_has_a_point_shaped_by_its_decision() -> None:
    figure = drawn(draw_capability_vs_drive(ROWS))
    places = read_places(figure.svg)
    decisions = [tip.partition(": ")[2] for tip in places]
    exceeds = "within the margin, exceeds it on oracle items"
    assert decisions == ["not within", "within the margin", "inconclusive", exceeds]
    across = [x for x, _ in places.values()]
    assert across[0] > across[2] > across[1] > across[3]  # further right: more of the drive
    shapes = re.findall(r' d="M[\d. ]+([alh])[^"]*"><title>', figure.svg)
    assert len(set(shapes)) == 3
    assert count_intervals(figure) == 4
    assert all(0 <= float(x) <= WIDTH for x in re.findall(r"[MH](-?[\d.]+)", figure.svg))
    assert "No comparison possible for 1 more" in figure.description
    assert len(figure.data.rows) == 4
    assert "o/one<script>" not in figure.svg


def test_a_matrix_has_a_cell_for_each_decision_and_frames_false_certificates() -> None:
    figure = drawn(draw_decision_matrix(ROWS))
    texts = [element.text for element in ElementTree.fromstring(figure.svg).iter("text")]
    assert [text for text in texts if len(text or "") == 1] == ["n", "w", "?", "w", "?", "w"]
    assert "Within the margin, of 4 teachers: plain 1, jammed 2." in figure.description
    assert "Framed: 1 within" in figure.description
    names = [each[0] for each in figure.data.rows]
    assert names == ["o/one<script>", "o/two", "o/three", "r/benign"]
    assert isinstance(figure.data.rows[2][2], Absent)
    rects = re.findall(r'<rect [^>]*x="([\d.]+)"[^>]*width="([\d.]+)"', figure.svg)
    assert len(rects) == len(ROWS)
    assert max(float(x) + float(width) for x, width in rects) <= WIDTH


def test_names_of_many_recipes_stand_upright_above_a_matrix() -> None:
    names = [f"untold-paraphrased-{i}" for i in range(21)]
    rows = [row("o/one", name, "inconclusive", 0, 0) for name in names]
    svg = drawn(draw_decision_matrix(rows)).svg
    turned = re.findall(r"rotate\(-90\)\">([^<]+)<", svg)
    assert turned == names
    assert min(y for _, y in read_places(svg).values()) > 5.5 * len(names[-1])


def test_of_many_points_the_intervals_are_in_the_table_alone() -> None:
    rows = [row(f"o/{i}", "plain", "inconclusive", 0.01 * i, 0.5) for i in range(61)]
    figure = drawn(draw_capability_vs_drive(rows))
    assert len(read_places(figure.svg)) == 61
    assert count_intervals(figure) == 0
    assert "Their intervals are in the table." in figure.description
    assert count_intervals(drawn(draw_capability_vs_drive(rows[1:]))) == 60


@pytest.mark.parametrize("draw", [draw_capability_vs_drive, draw_decision_matrix])
def test_without_replacements_there_is_a_reason_and_no_picture(draw: Any) -> None:
    assert isinstance(draw([]), Absent)


def test_a_recipe_that_cannot_be_compared_has_no_point_and_is_counted() -> None:
    rows = [each | {"comparable": each["teacher"] != "o/two"} for each in ROWS]
    figure = drawn(draw_capability_vs_drive(rows))
    assert len(read_places(figure.svg)) == 2
    assert "No comparison possible for 2 more: the plain recipe" in figure.description
    nobody = draw_capability_vs_drive([each | {"comparable": False} for each in ROWS])
    assert isinstance(nobody, Absent)
