"""Builds SVG elements, and the frame, axes and teacher symbols that all plots share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from doublebind.stages.report.hostile_text import escape_invisible, shorten

Mark = Literal["suspect", "reference", "organism", "m0", "itself"]
"""Kind of a symbol; `itself` is the suspect under the direct audit."""

Scale = Callable[[float], float]
"""Maps a value to pixels."""

WIDTH = 420
LEFT, RIGHT = 16, 404
ROW_HEIGHT = 34
"""Height, in pixels, of a labelled row."""
AXIS_HEIGHT = 38
"""Pixels below a plot for its horizontal axis."""
RADIUS = 3.6


class PlotText(NamedTuple):
    """The text alternative of a plot."""

    name: str
    """Unique on the page: a prefix of element ids."""
    title: str
    description: str
    """What the plot shows, in words."""


class Point(NamedTuple):
    """One teacher in a plot."""

    label: str
    value: float
    mark: Mark


def el(tag: str, *children: str, **attributes: str | float) -> Markup:
    """Return an SVG element; text is escaped, and its invisible characters are written out.

    Args:
        tag: Name of the element.
        children: Markup goes in as it is; any other string is text.
        attributes: `class_` stands for `class`, and `text_anchor` for `text-anchor`. Floats are
            written with one decimal.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        content = f"{value:.1f}" if isinstance(value, float) else escape(value)
        parts.append(f' {name.rstrip("_").replace("_", "-")}="{content}"')
    if not children:
        return Markup("".join([*parts, "/>"]))
    inside = [c if isinstance(c, Markup) else escape(escape_invisible(c)) for c in children]
    return Markup("".join([*parts, ">", *inside, f"</{tag}>"]))


def build_svg(text: PlotText, height: int, parts: Sequence[Markup]) -> Markup:
    """Return a plot with its text alternative."""
    title, description = f"{text.name}-title", f"{text.name}-desc"
    return el(
        "svg",
        el("title", text.title, id=title),
        el("desc", text.description, id=description),
        # A screen reader gets title, description and data table; eighty dots would only add noise.
        el("g", *parts, aria_hidden="true"),
        class_="plot",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{title} {description}",
    )


def draw_x_axis(
    ticks: Sequence[tuple[float, str]], x: Scale, y: int, name: str, left: int = LEFT
) -> list[Markup]:
    """Return a horizontal axis at height `y` with its ticks and its name."""
    parts = [el("line", class_="axis", x1=left, x2=RIGHT, y1=y, y2=y)]
    for value, label in ticks:
        place = x(value)
        parts += [
            el("line", class_="axis", x1=place, x2=place, y1=y, y2=y + 4),
            el("text", label, class_="tick", x=place, y=y + 16, text_anchor="middle"),
        ]
    middle = (left + RIGHT) // 2
    return [*parts, el("text", name, class_="unit", x=middle, y=y + 32, text_anchor="middle")]


def draw_row(y: int, name: str, remark: str) -> list[Markup]:
    """Return the line of a row at height `y`, its name above it at the left, a remark right."""
    return [
        el("line", class_="row", x1=LEFT, x2=RIGHT, y1=y, y2=y),
        el("text", name, class_="label", x=LEFT, y=y - 9),
        el("text", remark, class_="unit", x=RIGHT, y=y - 9, text_anchor="end"),
    ]


def draw_symbol(point: Point, x: float, y: float) -> Markup:
    """Return the symbol of a teacher, with its label and value as a tooltip."""
    tip = el("title", f"{shorten(point.label)}: {point.value:.4g}")
    diamond = f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"
    match point.mark:
        case "reference":
            return el("circle", tip, class_="reference", cx=float(x), cy=float(y), r=RADIUS)
        case "organism":
            path = f"M{x:.1f} {y - 5:.1f}l5 9h-10z"
        case "m0":
            path = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        case "suspect" | "itself":
            path = diamond
    return el("path", tip, class_=point.mark, d=path)


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


def truncate_text(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, counted with invisible ones written out."""
    visible = escape_invisible(text)
    return visible if len(visible) <= limit else f"{visible[: limit - 1]}…"
