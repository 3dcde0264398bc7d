"""Figures say in words what they draw, and draw every teacher."""

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from doublebind.stages.report.svg.dot_plot import (
    HEIGHT,
    WIDTH,
    Bound,
    DotRow,
    Point,
    describe_points,
    draw_dot_rows,
    draw_dot_strip,
)


def points(n: int, spread: float = 1.0) -> list[Point]:
    return [
        *(Point(f"reference-{i}", spread * (i * 7 % 11) / 10, "reference") for i in range(n)),
        Point("U", 1.5 * spread, "suspect"),
        Point("organism", 1.2 * spread, "organism"),
        Point("M0", 0.1 * spread, "m0"),
    ]


def draw(drawn: list[Point]) -> ElementTree.Element:
    return ElementTree.fromstring(draw_dot_strip(drawn, name="f", title="Title", axis="axis"))


def test_every_figure_of_a_page_has_a_text_alternative(typical: tuple[dict[str, Any], str]) -> None:
    _, page = typical
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    # Two distributions, two planes, endpoints on one scale, and each in probabilities.
    assert len(figures) == 7
    identifiers = []
    for figure in figures:
        svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", figure, re.DOTALL)[0])
        assert svg.get("role") == "img"
        title, desc = svg.find("title"), svg.find("desc")
        assert title is not None
        assert title.text
        assert desc is not None
        assert re.search(r"\d+ references (from|end around)", desc.text or "")
        assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        identifiers += [title.get("id"), desc.get("id")]
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
    svg = draw(points(n, spread))
    circles = svg.findall(".//circle")
    assert len(circles) == n
    for circle in circles:
        assert 0 < float(circle.get("cx", "")) < WIDTH
        assert 0 < float(circle.get("cy", "")) < HEIGHT
    assert len([p for p in svg.findall(".//path") if p.get("class") == "suspect"]) == 1


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
def test_equal_values_still_make_an_axis(value: float) -> None:
    drawn = [Point(f"r{i}", value, "reference") for i in range(100)]
    svg = draw([*drawn, Point("U", value, "suspect")])
    heights = [float(c.get("cy", "")) for c in svg.findall(".//circle")]
    assert len(set(heights)) == 100
    assert min(heights) > 0


def test_dots_keep_the_order_of_values() -> None:
    svg = draw(points(11))
    at = {
        (circle.findtext("title") or "").split(":")[0]: float(circle.get("cx", ""))
        for circle in svg.findall(".//circle")
    }
    ordered = sorted((p for p in points(11) if p.mark == "reference"), key=lambda p: p.value)
    assert all(at[a.label] < at[b.label] for a, b in pairwise(ordered))


def test_labels_in_figures_are_escaped() -> None:
    text = draw_dot_strip(
        [Point("<script>\x1b\u202e&", 0.5, "suspect"), Point("]]>", 0.2, "reference")],
        name="f",
        title="<b>",
        axis="<i>",
    )
    ElementTree.fromstring(text)
    assert "<script" not in text
    assert r"\x1b\u202e" in text


def test_rows_share_one_axis() -> None:
    lines = [
        DotRow("low", "p 1", [Point("U", 1.0, "suspect"), Point("a", 0.0, "reference")]),
        DotRow("<high>", "", [Point("U", 4.0, "suspect"), Point("a", 1.0, "reference")]),
    ]
    svg = ElementTree.fromstring(draw_dot_rows(lines, name="r", title="T", axis="z", description="words"))
    suspects = [p.get("d", "") for p in svg.findall(".//path") if p.get("class") == "suspect"]
    across = [float(d[1:].split()[0]) for d in suspects]
    circles = [float(c.get("cx", "")) for c in svg.findall(".//circle")]
    assert across[0] == circles[1] < across[1]
    assert circles[0] < circles[1]
    assert svg.findtext("desc") == "words"
    assert "<high>" in [t.text for t in svg.findall(".//text")]


@pytest.mark.parametrize("at", [-100.0, 0.55, 100.0])
def test_a_region_stays_inside_the_frame(at: float) -> None:
    drawn = draw_dot_strip(points(11), name="f", title="T", axis="a", bound=Bound(at, "p <= alpha"))
    region = next(p for p in ElementTree.fromstring(drawn).iter() if p.get("class") == "region")
    edges = [float(x) for x in re.findall(r"[MH](-?[\d.]+)", region.get("d", ""))]
    assert all(0 <= x <= WIDTH for x in edges)


def test_two_figures_can_share_an_axis() -> None:
    def at(drawn: list[Point]) -> float:
        svg = ElementTree.fromstring(
            draw_dot_strip(drawn, name="f", title="T", axis="a", span=(0.0, 10.0))
        )
        return float(svg.findall(".//circle")[0].get("cx", ""))

    assert at([Point("a", 1.0, "reference")]) == at(
        [Point("a", 1.0, "reference"), Point("U", 7.0, "suspect")]
    )
