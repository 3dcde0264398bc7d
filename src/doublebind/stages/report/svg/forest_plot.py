"""Draws rates with their intervals, one row each, on one axis from 0 to 1, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from doublebind.stages.report.svg.elements import (
    AXIS_HEIGHT,
    LEFT,
    RIGHT,
    ROW_HEIGHT,
    PlotText,
    build_svg,
    draw_row,
    draw_x_axis,
    el,
)


class Rate(NamedTuple):
    """A share with its interval, in [0, 1]."""

    name: str
    remark: str
    value: float
    low: float
    high: float


def draw_forest(rates: Sequence[Rate], text: PlotText, axis: str) -> Markup:
    """Return an SVG with one row per rate: a dot for the share, a line for its interval.

    Args:
        rates: At least one.
        text: Text alternative.
        axis: What the axis measures.
    """

    def x(value: float) -> float:
        return LEFT + value * (RIGHT - LEFT)

    parts: list[Markup] = []
    for i, rate in enumerate(rates):
        y = ROW_HEIGHT * i + 26
        parts += draw_row(y, rate.name, rate.remark)
        parts.append(el("line", class_="whisker", x1=x(rate.low), x2=x(rate.high), y1=y, y2=y))
        parts.append(el("circle", class_="rate", cx=x(rate.value), cy=y, r=4))
    floor = ROW_HEIGHT * len(rates) + 12
    parts += draw_x_axis([(i / 4, f"{i / 4:g}") for i in range(5)], x, floor, axis)
    return build_svg(text, floor + AXIS_HEIGHT, parts)
