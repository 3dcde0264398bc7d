"""Draws strips of dots as SVG, each with a text alternative that says what is to be seen.

Knows points and axes. Does not know scores, tests or decisions, and imports no plotting library:
a cached run must not wait for one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from doublebind.report.text import plain, short

Mark = Literal["suspect", "reference", "organism", "m0"]

WIDTH, HEIGHT = 360, 172
_LEFT, _RIGHT = 16, 344
_SUSPECT_Y, _FLOOR_Y, _OTHERS_Y, _AXIS_Y = 16, 108, 126, 138
_RADIUS = 3.2
_PILE = 80.0
"""Height, in pixels, that the highest pile of dots may take."""


class Point(NamedTuple):
    """One teacher on a strip."""

    label: str
    value: float
    mark: Mark


def strip(points: Sequence[Point], *, name: str, title: str, axis: str) -> Markup:
    """Return an SVG with one dot per reference and the suspect marked.

    Dots that would overlap are piled up. Shapes differ, not only colours: dots are references, a
    diamond the suspect, hollow triangles organisms, a cross M0.

    Args:
        points: Finite values; at least one.
        name: Unique on the page; used in element ids.
        title: What the figure shows.
        axis: What the axis measures, with its unit.
    """
    low, high, ticks = _axis([point.value for point in points])

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT)

    parts = [
        f'<svg class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(plain(title))}</title>',
        f'<desc id="{name}-desc">{escape(plain(describe(points)))}</desc>',
        f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_AXIS_Y}" y2="{_AXIS_Y}"/>',
    ]
    for tick in ticks:
        at = f"{x(tick):.1f}"
        parts += [
            f'<line class="axis" x1="{at}" x2="{at}" y1="{_AXIS_Y}" y2="{_AXIS_Y + 4}"/>',
            f'<text x="{at}" y="{_AXIS_Y + 15}" text-anchor="middle">{tick:g}</text>',
        ]
    middle = (_LEFT + _RIGHT) / 2
    parts.append(
        f'<text class="unit" x="{middle:g}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(plain(axis))}</text>"
    )
    parts += _piled([p for p in points if p.mark == "reference"], x)
    parts += [_glyph(p, x(p.value)) for p in points if p.mark != "reference"]
    # Every piece of text above and in the helpers went through `escape`.
    return Markup("".join([*parts, "</svg>"]))


def describe(points: Sequence[Point]) -> str:
    """Return in words what a strip shows."""
    references = sorted(p.value for p in points if p.mark == "reference")
    said: list[str] = []
    if references:
        said.append(
            f"{len(references)} references from {references[0]:.3g} to {references[-1]:.3g}, "
            f"median {statistics.median(references):.3g}"
        )
    for p in points:
        if p.mark == "suspect":
            below = sum(r < p.value for r in references)
            rank = f", above {below} of {len(references)} references" if references else ""
            said.append(f"suspect {short(p.label)} at {p.value:.3g}{rank}")
        elif p.mark == "m0":
            said.append(f"M0 at {p.value:.3g}")
    organisms = [p.value for p in points if p.mark == "organism"]
    if organisms:
        span = f"from {min(organisms):.3g} to {max(organisms):.3g}"
        said.append(f"{len(organisms)} organisms {span}")
    return "; ".join(said) + "."


def _piled(points: Sequence[Point], x: Callable[[float], float]) -> list[str]:
    """Return the dots, binned by their width and piled from the floor up."""
    piles: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.value, p.label)):
        piles.setdefault(round(x(point.value) / (2 * _RADIUS)), []).append(point)
    highest = max((len(pile) for pile in piles.values()), default=1)
    step = min(2 * _RADIUS, _PILE / highest)
    return [
        f'<circle class="reference" cx="{x(p.value):.1f}" cy="{_FLOOR_Y - i * step:.1f}" '
        f'r="{_RADIUS}">{_tip(p)}</circle>'
        for pile in piles.values()
        for i, p in enumerate(pile)
    ]


def _glyph(point: Point, x: float) -> str:
    y = _OTHERS_Y
    if point.mark == "organism":
        path = f"M{x:.1f} {y - 5}l5 9h-10z"
        return f'<path class="organism" d="{path}">{_tip(point)}</path>'
    if point.mark == "m0":
        path = f"M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8"
        return f'<path class="m0" d="{path}">{_tip(point)}</path>'
    y = _SUSPECT_Y
    side, anchor = (9, "start") if x < WIDTH / 2 else (-9, "end")
    return (
        f'<line class="drop" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{_AXIS_Y}"/>'
        f'<path class="suspect" d="M{x:.1f} {y - 7}l7 7l-7 7l-7 -7z">{_tip(point)}</path>'
        f'<text class="name" x="{x + side:.1f}" y="{y + 4}" text-anchor="{anchor}">suspect</text>'
    )


def _tip(point: Point) -> str:
    """Return the text that hovering over a glyph shows."""
    return f"<title>{escape(plain(short(point.label)))}: {point.value:.4g}</title>"


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of an axis around `values`, and round ticks from end to end."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks
