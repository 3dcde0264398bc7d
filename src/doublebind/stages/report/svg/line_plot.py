"""Draws paths in a plane, with arrowheads where they end, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from doublebind.stages.report.svg.elements import (
    RIGHT,
    Mark,
    PlotText,
    Point,
    Scale,
    build_svg,
    choose_axis,
    draw_symbol,
    draw_x_axis,
    el,
)

_LEFT, _TOP, _FLOOR = 52, 26, 258
_AXIS_HEIGHT = 42
"""Pixels below a plane, for its horizontal axis."""
HEIGHT = _FLOOR + _AXIS_HEIGHT
_MARK_ORDER = ("reference", "organism", "itself", "suspect", "m0")


class PlotPath(NamedTuple):
    """Where one teacher's students went; the last point carries the teacher's symbol."""

    label: str
    mark: Mark
    points: list[tuple[float, float]]


class Plane(NamedTuple):
    """Two drawn axes, and the scale of each."""

    parts: list[Markup]
    x: Scale
    y: Scale
    height: int


def draw_paths(
    paths: Sequence[PlotPath],
    text: PlotText,
    axes: tuple[str, str],
    *,
    arrows: bool,
    ticks: Sequence[float] = (),
    frontier: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Return an SVG of paths in a plane.

    Args:
        paths: With finite coordinates; at least one path with at least one point.
        text: Text alternative.
        axes: What the horizontal and the vertical axis measure.
        arrows: Whether a path ends in an arrowhead, to show its direction; otherwise the suspect's
            path shows its stops.
        ticks: Ticks of the horizontal axis; round numbers by default.
        frontier: Points, among those of the paths, that a dashed line joins from left to right.
    """
    across, up = zip(*(point for path in paths for point in path.points), strict=True)
    plane = draw_plane(across, up, axes, ticks=ticks)
    parts = list(plane.parts)
    if len(frontier) > 1:
        line = _join_points([(plane.x(a), plane.y(b)) for a, b in sorted(frontier)])
        parts.append(el("path", class_="front", d=line))
    symbols: list[Markup] = []
    for path in sorted(paths, key=lambda path: _MARK_ORDER.index(path.mark)):
        spots = [(plane.x(a), plane.y(b)) for a, b in path.points]
        if len(spots) > 1:
            line = _join_points(spots)
            parts.append(el("path", class_=f"course {path.mark}-course", d=line))
            parts += _draw_arrow(path.mark, spots) if arrows else _draw_stops(path.mark, spots)
        symbols.append(draw_symbol(Point(path.label, path.points[-1][1], path.mark), *spots[-1]))
    return build_svg(text, plane.height, [*parts, *symbols])


def draw_plane(
    across: Sequence[float],
    up: Sequence[float],
    axes: tuple[str, str],
    *,
    ticks: Sequence[float] = (),
    floor: int = _FLOOR,
) -> Plane:
    """Return two axes; their scales put a value beyond an axis at its end.

    Args:
        across: Finite values that the horizontal axis must hold.
        up: Finite values that the vertical axis must hold.
        axes: What the horizontal and the vertical axis measure.
        ticks: Ticks of the horizontal axis, which then ends at them; round numbers by default.
        floor: Height, in pixels, at which the plane ends.
    """
    x_low, x_high, x_ticks = choose_axis(across)
    if ticks:
        x_low, x_high, x_ticks = min(ticks), max(ticks), list(ticks)
    y_low, y_high, y_ticks = choose_axis(up)

    def x(value: float) -> float:
        inside = min(max(value, x_low), x_high)
        return _LEFT + 8 + (inside - x_low) / (x_high - x_low) * (RIGHT - _LEFT - 16)

    def y(value: float) -> float:
        inside = min(max(value, y_low), y_high)
        return floor - (inside - y_low) / (y_high - y_low) * (floor - _TOP)

    parts: list[Markup] = []
    for tick in y_ticks:
        height = y(tick)
        label = f"{tick:g}"
        parts.append(el("line", class_="row", x1=_LEFT, x2=RIGHT, y1=height, y2=height))
        parts.append(el("text", label, class_="tick", x=_LEFT - 6, y=height + 4, text_anchor="end"))
    parts.append(el("text", axes[1], class_="unit", x=4, y=14))
    parts += draw_x_axis([(tick, f"{tick:g}") for tick in x_ticks], x, floor + 4, axes[0], _LEFT)
    return Plane(parts, x, y, floor + _AXIS_HEIGHT)


def _join_points(spots: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)


def _draw_stops(mark: Mark, spots: Sequence[tuple[float, float]]) -> list[Markup]:
    if mark != "suspect":
        return []
    return [el("circle", class_="stop", cx=float(a), cy=float(b), r=2.6) for a, b in spots[:-1]]


def _draw_arrow(mark: Mark, spots: Sequence[tuple[float, float]]) -> list[Markup]:
    """Return an arrowhead that points along the last leg, short of the symbol at its end."""
    (a, b), (c, d) = spots[-2:]
    length = math.hypot(c - a, d - b)
    if length < 16:
        return []
    u, v = (c - a) / length, (d - b) / length
    size = 4.0 if mark == "suspect" else 2.5
    tip = (c - 8 * u, d - 8 * v)
    x, y = c - (8 + 2 * size) * u, d - (8 + 2 * size) * v
    corners = [tip, (x - size * v, y + size * u), (x + size * v, y - size * u)]
    return [el("path", class_=f"head {mark}-head", d=_join_points(corners) + "z")]
