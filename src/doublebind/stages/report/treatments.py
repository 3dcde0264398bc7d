"""Draws what was decided of students as replacements, by teacher and by recipe.

Knows the rows of `treatments` in `calibration.json`. Decides nothing, and knows no HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from doublebind.stages.report.figures import Drawn, Figure
from doublebind.stages.report.hostile_text import plain, short
from doublebind.stages.report.svg import line_plot as curves
from doublebind.stages.report.svg.dot_plot import WIDTH, closed, head
from doublebind.stages.report.tables.run import Absent, Cell, Table

Row = Mapping[str, Any]

SIGNS = {
    "within_margin": ("w", "within the margin"),
    "not_within_margin": ("n", "not within"),
    "inconclusive": ("?", "inconclusive"),
}
"""Decision -> its letter, and what a figure calls it."""
_FLOOR = 300
"""Height, in pixels, at which the plane of shares ends."""
_NAMES, _LETTER, _CELL = 168, 6, 15
"""Pixels of a matrix: for names of teachers, a letter of a recipe's, and the height of a row."""
_LETTERS = 26
"""Most letters of a name in a matrix."""
_LEGIBLE = 60
"""Most points of a plane whose intervals can be told apart."""


def plane(result: Mapping[str, Any]) -> Drawn:
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
    said = f"{len(placed)} points: {_counted(placed)}."
    if len(placed) > _LEGIBLE:
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
        (short(row["teacher"]), short(row["recipe"]), *_both(row), _named(row)) for row in placed
    ]
    svg = _crosses(placed, title, said)
    return Figure(title, said, svg, Table(f"Data: {title}", columns, data))


def _both(row: Row) -> tuple[str, str]:
    b, c = (
        f"{row[name]['value']:.2f} ({row[name]['low']:.2f} to {row[name]['high']:.2f})"
        for name in ("tau_b", "tau_c")
    )
    return b, c


def _crosses(rows: Sequence[Row], title: str, said: str) -> Markup:
    shares = ([0.0, 1.0, *(row[name]["value"] for row in rows)] for name in ("tau_b", "tau_c"))
    axes = ("tau_B: share of the drive", "tau_C: share of the capability")
    parts, x, y = curves.plane(
        *shares, name="shares", title=title, axes=axes, said=said, floor=_FLOOR
    )
    for row in rows if len(rows) <= _LEGIBLE else ():
        b, c = row["tau_b"], row["tau_c"]
        across, up = x(b["value"]), y(c["value"])
        parts += [
            f'<path class="span {_class(row)}" d="M{x(b["low"]):.1f} {up:.1f}H{x(b["high"]):.1f}'
            f'M{across:.1f} {y(c["low"]):.1f}V{y(c["high"]):.1f}"/>',
        ]
    parts += [_sign(row, x(row["tau_b"]["value"]), y(row["tau_c"]["value"])) for row in rows]
    return closed(parts)


def _sign(row: Row, x: float, y: float) -> str:
    """Return a point: shapes differ, not only colours."""
    said = f"{short(row['recipe'])} on {short(row['teacher'])}: {_named(row)}"
    tip = f"<title>{escape(plain(said))}</title>"
    shape = {
        "within_margin": f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "not_within_margin": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        "inconclusive": f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
    }[row["decision"]]
    return f'<path class="decided {_class(row)}" d="{shape}">{tip}</path>'


def matrix(result: Mapping[str, Any]) -> Drawn:
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
    by_recipe = ", ".join(f"{short(name)} {within[name]}" for name in recipes)
    said = f"{_counted(rows)}. Within the margin, of {len(teachers)} teachers: {by_recipe}."
    wrong = sum(bool(row.get("false_certificate")) for row in rows)
    said += f" Framed: {wrong} within the margin that exceed it on items only the key opens."
    none = Absent("its students were not bounded")
    data: list[tuple[Cell, ...]] = [
        (short(t), *(_named(found[t, r]) if (t, r) in found else none for r in recipes))
        for t in teachers
    ]
    width = (WIDTH - _NAMES - 8) / len(recipes)
    heads = 12 + _LETTER * min(_LETTERS, max(len(plain(name)) for name in recipes))
    parts = head("defeats", title, said, heads + _CELL * len(teachers) + 8)
    for j, name in enumerate(recipes):
        x = _NAMES + (j + 0.5) * width
        parts.append(
            f'<text class="tick" transform="translate({x + 4:.1f} {heads - 6}) rotate(-90)">'
            f"{_cut(name)}</text>"
        )
    for i, teacher in enumerate(teachers):
        y = heads + i * _CELL
        parts.append(
            f'<text class="tick" x="{_NAMES - 6}" y="{y + 11}" text-anchor="end">'
            f"{_cut(teacher.rpartition('/')[2])}</text>"
        )
        for j, name in enumerate(recipes):
            if (teacher, name) in found:
                parts += _square(found[teacher, name], _NAMES + j * width, y, width)
    columns = ("teacher", *(short(name) for name in recipes))
    return Figure(title, said, closed(parts), Table(f"Data: {title}", columns, data))


def _square(row: Row, x: float, y: float, width: float) -> list[str]:
    letter, _ = SIGNS[row["decision"]]
    framed = " framed" if row.get("false_certificate") else ""
    said = f"{short(row['recipe'])} on {short(row['teacher'])}: {_named(row)}"
    return [
        f'<rect class="cell {_class(row)}{framed}" x="{x + 1:.1f}" y="{y + 1}" '
        f'width="{width - 2:.1f}" height="{_CELL - 2}"><title>{escape(plain(said))}</title></rect>',
        f'<text class="letter" x="{x + width / 2:.1f}" y="{y + 11}" text-anchor="middle">'
        f"{letter}</text>",
    ]


def _cut(name: str) -> str:
    said = plain(name)
    # The end of a name tells teachers apart, its beginning is the kind they share.
    return str(escape(said if len(said) <= _LETTERS else f"…{said[1 - _LETTERS :]}"))


def _class(row: Row) -> str:
    return str(row["decision"]).replace("_", "-")


def _named(row: Row) -> str:
    framed = ", exceeds it on oracle items" if row.get("false_certificate") else ""
    return SIGNS[row["decision"]][1] + framed


def _counted(rows: Sequence[Row]) -> str:
    counts = {name: sum(row["decision"] == name for row in rows) for name in SIGNS}
    return ", ".join(f"{counts[name]} {said} ({letter})" for name, (letter, said) in SIGNS.items())
