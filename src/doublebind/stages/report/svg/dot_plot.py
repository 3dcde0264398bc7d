"""Draws teachers as dots on an axis, as SVG with a text alternative that says what is to be seen.

Knows points and axes. Does not know scores, tests or decisions, and imports no plotting library:
a cached run must not wait for one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from doublebind.stages.report.hostile_text import escape_invisible, shorten

Mark = Literal["suspect", "reference", "organism", "m0", "itself"]
"""What a sign stands for; `itself` is the suspect, asked directly."""

WIDTH, HEIGHT = 420, 200
_LEFT, _RIGHT = 16, 404
_SUSPECT_Y, _FLOOR_Y, _OTHERS_Y, _AXIS_Y = 34, 130, 150, 163
_RADIUS = 3.6
_MAX_PILE_HEIGHT = 84.0
"""Height, in pixels, that the highest pile of dots may take."""
ROW_HEIGHT = 34
"""Height, in pixels, of a row."""


class Point(NamedTuple):
    """One teacher in a figure."""

    label: str
    value: float
    mark: Mark


class DotRow(NamedTuple):
    """One row of dots: its name at the left, a remark at the right."""

    name: str
    remark: str
    points: list[Point]


class Bound(NamedTuple):
    """Where a region that means something begins; it reaches to the axis' upper or lower end."""

    value: float
    name: str
    upwards: bool = True


Scale = Callable[[float], float]


def draw_dot_strip(
    points: Sequence[Point],
    *,
    name: str,
    title: str,
    axis: str,
    bound: Bound | None = None,
    span: Sequence[float] = (),
) -> Markup:
    """Return an SVG with one dot per reference and the suspect marked.

    Dots that would overlap are piled up. Shapes differ, not only colours: dots are references, a
    diamond the suspect, hollow triangles organisms, a cross M0.

    Args:
        points: Finite values; at least one.
        name: Unique on the page; used in element ids.
        title: What the figure shows.
        axis: What the axis measures, with its unit.
        bound: Region to be shaded.
        span: Values that the axis must hold besides, so that two figures share one.
    """
    low, high, ticks = choose_axis([*(point.value for point in points), *span])

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT)

    parts = open_svg(name, title, describe_points(points), HEIGHT)
    parts += [] if bound is None else _draw_region(bound, x, 2, _AXIS_Y)
    parts += draw_x_axis([(tick, f"{tick:g}") for tick in ticks], x, _AXIS_Y, axis)
    parts += _pile_dots([p for p in points if p.mark == "reference"], x)
    others = [p for p in points if p.mark != "reference"]
    parts += [draw_glyph(p, x(p.value), _OTHERS_Y) for p in others if p.mark != "suspect"]
    parts += [_draw_suspect(p, x(p.value)) for p in others if p.mark == "suspect"]
    return close_svg(parts)


def draw_dot_rows(
    lines: Sequence[DotRow],
    *,
    name: str,
    title: str,
    axis: str,
    description: str,
    ticks: Sequence[tuple[float, str]] = (),
    bound: Bound | None = None,
) -> Markup:
    """Return an SVG with one row of dots per line, all on one axis.

    Args:
        lines: At least one, with finite values.
        name: As in `strip`.
        title: As in `strip`.
        axis: As in `strip`.
        said: What the figure shows, in words.
        ticks: Position and text of each, from end to end; round numbers where none are given.
        bound: As in `strip`.
    """
    marks = ticks or [
        (tick, f"{tick:g}")
        for tick in choose_axis([p.value for line in lines for p in line.points])[2]
    ]
    low, high = marks[0][0], marks[-1][0]
    top = 0 if bound is None else 16  # room for what the region is called
    floor = top + ROW_HEIGHT * len(lines) + 12

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_RIGHT - _LEFT)

    parts = open_svg(name, title, description, floor + 38)
    parts += [] if bound is None else _draw_region(bound, x, 2, floor)
    for i, line in enumerate(lines):
        y = top + ROW_HEIGHT * i + 26
        parts += [
            f'<line class="row" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>',
            f'<text class="label" x="{_LEFT}" y="{y - 9}">{_truncate_text(line.name, 34)}</text>',
            f'<text class="unit" x="{_RIGHT}" y="{y - 9}" text-anchor="end">'
            f"{_truncate_text(line.remark, 34)}</text>",
        ]
        order = sorted(line.points, key=lambda p: ("reference", "organism").count(p.mark) == 0)
        parts += [draw_glyph(p, x(p.value), y + 7 * (p.mark == "organism")) for p in order]
    return close_svg([*parts, *draw_x_axis(marks, x, floor, axis)])


def draw_p_values(
    lines: Sequence[DotRow], *, name: str, title: str, description: str, alpha: float
) -> Markup:
    """Return `rows` of p-values on a logarithmic scale, those that reach `alpha` shaded.

    Args:
        lines: At least one, with decimal logarithms of p-values.
        name: As in `strip`.
        title: As in `strip`.
        said: As in `rows`.
        alpha: Largest p-value that flags.
    """
    least = min(-2.0, *(point.value for line in lines for point in line.points))
    return draw_dot_rows(
        lines,
        name=name,
        title=title,
        axis="p-value, on a logarithmic scale (further left is more evidence)",
        description=description,
        ticks=[(float(e), f"{10.0**e:g}") for e in range(math.floor(least), 1)],
        bound=Bound(math.log10(alpha), f"p <= {alpha:g}", upwards=False),
    )


def describe_points(points: Sequence[Point]) -> str:
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
            said.append(f"suspect {shorten(p.label)} at {p.value:.3g}{rank}")
        elif p.mark == "m0":
            said.append(f"M0 at {p.value:.3g}")
    organisms = [p.value for p in points if p.mark == "organism"]
    if organisms:
        span = f"from {min(organisms):.3g} to {max(organisms):.3g}"
        said.append(f"{len(organisms)} organisms {span}")
    return "; ".join(said) + "."


# --- pieces that other figures use ---------------------------------------------------------------


def open_svg(name: str, title: str, description: str, height: float) -> list[str]:
    """Return the opening of an SVG with its title and description; all text is escaped."""
    return [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(escape_invisible(title))}</title>',
        f'<desc id="{name}-desc">{escape(escape_invisible(description))}</desc>',
        # Title, description and data table speak; eighty dots read one by one would not.
        '<g aria-hidden="true">',
    ]


def close_svg(parts: Sequence[str]) -> Markup:
    """Return a finished SVG; every piece of text in `parts` went through `escape`."""
    return Markup("".join([*parts, "</g></svg>"]))


def draw_x_axis(
    ticks: Sequence[tuple[float, str]], x: Scale, y: float, name: str, left: float = _LEFT
) -> list[str]:
    """Return a horizontal axis at height `y` with its ticks and its name."""
    parts = [f'<line class="axis" x1="{left:g}" x2="{_RIGHT}" y1="{y:g}" y2="{y:g}"/>']
    for value, said in ticks:
        at, below = f"{x(value):.1f}", f"{y + 16:g}"
        parts += [
            f'<line class="axis" x1="{at}" x2="{at}" y1="{y:g}" y2="{y + 4:g}"/>',
            f'<text class="tick" x="{at}" y="{below}" text-anchor="middle">{escape(said)}</text>',
        ]
    parts.append(
        f'<text class="unit" x="{(left + _RIGHT) / 2:g}" y="{y + 32:g}" text-anchor="middle">'
        f"{escape(escape_invisible(name))}</text>"
    )
    return parts


def draw_glyph(point: Point, x: float, y: float) -> str:
    """Return the sign of a teacher at a place, named where the pointer rests."""
    tip = f"<title>{escape(escape_invisible(shorten(point.label)))}: {point.value:.4g}</title>"
    if point.mark == "reference":
        return f'<circle class="reference" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}">{tip}</circle>'
    diamond = f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"
    path = {
        "organism": f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
        "m0": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
        "suspect": diamond,
        "itself": diamond,
    }[point.mark]
    return f'<path class="{point.mark}" d="{path}">{tip}</path>'


def choose_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
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


def _truncate_text(text: str, limit: int) -> str:
    said = escape_invisible(text)
    return str(escape(said if len(said) <= limit else f"{said[: limit - 1]}…"))


def _draw_region(bound: Bound, x: Scale, top: float, floor: float) -> list[str]:
    at = min(max(x(bound.value), _LEFT), _RIGHT)
    start, end = (at, _RIGHT) if bound.upwards else (_LEFT, at)
    edge, anchor = (_RIGHT - 4, "end") if bound.upwards else (_LEFT + 4, "start")
    return [
        f'<path class="region" d="M{start:.1f} {top:g}H{end:.1f}V{floor:g}H{start:.1f}z"/>',
        f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{top:g}" y2="{floor:g}"/>',
        f'<text class="unit" x="{edge:.1f}" y="{top + 11:g}" text-anchor="{anchor}">'
        f"{escape(escape_invisible(bound.name))}</text>",
    ]


def _pile_dots(points: Sequence[Point], x: Scale) -> list[str]:
    """Return the dots, binned by their width and piled from the floor up."""
    piles: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.value, p.label)):
        piles.setdefault(round(x(point.value) / (2 * _RADIUS)), []).append(point)
    highest = max((len(pile) for pile in piles.values()), default=1)
    step = min(2 * _RADIUS, _MAX_PILE_HEIGHT / highest)
    return [
        draw_glyph(p, x(p.value), _FLOOR_Y - i * step)
        for pile in piles.values()
        for i, p in enumerate(pile)
    ]


def _draw_suspect(point: Point, x: float) -> str:
    """Return the suspect's sign with its name and a line down to the axis."""
    y = _SUSPECT_Y
    side, anchor = (11, "start") if x < WIDTH / 2 else (-11, "end")
    return (
        f'<line class="drop" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{_AXIS_Y}"/>'
        f"{draw_glyph(point, x, y)}"
        f'<text class="name" x="{x + side:.1f}" y="{y + 4}" text-anchor="{anchor}">suspect</text>'
    )
