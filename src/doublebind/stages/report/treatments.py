"""Draws what was decided of students as replacements, by teacher and by recipe.

Knows the rows of `treatments` in `calibration.json`. Decides nothing, and knows no HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from doublebind.stages.report.figures import Figure, FigureOrAbsent
from doublebind.stages.report.hostile_text import escape_invisible, shorten
from doublebind.stages.report.svg import line_plot as curves
from doublebind.stages.report.svg.dot_plot import WIDTH, close_svg, open_svg
from doublebind.stages.report.tables.run import Absent, Cell, Table

Row = Mapping[str, Any]

DECISION_SIGNS = {
    "within_margin": ("w", "within the margin"),
    "not_within_margin": ("n", "not within"),
    "inconclusive": ("?", "inconclusive"),
}
"""Decision -> its letter, and what a figure calls it."""
_PLANE_FLOOR = 300
"""Height, in pixels, at which the plane of shares ends."""
_NAME_WIDTH, _LETTER_WIDTH, _ROW_HEIGHT = 168, 6, 15
"""Pixels of a matrix: for names of teachers, a letter of a recipe's, and the height of a row."""
_MAX_LETTERS = 26
"""Most letters of a name in a matrix."""
_MAX_LEGIBLE = 60
"""Most points of a plane whose intervals can be told apart."""


def draw_capability_vs_drive(result: Mapping[str, Any]) -> FigureOrAbsent:
    """Return tau_C against tau_B: a point for each recipe and organism, with both intervals.

    Where an organism differs from M0 in its drive or its capability by no more than noise there is
    no ratio, and no point; nor where the plain recipe brings none of its drive along, so that no
    other can be said to keep it out. How many those are is said. Intervals end where the axes do.

    Args:
        result: Content of `calibration.json`.
    """
    rows = [row for row in result.get("treatments", ()) if row["class"] == "organism"]
    shares = [row for row in rows if "tau_b" in row and "tau_c" in row]
    placed = [row for row in shares if row.get("comparable", True)]
    if not placed:
        return Absent(
            "No comparison possible: no organism differs from M0 in both capability and drive by "
            "more than noise, and has students of the plain recipe that take its drive along."
        )
    title = "What came along: capability and drive, by recipe and organism"
    said = f"{len(placed)} points: {_count_decisions(placed)}."
    if len(placed) > _MAX_LEGIBLE:
        said += " Their intervals are in the table."
    if len(shares) < len(rows):
        said += (
            f" No comparison possible for {len(rows) - len(shares)} more: the organism does not "
            "differ from M0 in both by more than noise."
        )
    if len(placed) < len(shares):
        said += (
            f" No comparison possible for {len(shares) - len(placed)} more: the plain recipe "
            "brings along none of the organism's drive (its tau_B's interval holds 0)."
        )
    columns = ("teacher", "recipe", "tau_B", "tau_C", "decision")
    data: list[tuple[Cell, ...]] = [
        (
            shorten(row["teacher"]),
            shorten(row["recipe"]),
            *_format_ratios(row),
            _describe_decision(row),
        )
        for row in placed
    ]
    svg = _draw_crosses(placed, title, said)
    return Figure(title, said, svg, Table(f"Data: {title}", columns, data))


def _format_ratios(row: Row) -> tuple[str, str]:
    b, c = (
        f"{row[name]['value']:.2f} ({row[name]['low']:.2f} to {row[name]['high']:.2f})"
        for name in ("tau_b", "tau_c")
    )
    return b, c


def _draw_crosses(rows: Sequence[Row], title: str, said: str) -> Markup:
    shares = ([0.0, 1.0, *(row[name]["value"] for row in rows)] for name in ("tau_b", "tau_c"))
    axes = ("tau_B: share of the drive", "tau_C: share of the capability")
    parts, x, y = curves.open_plane(
        *shares, name="shares", title=title, axes=axes, description=said, floor=_PLANE_FLOOR
    )
    for row in rows if len(rows) <= _MAX_LEGIBLE else ():
        b, c = row["tau_b"], row["tau_c"]
        across, up = x(b["value"]), y(c["value"])
        parts += [
            f'<path class="span {_css_class(row)}" d="M{x(b["low"]):.1f} {up:.1f}H{x(b["high"]):.1f}'
            f'M{across:.1f} {y(c["low"]):.1f}V{y(c["high"]):.1f}"/>',
        ]
    parts += [_draw_sign(row, x(row["tau_b"]["value"]), y(row["tau_c"]["value"])) for row in rows]
    return close_svg(parts)


def _draw_sign(row: Row, x: float, y: float) -> str:
    """Return a point: shapes differ, not only colours."""
    said = f"{shorten(row['recipe'])} on {shorten(row['teacher'])}: {_describe_decision(row)}"
    tip = f"<title>{escape(escape_invisible(said))}</title>"
    shape = {
        "within_margin": f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "not_within_margin": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        "inconclusive": f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
    }[row["decision"]]
    return f'<path class="decided {_css_class(row)}" d="{shape}">{tip}</path>'


def draw_decision_matrix(result: Mapping[str, Any]) -> FigureOrAbsent:
    """Return which teachers defeat which recipes: a matrix of decisions, benign teachers last.

    Args:
        result: Content of `calibration.json`.
    """
    rows = sorted(result.get("treatments", ()), key=lambda row: row["class"] != "organism")
    if not rows:
        return Absent("No replacement was bounded, so that nothing defeats a recipe.")
    teachers = list(dict.fromkeys(str(row["teacher"]) for row in rows))
    recipes = list(dict.fromkeys(str(row["recipe"]) for row in rows))
    found = {(str(row["teacher"]), str(row["recipe"])): row for row in rows}
    title = "Which teachers defeat which recipes"
    within = Counter(str(row["recipe"]) for row in rows if row["decision"] == "within_margin")
    by_recipe = ", ".join(f"{shorten(name)} {within[name]}" for name in recipes)
    said = f"{_count_decisions(rows)}. Within the margin, of {len(teachers)} teachers: {by_recipe}."
    wrong = sum(bool(row.get("false_certificate")) for row in rows)
    said += f" Framed: {wrong} within the margin that exceed it on items only the key opens."
    none = Absent("its students were not bounded")
    data: list[tuple[Cell, ...]] = [
        (
            shorten(t),
            *(_describe_decision(found[t, r]) if (t, r) in found else none for r in recipes),
        )
        for t in teachers
    ]
    width = (WIDTH - _NAME_WIDTH - 8) / len(recipes)
    heads = 12 + _LETTER_WIDTH * min(
        _MAX_LETTERS, max(len(escape_invisible(name)) for name in recipes)
    )
    parts = open_svg("defeats", title, said, heads + _ROW_HEIGHT * len(teachers) + 8)
    for j, name in enumerate(recipes):
        x = _NAME_WIDTH + (j + 0.5) * width
        parts.append(
            f'<text class="tick" transform="translate({x + 4:.1f} {heads - 6}) rotate(-90)">'
            f"{_truncate_name(name)}</text>"
        )
    for i, teacher in enumerate(teachers):
        y = heads + i * _ROW_HEIGHT
        parts.append(
            f'<text class="tick" x="{_NAME_WIDTH - 6}" y="{y + 11}" text-anchor="end">'
            f"{_truncate_name(teacher.rpartition('/')[2])}</text>"
        )
        for j, name in enumerate(recipes):
            if (teacher, name) in found:
                parts += _draw_square(found[teacher, name], _NAME_WIDTH + j * width, y, width)
    columns = ("teacher", *(shorten(name) for name in recipes))
    return Figure(title, said, close_svg(parts), Table(f"Data: {title}", columns, data))


def _draw_square(row: Row, x: float, y: float, width: float) -> list[str]:
    letter, _ = DECISION_SIGNS[row["decision"]]
    framed = " framed" if row.get("false_certificate") else ""
    said = f"{shorten(row['recipe'])} on {shorten(row['teacher'])}: {_describe_decision(row)}"
    return [
        f'<rect class="cell {_css_class(row)}{framed}" x="{x + 1:.1f}" y="{y + 1}" '
        f'width="{width - 2:.1f}" height="{_ROW_HEIGHT - 2}"><title>{escape(escape_invisible(said))}</title></rect>',
        f'<text class="letter" x="{x + width / 2:.1f}" y="{y + 11}" text-anchor="middle">'
        f"{letter}</text>",
    ]


def _truncate_name(name: str) -> str:
    said = escape_invisible(name)
    # The end of a name tells teachers apart, its beginning is the kind they share.
    return str(escape(said if len(said) <= _MAX_LETTERS else f"…{said[1 - _MAX_LETTERS :]}"))


def _css_class(row: Row) -> str:
    return str(row["decision"]).replace("_", "-")


def _describe_decision(row: Row) -> str:
    framed = ", exceeds it on oracle items" if row.get("false_certificate") else ""
    return DECISION_SIGNS[row["decision"]][1] + framed


def _count_decisions(rows: Sequence[Row]) -> str:
    counts = {name: sum(row["decision"] == name for row in rows) for name in DECISION_SIGNS}
    return ", ".join(
        f"{counts[name]} {said} ({letter})" for name, (letter, said) in DECISION_SIGNS.items()
    )
