"""Figures of the replacement decisions of a calibration, by teacher and by recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from doublebind.stages.report.figures import FigureOrAbsent, build_figure
from doublebind.stages.report.hostile_text import escape_invisible, shorten
from doublebind.stages.report.svg.elements import WIDTH, PlotText, build_svg, el
from doublebind.stages.report.svg.line_plot import draw_plane
from doublebind.stages.report.tables.table import Absent, Cell, Row

Decision = Mapping[str, Any]
"""An entry of `treatments` in `calibration.json`: what was decided of one teacher's students."""

DECISION_LABELS = {
    "within_margin": ("w", "within the margin"),
    "not_within_margin": ("n", "not within"),
    "inconclusive": ("?", "inconclusive"),
}
"""Decision -> its letter and its name in a figure."""
_PLANE_FLOOR = 300
"""Height, in pixels, at which the plane of shares ends."""
_NAME_WIDTH, _LETTER_WIDTH, _ROW_HEIGHT = 168, 6, 15
"""Pixels of a matrix: for names of teachers, a letter of a recipe's, and the height of a row."""
_MAX_LETTERS = 26
"""Most letters of a name in a matrix."""
_MAX_LEGIBLE = 60
"""Most points of a plane whose intervals can be told apart."""


# --- capability against drive --------------------------------------------------------------------


def draw_capability_vs_drive(decisions: Sequence[Decision]) -> FigureOrAbsent:
    """Return tau_C against tau_B: a point for each recipe and organism, with both intervals.

    An organism has no point where it differs from M0 in its drive or its capability by no more
    than noise, since it then has no ratio; nor where the plain recipe transfers none of its drive,
    since no other recipe can then be said to keep it out. The description counts both. Intervals
    end where the axes do.

    Args:
        decisions: `treatments` of `calibration.json`.
    """
    rows = [row for row in decisions if row["class"] == "organism"]
    measured = [row for row in rows if "tau_b" in row and "tau_c" in row]
    compared = [row for row in measured if row.get("comparable", True)]
    if not compared:
        return Absent(
            "No comparison possible: no organism differs from M0 in both capability and drive by "
            "more than noise, and has students of the plain recipe that take its drive along."
        )
    text = PlotText(
        "shares",
        "What came along: capability and drive, by recipe and organism",
        _describe_shares(len(rows), len(measured), compared),
    )
    data: list[Row] = [
        (
            shorten(row["teacher"]),
            shorten(row["recipe"]),
            _format_ratio(row["tau_b"]),
            _format_ratio(row["tau_c"]),
            _name_decision(row),
        )
        for row in compared
    ]
    columns = ("teacher", "recipe", "tau_B", "tau_C", "decision")
    return build_figure(text, _draw_shares(compared, text), columns, data)


def _describe_shares(n_rows: int, n_measured: int, compared: Sequence[Decision]) -> str:
    description = f"{len(compared)} points: {_count_decisions(compared)}."
    if len(compared) > _MAX_LEGIBLE:
        description += " Their intervals are in the table."
    if n_measured < n_rows:
        description += (
            f" No comparison possible for {n_rows - n_measured} more: the organism does not "
            "differ from M0 in both by more than noise."
        )
    if len(compared) < n_measured:
        description += (
            f" No comparison possible for {n_measured - len(compared)} more: the plain recipe "
            "brings along none of the organism's drive (its tau_B's interval holds 0)."
        )
    return description


def _format_ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _draw_shares(rows: Sequence[Decision], text: PlotText) -> Markup:
    drive, capability = ([0.0, 1.0, *(row[n]["value"] for row in rows)] for n in ("tau_b", "tau_c"))
    axes = ("tau_B: share of the drive", "tau_C: share of the capability")
    plane = draw_plane(drive, capability, axes, floor=_PLANE_FLOOR)
    intervals: list[Markup] = []
    points: list[Markup] = []
    for row in rows:
        b, c = row["tau_b"], row["tau_c"]
        x, y = plane.x(b["value"]), plane.y(c["value"])
        cross = (
            f"M{plane.x(b['low']):.1f} {y:.1f}H{plane.x(b['high']):.1f}"
            f"M{x:.1f} {plane.y(c['low']):.1f}V{plane.y(c['high']):.1f}"
        )
        if len(rows) <= _MAX_LEGIBLE:
            intervals.append(el("path", class_=f"span {_css_class(row)}", d=cross))
        points.append(_draw_point(row, x, y))
    return build_svg(text, plane.height, [*plane.parts, *intervals, *points])


def _draw_point(row: Decision, x: float, y: float) -> Markup:
    """Return a point: shapes differ, not only colours."""
    shape = {
        "within_margin": f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "not_within_margin": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        "inconclusive": f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
    }[row["decision"]]
    return el("path", _build_tooltip(row), class_=f"decided {_css_class(row)}", d=shape)


# --- the matrix ----------------------------------------------------------------------------------


def draw_decision_matrix(decisions: Sequence[Decision]) -> FigureOrAbsent:
    """Return which teachers defeat which recipes: a matrix of decisions, benign teachers last.

    Args:
        decisions: `treatments` of `calibration.json`.
    """
    if not decisions:
        return Absent("No replacement was bounded, so that nothing defeats a recipe.")
    rows = sorted(decisions, key=lambda row: row["class"] != "organism")
    cells = {(str(row["teacher"]), str(row["recipe"])): row for row in rows}
    teachers = list(dict.fromkeys(teacher for teacher, _ in cells))
    recipes = list(dict.fromkeys(recipe for _, recipe in cells))
    within = Counter(str(row["recipe"]) for row in rows if row["decision"] == "within_margin")
    by_recipe = ", ".join(f"{shorten(name)} {within[name]}" for name in recipes)
    wrong = sum(bool(row.get("false_certificate")) for row in rows)
    text = PlotText(
        "defeats",
        "Which teachers defeat which recipes",
        f"{_count_decisions(rows)}. Within the margin, of {len(teachers)} teachers: {by_recipe}. "
        f"Framed: {wrong} within the margin that exceed it on items only the key opens.",
    )

    def cell(teacher: str, recipe: str) -> Cell:
        row = cells.get((teacher, recipe))
        return _name_decision(row) if row else Absent("its students were not bounded")

    data: list[Row] = [(shorten(t), *(cell(t, r) for r in recipes)) for t in teachers]
    columns = ("teacher", *map(shorten, recipes))
    return build_figure(text, _draw_matrix(text, teachers, recipes, cells), columns, data)


def _draw_matrix(
    text: PlotText,
    teachers: Sequence[str],
    recipes: Sequence[str],
    cells: Mapping[tuple[str, str], Decision],
) -> Markup:
    width = (WIDTH - _NAME_WIDTH - 8) / len(recipes)
    longest = max(len(escape_invisible(name)) for name in recipes)
    head = 12 + _LETTER_WIDTH * min(_MAX_LETTERS, longest)
    parts: list[Markup] = []
    for j, recipe in enumerate(recipes):
        x = _NAME_WIDTH + (j + 0.5) * width
        turned = f"translate({x + 4:.1f} {head - 6}) rotate(-90)"
        parts.append(el("text", _truncate_name(recipe), class_="tick", transform=turned))
    for i, teacher in enumerate(teachers):
        y = head + i * _ROW_HEIGHT
        name = _truncate_name(teacher.rpartition("/")[2])
        parts.append(
            el("text", name, class_="tick", x=_NAME_WIDTH - 6, y=y + 11, text_anchor="end")
        )
        for j, recipe in enumerate(recipes):
            if row := cells.get((teacher, recipe)):
                parts += _draw_cell(row, _NAME_WIDTH + j * width, y, width)
    return build_svg(text, head + _ROW_HEIGHT * len(teachers) + 8, parts)


def _draw_cell(row: Decision, x: float, y: int, width: float) -> list[Markup]:
    letter, _ = DECISION_LABELS[row["decision"]]
    framed = " framed" if row.get("false_certificate") else ""
    return [
        el(
            "rect",
            _build_tooltip(row),
            class_=f"cell {_css_class(row)}{framed}",
            x=x + 1,
            y=y + 1,
            width=width - 2,
            height=_ROW_HEIGHT - 2,
        ),
        el("text", letter, class_="letter", x=x + width / 2, y=y + 11, text_anchor="middle"),
    ]


# --- words of a decision -------------------------------------------------------------------------


def _truncate_name(name: str) -> str:
    visible = escape_invisible(name)
    # The end of a name tells teachers apart, its beginning is the kind they share.
    return visible if len(visible) <= _MAX_LETTERS else f"…{visible[1 - _MAX_LETTERS :]}"


def _css_class(row: Decision) -> str:
    return str(row["decision"]).replace("_", "-")


def _build_tooltip(row: Decision) -> Markup:
    recipe, teacher = shorten(row["recipe"]), shorten(row["teacher"])
    return el("title", f"{recipe} on {teacher}: {_name_decision(row)}")


def _name_decision(row: Decision) -> str:
    framed = ", exceeds it on oracle items" if row.get("false_certificate") else ""
    return DECISION_LABELS[row["decision"]][1] + framed


def _count_decisions(rows: Sequence[Decision]) -> str:
    counts = Counter(row["decision"] for row in rows)
    return ", ".join(
        f"{counts[decision]} {name} ({letter})"
        for decision, (letter, name) in DECISION_LABELS.items()
    )
