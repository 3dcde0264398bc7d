"""Draws rates as dots between whiskers, one row each, on one axis from 0 to 1.

Knows rates and their intervals. Does not know teachers or audits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from doublebind.stages.report.hostile_text import escape_invisible
from doublebind.stages.report.svg.dot_plot import ROW_HEIGHT, close_svg, draw_x_axis, open_svg

_LEFT, _RIGHT = 16, 404
_TICKS = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]


class Rate(NamedTuple):
    """A share with its interval, in [0, 1]."""

    name: str
    remark: str
    value: float
    low: float
    high: float


def draw_forest(
    rates: Sequence[Rate], *, name: str, title: str, axis: str, description: str
) -> Markup:
    """Return an SVG with one row per rate: a dot for the share, a line for its interval.

    Args:
        rates: At least one.
        name: Unique on the page; used in element ids.
        title: What the figure shows.
        axis: What the axis measures.
        said: What the figure shows, in words.
    """
    floor = ROW_HEIGHT * len(rates) + 12

    def x(value: float) -> float:
        return _LEFT + value * (_RIGHT - _LEFT)

    parts = open_svg(name, title, description, floor + 38)
    for i, rate in enumerate(rates):
        y = ROW_HEIGHT * i + 26
        parts += [
            f'<line class="row" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>',
            f'<text class="label" x="{_LEFT}" y="{y - 9}">{escape(escape_invisible(rate.name))}</text>',
            f'<text class="unit" x="{_RIGHT}" y="{y - 9}" text-anchor="end">'
            f"{escape(escape_invisible(rate.remark))}</text>",
            f'<line class="whisker" x1="{x(rate.low):.1f}" x2="{x(rate.high):.1f}" '
            f'y1="{y}" y2="{y}"/>',
            f'<circle class="rate" cx="{x(rate.value):.1f}" cy="{y}" r="4"/>',
        ]
    return close_svg([*parts, *draw_x_axis(_TICKS, x, floor, axis)])
