"""Dot plots describe their content in words, and draw every teacher inside the frame."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from tests.unit.stages.report.fake_run import read_places, read_typical

from doublebind.stages.report.svg.dot_plot import (
    HEIGHT,
    Bound,
    DotRow,
    describe_points,
    draw_dot_rows,
    draw_dot_strip,
)
from doublebind.stages.report.svg.elements import WIDTH, PlotText, Point

TEXT = PlotText("f", "Title", "words")


def points(n: int, spread: float = 1.0) -> list[Point]:
    return [
        *(Point(f"reference-{i}", spread * (i * 7 % 11) / 10, "reference") for i in range(n)),
        Point("U", 1.5 * spread, "suspect"),
        Point("organism", 1.2 * spread, "organism"),
        Point("M0", 0.1 * spread, "m0"),
    ]


def test_every_figure_of_a_page_has_a_text_alternative() -> None:
    _, page = read_typical()
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    # Two distributions, two planes, endpoints on one scale, and each in probabilities.
    assert len(figures) == 7
    identifiers = []
    for figure in figures:
        svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", figure, re.DOTALL)[0])
        assert svg.get("role") == "img"
        names = [part.get("id") for part in (svg.find("title"), svg.find("desc"))]
        assert svg.get("aria-labelledby") == " ".join(names)
        assert svg.findtext("title")
        assert re.search(r"\d+ references (from|end around)", svg.findtext("desc"))
        identifiers += names
        # The data behind it: suspect, 19 references and 6 organisms at the least.
        assert re.findall(r"<summary>(.*?)</summary>", figure) == ["Data of this figure"]
        assert figure.count("<tr>") > 26
    assert len(set(identifiers)) == len(identifiers)


def test_description_counts_the_references_below() -> None:
    drawn = [Point("a", 0.1, "reference"), Point("b", 0.9, "reference"), Point("U", 0.5, "suspect")]
    assert describe_points(drawn) == (
        "2 references from 0.1 to 0.9, median 0.5; suspect U at 0.5, above 1 of 2 references."
    )


@pytest.mark.parametrize("n", [0, 1, 2, 100])
@pytest.mark.parametrize("spread", [1e-9, 1.0, 1e6])
def test_every_teacher_is_drawn_inside_the_frame(n: int, spread: float) -> None:
    places = read_places(draw_dot_strip(points(n, spread), TEXT, "axis"))
    assert places.keys() == {f"{p.label}: {p.value:.4g}" for p in points(n, spread)}
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places.values())


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
def test_equal_values_are_piled_up_inside_the_frame(value: float) -> None:
    drawn = [Point(f"r{i}", value, "reference") for i in range(100)]
    svg = draw_dot_strip([*drawn, Point("U", value, "suspect")], TEXT, "axis")
    heights = {y for tip, (_, y) in read_places(svg).items() if tip.startswith("r")}
    assert len(heights) == 100
    assert min(heights) > 0


def test_dots_keep_the_order_of_values() -> None:
    places = read_places(draw_dot_strip(points(11), TEXT, "axis"))
    references = [p for p in points(11) if p.mark == "reference"]
    ordered = sorted(references, key=lambda p: p.value)
    across = [places[f"{p.label}: {p.value:.4g}"][0] for p in ordered]
    assert all(a < b for a, b in pairwise(across))


def test_texts_in_figures_are_escaped() -> None:
    svg = draw_dot_strip(
        [Point("<script>\x1b\u202e&", 0.5, "suspect"), Point("]]>", 0.2, "reference")],
        PlotText("f", "<b>", "</desc>"),
        "<i>",
    )
    assert r"<script>\x1b\u202e&: 0.5" in read_places(svg)
    assert "<script" not in svg


def test_rows_share_one_axis_and_show_their_names() -> None:
    lines = [
        DotRow("low", "p 1", [Point("U", 1.0, "suspect"), Point("a", 0.0, "reference")]),
        DotRow("<high>", "", [Point("V", 4.0, "suspect"), Point("b", 1.0, "reference")]),
    ]
    svg = draw_dot_rows(lines, TEXT, "z")
    across = {tip[0]: x for tip, (x, _) in read_places(svg).items()}
    assert across["a"] < across["U"] == across["b"] < across["V"]
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert {"low", "p 1", "<high>", "z"} <= set(texts)
    assert ElementTree.fromstring(svg).findtext("desc") == "words"


@pytest.mark.parametrize("value", [-100.0, 0.55, 100.0])
def test_a_region_stays_inside_the_frame(value: float) -> None:
    svg = draw_dot_strip(points(11), TEXT, "axis", bound=Bound(value, "p <= alpha"))
    assert "p &lt;= alpha" in svg
    (region,) = re.findall(r' d="(M[^"]*H[^"]*)"', svg)
    assert all(0 <= float(x) <= WIDTH for x in re.findall(r"[MH](-?[\d.]+)", region))


def test_two_figures_can_share_an_axis() -> None:
    alone, together = (
        read_places(draw_dot_strip(drawn, TEXT, "axis", span=(0.0, 10.0)))
        for drawn in (points(1), [*points(1), Point("V", 7.0, "suspect")])
    )
    assert alone["reference-0: 0"] == together["reference-0: 0"]
