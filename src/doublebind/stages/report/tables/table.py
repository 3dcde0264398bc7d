"""Tables of a page, and what stands for a number that could not be computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from doublebind.schema.evidence import Interval


class Absent(NamedTuple):
    """Stands where a number would; never 0, never NaN."""

    reason: str


Cell = str | int | float | Absent
Row = tuple[Cell, ...]


class Table(NamedTuple):
    """Rows under column heads; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: list[Row]
    note: str = ""
    highlighted: str = ""
    """First cell of the row to be highlighted: the suspect's."""


def find_reason(reasons: Mapping[str, str], name: str) -> Absent:
    """Return why the number `name` is absent; `name` is its path in `verdict.json`."""
    return Absent(reasons.get(name, "no reason was recorded"))


def value_or_absent(value: float | None, name: str, reasons: Mapping[str, str]) -> float | Absent:
    """Return `value`, or why the number `name` is absent."""
    return find_reason(reasons, name) if value is None else value


def format_interval(interval: Interval) -> str:
    """Return a difference with its 95% interval, signs included."""
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def format_fixed(value: float | Absent) -> Cell:
    """Return a number with four decimals, so that a column of them lines up."""
    return value if isinstance(value, Absent) else f"{value:.4f}"
