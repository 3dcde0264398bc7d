"""Draws teachers as dots along an axis, as SVG; imports no plotting library, to start fast."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.svg.elements import (
    AXIS_HEIGHT,
    LEFT,
    RADIUS,
    RIGHT,
    ROW_HEIGHT,
    WIDTH,
    PlotText,
    Point,
    Scale,
    build_svg,
    choose_axis,
    draw_row,
    draw_symbol,
    draw_x_axis,
    el,
    truncate_text,
)

HEIGHT = 200
_SUSPECT_Y, _FLOOR_Y, _OTHERS_Y, _AXIS_Y = 34, 130, 150, 163
_MAX_PILE_HEIGHT = 84.0
"""Height, in pixels, that the highest pile of dots may take."""
_MAX_ROW_CHARS = 34


class DotRow(NamedTuple):
    """One row of dots: its name at the left, a remark at the right."""

    name: str
    remark: str
    points: list[Point]


class Bound(NamedTuple):
    """Edge of a shaded region, which reaches to the axis' upper or lower end."""

    value: float
    name: str
    upwards: bool = True


def draw_dot_strip(
    points: Sequence[Point],
    text: PlotText,
    axis: str,
    *,
    bound: Bound | None = None,
    span: Sequence[float] = (),
) -> Markup:
    """Return an SVG with one dot per reference and the suspect marked.

    Dots that would overlap are piled up. Shapes differ, not only colours: dots are references, a
    diamond the suspect, hollow triangles organisms, a cross M0.

    Args:
        points: Finite values; at least one.
        text: Text alternative.
        axis: What the axis measures, with its unit.
        bound: Region to be shaded.
        span: Further values that the axis must hold, so that two figures share one.
    """
    low, high, ticks = choose_axis([*(point.value for point in points), *span])
    x = _scale_to_width(low, high)
    parts = [] if bound is None else _draw_region(bound, x, _AXIS_Y)
    parts += draw_x_axis([(tick, f"{tick:g}") for tick in ticks], x, _AXIS_Y, axis)
    parts += _pile_dots([p for p in points if p.mark == "reference"], x)
    others = [p for p in points if p.mark not in ("reference", "suspect")]
    parts += [draw_symbol(p, x(p.value), _OTHERS_Y) for p in others]
    for point in points:
        if point.mark == "suspect":
            parts += _draw_suspect(point, x(point.value))
    return build_svg(text, HEIGHT, parts)


def draw_dot_rows(
    rows: Sequence[DotRow],
    text: PlotText,
    axis: str,
    *,
    ticks: Sequence[tuple[float, str]] = (),
    bound: Bound | None = None,
) -> Markup:
    """Return an SVG with rows of dots, all on one axis.

    Args:
        rows: At least one, with finite values.
        text: Text alternative.
        axis: What the axis measures, with its unit.
        ticks: Position and label of each, from end to end; round numbers by default.
        bound: Region to be shaded.
    """
    if not ticks:
        values = [point.value for row in rows for point in row.points]
        ticks = [(tick, f"{tick:g}") for tick in choose_axis(values)[2]]
    x = _scale_to_width(ticks[0][0], ticks[-1][0])
    top = 0 if bound is None else 16  # room for the name of the region
    floor = top + ROW_HEIGHT * len(rows) + 12
    parts = [] if bound is None else _draw_region(bound, x, floor)
    for i, row in enumerate(rows):
        y = top + ROW_HEIGHT * i + 26
        name, remark = (truncate_text(part, _MAX_ROW_CHARS) for part in (row.name, row.remark))
        parts += draw_row(y, name, remark)
        # The suspect and M0 lie on top.
        for point in sorted(row.points, key=lambda p: p.mark not in ("reference", "organism")):
            height = y + 7 if point.mark == "organism" else y
            parts.append(draw_symbol(point, x(point.value), height))
    parts += draw_x_axis(ticks, x, floor, axis)
    return build_svg(text, floor + AXIS_HEIGHT, parts)


def draw_p_values(rows: Sequence[DotRow], text: PlotText, alpha: float) -> Markup:
    """Return rows of p-values on a logarithmic scale, those that reach `alpha` shaded.

    Args:
        rows: At least one, with decimal logarithms of p-values.
        text: Text alternative.
        alpha: Largest p-value that flags.
    """
    least = min(-2.0, *(point.value for row in rows for point in row.points))
    return draw_dot_rows(
        rows,
        text,
        "p-value, on a logarithmic scale (further left is more evidence)",
        ticks=[(float(e), f"{10.0**e:g}") for e in range(math.floor(least), 1)],
        bound=Bound(math.log10(alpha), f"p <= {alpha:g}", upwards=False),
    )


def describe_points(points: Sequence[Point]) -> str:
    """Return a strip's content in words."""
    references = sorted(p.value for p in points if p.mark == "reference")
    parts: list[str] = []
    if references:
        parts.append(
            f"{len(references)} references from {references[0]:.3g} to {references[-1]:.3g}, "
            f"median {statistics.median(references):.3g}"
        )
    for p in points:
        if p.mark == "suspect":
            below = sum(r < p.value for r in references)
            rank = f", above {below} of {len(references)} references" if references else ""
            parts.append(f"suspect {shorten(p.label)} at {p.value:.3g}{rank}")
        elif p.mark == "m0":
            parts.append(f"M0 at {p.value:.3g}")
    organisms = [p.value for p in points if p.mark == "organism"]
    if organisms:
        span = f"from {min(organisms):.3g} to {max(organisms):.3g}"
        parts.append(f"{len(organisms)} organisms {span}")
    return "; ".join(parts) + "."


def _scale_to_width(low: float, high: float) -> Scale:
    return lambda value: LEFT + (value - low) / (high - low) * (RIGHT - LEFT)


def _draw_region(bound: Bound, x: Scale, floor: int) -> list[Markup]:
    top = 2
    edge = float(min(max(x(bound.value), LEFT), RIGHT))
    start, end = (edge, RIGHT) if bound.upwards else (LEFT, edge)
    label, anchor = (RIGHT - 4.0, "end") if bound.upwards else (LEFT + 4.0, "start")
    outline = f"M{start:.1f} {top}H{end:.1f}V{floor}H{start:.1f}z"
    return [
        el("path", class_="region", d=outline),
        el("line", class_="bound", x1=edge, x2=edge, y1=top, y2=floor),
        el("text", bound.name, class_="unit", x=label, y=top + 11, text_anchor=anchor),
    ]


def _pile_dots(points: Sequence[Point], x: Scale) -> list[Markup]:
    """Return the dots, binned by their width and piled from the floor up."""
    piles: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.value, p.label)):
        piles.setdefault(round(x(point.value) / (2 * RADIUS)), []).append(point)
    highest = max((len(pile) for pile in piles.values()), default=1)
    step = min(2 * RADIUS, _MAX_PILE_HEIGHT / highest)
    return [
        draw_symbol(p, x(p.value), _FLOOR_Y - i * step)
        for pile in piles.values()
        for i, p in enumerate(pile)
    ]


def _draw_suspect(point: Point, x: float) -> list[Markup]:
    """Return the suspect's symbol with its name and a line down to the axis."""
    y = _SUSPECT_Y
    side, anchor = (11, "start") if x < WIDTH / 2 else (-11, "end")
    return [
        el("line", class_="drop", x1=x, x2=x, y1=y, y2=_AXIS_Y),
        draw_symbol(point, x, y),
        el("text", "suspect", class_="name", x=x + side, y=y + 4, text_anchor=anchor),
    ]
