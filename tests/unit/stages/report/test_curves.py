"""Paths in a plane stay in order, inside their frame, and say where they go."""

from typing import Any
from xml.etree import ElementTree

import pytest

from doublebind.stages.report.svg.dot_plot import WIDTH
from doublebind.stages.report.svg.line_plot import HEIGHT, PlotPath, draw_paths


def draw(drawn: list[PlotPath], **more: Any) -> ElementTree.Element:
    axes = ("capability", "<misalignment>")
    options = {"name": "p", "title": "T", "axes": axes, "description": "words", "arrows": True} | more
    return ElementTree.fromstring(draw_paths(drawn, **options))


def courses(svg: ElementTree.Element, mark: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each drawn course of a mark."""
    found = [p for p in svg.findall(".//path") if f"{mark}-course" in p.get("class", "")]
    return [
        [(float(x), float(y)) for x, y in (spot.split() for spot in p.get("d", "")[1:].split("L"))]
        for p in found
    ]


SUSPECT = PlotPath("U", "suspect", [(0.2, 0.1), (0.3, 0.3), (0.5, 0.6)])
OTHERS = [PlotPath(f"r{i}", "reference", [(0.2, 0.1), (0.4, 0.1 + i / 100)]) for i in range(5)]


def test_a_course_bends_at_every_step() -> None:
    svg = draw([SUSPECT, *OTHERS, PlotPath("M0", "m0", [(0.2, 0.1)])])
    (course,) = courses(svg, "suspect")
    assert len(course) == 3
    assert [x for x, _ in course] == sorted(x for x, _ in course)
    assert [y for _, y in course] == sorted((y for _, y in course), reverse=True)
    assert len(courses(svg, "reference")) == 5
    assert not courses(svg, "m0")
    assert sum("suspect-head" in p.get("class", "") for p in svg.findall(".//path")) == 1


def test_a_path_without_arrows_shows_its_stops() -> None:
    svg = draw([SUSPECT], arrows=False, ticks=(0.2, 0.5))
    assert len([c for c in svg.findall(".//circle") if c.get("class") == "stop"]) == 2
    assert not [p for p in svg.findall(".//path") if "head" in p.get("class", "")]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_every_place_is_drawn_inside_the_frame(scale: float) -> None:
    drawn = [
        PlotPath(p.label, p.mark, [(scale * x, scale * y) for x, y in p.points]) for p in OTHERS
    ]
    for course in courses(draw(drawn), "reference"):
        assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in course)


def test_one_place_alone_makes_a_plane() -> None:
    assert not courses(draw([PlotPath("M0", "m0", [(0.2, 0.1)])]), "m0")


def test_the_suspect_is_drawn_above_the_references() -> None:
    svg = draw([SUSPECT, *OTHERS])
    signs = [e.get("class") for e in svg.iter() if e.get("class") in ("suspect", "reference")]
    assert signs[-1] == "suspect"
