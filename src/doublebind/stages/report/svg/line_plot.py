"""Draws what training does to students: paths between two axes, with arrows where they end.

Knows paths of points. Does not know endpoints, doses or decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from doublebind.stages.report.hostile_text import escape_invisible
from doublebind.stages.report.svg.dot_plot import (
    Mark,
    Point,
    Scale,
    choose_axis,
    close_svg,
    draw_glyph,
    draw_x_axis,
    open_svg,
)

_LEFT, _RIGHT, _TOP, _FLOOR = 52, 404, 26, 258
_AXIS_HEIGHT = 42
"""Pixels below a plane, for its horizontal axis."""
HEIGHT = _FLOOR + _AXIS_HEIGHT
_MARK_ORDER = ("reference", "organism", "itself", "suspect", "m0")


class PlotPath(NamedTuple):
    """Where one teacher's students went; the last place carries the teacher's sign."""

    label: str
    mark: Mark
    points: list[tuple[float, float]]


def draw_paths(
    lines: Sequence[PlotPath],
    *,
    name: str,
    title: str,
    axes: tuple[str, str],
    description: str,
    arrows: bool,
    ticks: Sequence[float] = (),
    frontier: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Return an SVG of paths in a plane.

    Args:
        drawn: With finite coordinates; at least one path with at least one place.
        name: Unique on the page; used in element ids.
        title: What the figure shows.
        axes: What the horizontal and the vertical axis measure.
        said: What the figure shows, in words.
        arrows: Whether a path ends in an arrow-head beside its sign, to show its direction.
        at: Ticks of the horizontal axis; round numbers where none are given.
        front: Places, among those of the paths, to be joined by a dashed line from left to right.
    """
    places = [place for path in lines for place in path.points]
    parts, x, y = open_plane(
        *zip(*places, strict=True),
        name=name,
        title=title,
        axes=axes,
        description=description,
        ticks=ticks,
    )
    ordered = sorted(lines, key=lambda path: _MARK_ORDER.index(path.mark))
    on_page = [(p, [(x(a), y(b)) for a, b in p.points]) for p in ordered]
    if len(frontier) > 1:
        line = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in sorted(frontier))
        parts.append(f'<path class="front" d="M{line}"/>')
    for path, spots in on_page:
        if len(spots) > 1:
            parts.append(_draw_line(path.mark, spots))
            parts += [_draw_arrow(path.mark, spots)] if arrows else _draw_stops(path.mark, spots)
    parts += [
        draw_glyph(Point(p.label, p.points[-1][1], p.mark), *spots[-1]) for p, spots in on_page
    ]
    return close_svg(parts)


def open_plane(
    across: Sequence[float],
    up: Sequence[float],
    *,
    name: str,
    title: str,
    axes: tuple[str, str],
    description: str,
    ticks: Sequence[float] = (),
    floor: int = _FLOOR,
) -> tuple[list[str], Scale, Scale]:
    """Return the opening of an SVG with two axes, and where on it a value of each lies.

    What lies beyond an axis is put at its end.

    Args:
        across: Finite values that the horizontal axis must hold.
        up: The same of the vertical one.
        name: As in `paths`, as for what follows.
        title: See `name`.
        axes: See `name`.
        said: See `name`.
        at: See `name`.
        floor: Height, in pixels, at which the plane ends.
    """
    x_low, x_high, x_ticks = choose_axis(across)
    if ticks:
        x_low, x_high, x_ticks = min(ticks), max(ticks), list(ticks)
    y_low, y_high, y_ticks = choose_axis(up)

    def x(value: float) -> float:
        inside = min(max(value, x_low), x_high)
        return _LEFT + 8 + (inside - x_low) / (x_high - x_low) * (_RIGHT - _LEFT - 16)

    def y(value: float) -> float:
        inside = min(max(value, y_low), y_high)
        return floor - (inside - y_low) / (y_high - y_low) * (floor - _TOP)

    parts = open_svg(name, title, description, floor + _AXIS_HEIGHT)
    for tick in y_ticks:
        height = f"{y(tick):.1f}"
        parts += [
            f'<line class="row" x1="{_LEFT}" x2="{_RIGHT}" y1="{height}" y2="{height}"/>',
            f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">'
            f"{tick:g}</text>",
        ]
    parts.append(f'<text class="unit" x="4" y="14">{escape(escape_invisible(axes[1]))}</text>')
    parts += draw_x_axis([(tick, f"{tick:g}") for tick in x_ticks], x, floor + 4, axes[0], _LEFT)
    return parts, x, y


def _draw_line(mark: Mark, spots: Sequence[tuple[float, float]]) -> str:
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
    return f'<path class="course {mark}-course" d="M{line}"/>'


def _draw_stops(mark: Mark, spots: Sequence[tuple[float, float]]) -> list[str]:
    if mark != "suspect":
        return []
    return [f'<circle class="stop" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in spots[:-1]]


def _draw_arrow(mark: Mark, spots: Sequence[tuple[float, float]]) -> str:
    """Return an arrow-head that points along the last leg, short of the sign at its end."""
    (a, b), (c, d) = spots[-2:]
    length = math.hypot(c - a, d - b)
    if length < 16:
        return ""
    u, v = (c - a) / length, (d - b) / length
    size = 4.0 if mark == "suspect" else 2.5
    tip, base = (c - 8 * u, d - 8 * v), (c - (8 + 2 * size) * u, d - (8 + 2 * size) * v)
    left, right = (base[0] - size * v, base[1] + size * u), (base[0] + size * v, base[1] - size * u)
    corners = "L".join(f"{p:.1f} {q:.1f}" for p, q in (tip, left, right))
    return f'<path class="head {mark}-head" d="M{corners}z"/>'
