"""Tables and figure of the replacement horn: how recipes competed, and the winner's bounds."""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.schema.evidence import Interval, RecipeResult, ReplacementEvidence
from doublebind.stages.report.figures import FigureOrAbsent, build_figure
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.svg.elements import PlotText
from doublebind.stages.report.svg.line_plot import PlotPath, draw_paths
from doublebind.stages.report.tables.table import Absent, Cell, Row, Table

_NOT_SCORED = Absent("no student of it was scored on these items")
_AXES = (
    "share of the teachers' capability that came along",
    "largest shift of a score endpoint above M0",
)


def build_tables(evidence: ReplacementEvidence) -> list[Table]:
    """Return the recipes' results, each endpoint's bounds, and the oracle endpoints."""
    tables = [_tabulate_competitors(evidence), _tabulate_bounds(evidence)]
    if evidence.further_training:
        tables.append(_tabulate_further_training(evidence))
    if evidence.oracle:
        tables.append(_tabulate_oracle(evidence))
    return tables


# --- the recipes ---------------------------------------------------------------------------------


def draw_recipe_frontier(
    results: Sequence[RecipeResult], chosen: str, margin: float
) -> FigureOrAbsent:
    """Return capability against misalignment, one symbol for each recipe that competed.

    Args:
        results: Of the recipes that competed.
        chosen: Name of the recipe that was bounded afterwards.
        margin: In probability.
    """
    ends = [
        (each, (each.tau_capability, each.worst))
        for each in results
        if each.tau_capability is not None and each.worst is not None
    ]
    if not ends:
        return Absent(
            "No plane of recipes: no competing teacher differs from M0 in capability by more than "
            "noise, so that no share of it can be said to have come along."
        )
    frontier = _find_frontier([end for _, end in ends])
    names = ", ".join(shorten(each.recipe) for each, end in ends if end in frontier)
    description = (
        f"Not beaten on both at once: {names} (dashed). Bounded afterwards: {shorten(chosen)}. "
        f"The margin is {margin:g}."
    )
    paths: list[PlotPath] = []
    rows: list[Row] = []
    for each, end in ends:
        earlier = _select_earlier_steps(each)
        # M0 has no share of the teachers' capability and no shift, both by definition.
        start = [(0.0, 0.0)] if each.trajectory else []
        mark = "suspect" if each.recipe == chosen else "reference"
        points = [*start, *(point for _, point in earlier), end]
        paths.append(PlotPath(each.recipe, mark, points))
        name = shorten(each.recipe)
        rows += [(name, f"step {step}", *point) for step, point in earlier]
        rows.append((name, _name_step(each), *end))
    if any(each.trajectory for each, _ in ends):
        description += " Arrows go from M0 through the audited steps to where a recipe ends."
        paths.append(PlotPath("M0", "m0", [(0.0, 0.0)]))
    title = "Recipes that competed: capability and misalignment"
    text = PlotText("recipes", title, description)
    svg = draw_paths(paths, text, _AXES, arrows=True, frontier=frontier)
    return build_figure(text, svg, ("recipe", "at", *_AXES), rows)


def _select_earlier_steps(result: RecipeResult) -> list[tuple[int, tuple[float, float]]]:
    """Return the audited steps before the one at which a recipe ends, with their points."""
    end = result.step or max((step for step, *_ in result.trajectory), default=0)
    return [(step, (tau, worst)) for step, tau, worst in result.trajectory if step < end]


def _find_frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats on one axis without losing on the other."""
    return [
        (x, y)
        for x, y in points
        if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in points)
    ]


def _name_step(result: RecipeResult) -> str:
    return "the end" if result.step is None else f"step {result.step}"


def _tabulate_competitors(evidence: ReplacementEvidence) -> Table:
    no_share = Absent("no teacher differs from M0 by more than noise")
    rows: list[Row] = [
        (
            shorten(each.recipe),
            _NOT_SCORED if each.worst is None else each.worst,
            shorten(each.endpoint or "nowhere"),
            no_share if each.tau_capability is None else each.tau_capability,
            _name_step(each),
            each.n_teachers,
            each.n_students,
        )
        for each in evidence.recipe_results
    ]
    heads = ("recipe", "largest shift above M0", "where", "capability that came along")
    return Table(
        "Recipes that competed, on items that certify nothing",
        (*heads, "stopped at", "teachers", "students"),
        rows,
        note="Chosen: the most capable of those within the margin; where none is, the closest.",
        highlighted=shorten(evidence.recipe),
    )


# --- the bounds ----------------------------------------------------------------------------------


def _select_missing(evidence: ReplacementEvidence, prefix: str) -> list[tuple[str, Absent]]:
    return [
        (shorten(key.removeprefix(prefix)), Absent(reason))
        for key, reason in evidence.missing.items()
        if key.startswith(prefix)
    ]


def _tabulate_bounds(evidence: ReplacementEvidence) -> Table:
    rows: list[Row] = [
        (shorten(name), evidence.lower.get(name, _NOT_SCORED), upper, evidence.margin)
        for name, upper in evidence.upper.items()
    ]
    rows += [
        (name, _NOT_SCORED, reason, evidence.margin)
        for name, reason in _select_missing(evidence, "upper.")
    ]
    return Table(
        "Fresh students above M0, on items kept for it",
        ("score endpoint", "at least", "at most", "margin"),
        rows,
        note=(
            f"One-sided 95% bounds in probability, {evidence.n_seeds} students, "
            f"{evidence.n_items} items. The same items told {evidence.n_controls_detected} of "
            f"{evidence.n_controls} positive controls from M0."
        ),
    )


def _tabulate_further_training(evidence: ReplacementEvidence) -> Table:
    results = evidence.further_training
    rows: list[Row] = [
        (
            each.kind,
            shorten(name),
            _format_interval(each.before.get(name)),
            _format_interval(each.after.get(name)),
            each.controls[name],
            each.lower[name],
            upper,
        )
        for each in results
        for name, upper in each.upper.items()
    ]
    rows += [
        (name, reason, *[_NOT_SCORED] * 5) for name, reason in _select_missing(evidence, "further.")
    ]
    heads = ("further training", "score endpoint", "before, above M0", "after, above its twin")
    return Table(
        "Fresh students trained further, beside M0 trained alike",
        (*heads, "twins above M0", "at least", "at most"),
        rows,
        note=(
            f"{max(each.n_students for each in results)} students; intervals are over "
            "students and items. The last columns are one-sided 95% bounds of the student that "
            f"stands furthest from its twin; the margin is {evidence.margin:g}."
        ),
    )


def _format_interval(interval: Interval | None) -> Cell:
    if interval is None:
        return _NOT_SCORED
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _tabulate_oracle(evidence: ReplacementEvidence) -> Table:
    return Table(
        "Fresh students above M0 where only the organism's key leads: reported, never used",
        ("drive", "shift", "at least", "at most"),
        [(shorten(drive), i.value, i.low, i.high) for drive, i in evidence.oracle.items()],
    )
