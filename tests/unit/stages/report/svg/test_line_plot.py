"""Paths in a plane stay in order, inside their frame, and show their direction."""

import re
from typing import Any

import pytest
from tests.unit.stages.report.fake_run import read_places

from doublebind.stages.report.svg.elements import WIDTH, PlotText
from doublebind.stages.report.svg.line_plot import HEIGHT, PlotPath, draw_paths

SUSPECT = PlotPath("U", "suspect", [(0.2, 0.1), (0.3, 0.3), (0.5, 0.6)])
OTHERS = [PlotPath(f"r{i}", "reference", [(0.2, 0.1), (0.4, 0.1 + i / 100)]) for i in range(5)]
M0 = PlotPath("M0", "m0", [(0.2, 0.1)])


def draw(paths: list[PlotPath], **options: Any) -> str:
    axes = ("capability", "<misalignment>")
    return draw_paths(paths, PlotText("p", "T", "words"), axes, **{"arrows": True} | options)


def read_lines(svg: str) -> list[list[tuple[float, float]]]:
    """Return the corners of every open line, in the order in which they are drawn."""
    return [
        [tuple(map(float, corner.split())) for corner in line.split("L")]
        for line in re.findall(r' d="M([\d. L]+)"', svg)
    ]


def test_a_path_bends_at_every_step_on_its_way_to_the_symbol() -> None:
    svg = draw([SUSPECT, *OTHERS, M0])
    *others, suspect = read_lines(svg)
    assert [len(line) for line in others] == [2] * 5
    assert [x for x, _ in suspect] == sorted(x for x, _ in suspect)
    assert [y for _, y in suspect] == sorted((y for _, y in suspect), reverse=True)
    assert len(suspect) == 3
    assert suspect[-1] == (read_places(svg)["U: 0.6"][0], read_places(svg)["U: 0.6"][1] + 7)
    assert list(read_places(svg))[-2:] == ["U: 0.6", "M0: 0.1"]  # on top of the references


def test_directions_are_arrowheads_or_stops() -> None:
    assert "<circle" not in draw([SUSPECT])
    assert len(re.findall(r'L[\d. ]+z"', draw([SUSPECT]))) == 1
    stops = draw([SUSPECT], arrows=False, ticks=(0.2, 0.5))
    assert stops.count("<circle") == 2
    assert not re.findall(r'L[\d. ]+z"', stops)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_every_point_is_drawn_inside_the_frame(scale: float) -> None:
    scaled = [p._replace(points=[(scale * x, scale * y) for x, y in p.points]) for p in OTHERS]
    lines = read_lines(draw(scaled))
    assert len(lines) == 5
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for line in lines for x, y in line)


def test_one_point_alone_makes_a_plane() -> None:
    svg = draw([M0])
    assert not read_lines(svg)
    assert list(read_places(svg)) == ["M0: 0.1"]
    assert "&lt;misalignment&gt;" in svg
