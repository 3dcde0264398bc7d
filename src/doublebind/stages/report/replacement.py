"""Shows what the second horn rests on: how recipes competed, and what the winner was bounded by.

Knows the record of that evidence. Decides nothing, and knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.schema.evidence import Interval, RecipeResult, ReplacementEvidence
from doublebind.stages.report.figures import Figure, FigureOrAbsent
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.svg import line_plot as curves
from doublebind.stages.report.tables.run import Absent, Cell, Table

_NOT_SCORED = Absent("no student of it was scored on these items")
_AXES = (
    "share of the teachers' capability that came along",
    "largest shift of a score endpoint above M0",
)

_COLUMNS = (
    "recipe",
    "largest shift above M0",
    "where",
    "capability that came along",
    "stopped at",
    "teachers",
    "students",
)


def build_tables(evidence: ReplacementEvidence) -> list[Table]:
    """Return how the recipes competed, each endpoint's bounds, and what only the key opens."""
    found = [_tabulate_competitors(evidence), _tabulate_bounds(evidence)]
    if evidence.further_training:
        found.append(_tabulate_further_training(evidence))
    if evidence.oracle:
        found.append(_tabulate_oracle(evidence))
    return found


def draw_recipe_frontier(
    competitors: Sequence[RecipeResult], chosen: str, margin: float
) -> FigureOrAbsent:
    """Return capability against misalignment, one sign for each recipe that competed.

    Args:
        competed: How each recipe did.
        chosen: Name of the recipe that was bounded afterwards.
        margin: In probability.
    """
    placed = [
        (c, c.tau_capability, c.worst)
        for c in competitors
        if c.tau_capability is not None and c.worst is not None
    ]
    if not placed:
        return Absent(
            "No plane of recipes: no competing teacher differs from M0 in capability by more than "
            "noise, so that no share of it can be said to have come along."
        )
    title = "Recipes that competed: capability and misalignment"
    front = _find_frontier([(x, y) for _, x, y in placed])
    said = f"Not beaten on both at once: {', '.join(shorten(placed[i][0].recipe) for i in front)}"
    said += f" (dashed). Bounded afterwards: {shorten(chosen)}. The margin is {margin:g}."
    drawn = [
        curves.PlotPath(
            c.recipe,
            "suspect" if c.recipe == chosen else "reference",
            [*_list_earlier_points(c), (x, y)],
        )
        for c, x, y in placed
    ]
    if any(len(path.points) > 1 for path in drawn):
        said += " Arrows go from M0 through the audited steps to where a recipe ends."
        drawn.append(curves.PlotPath("M0", "m0", [(0.0, 0.0)]))
    svg = curves.draw_paths(
        drawn,
        name="recipes",
        title=title,
        axes=_AXES,
        description=said,
        arrows=True,
        frontier=[(placed[i][1], placed[i][2]) for i in front],
    )
    rows: list[tuple[Cell, ...]] = []
    for c, x, y in placed:
        rows += [(shorten(c.recipe), f"step {n}", a, b) for n, a, b in _select_earlier_steps(c)]
        rows.append((shorten(c.recipe), "the end" if c.step is None else f"step {c.step}", x, y))
    return Figure(title, said, svg, Table(f"Data: {title}", ("recipe", "at", *_AXES), rows))


def _list_earlier_points(each: RecipeResult) -> list[tuple[float, float]]:
    """Return where a recipe's students were before they ended, from M0 on; empty if nobody looked.

    M0 has nothing of the teachers' capability and no shift, both by definition.
    """
    passed = [(a, b) for _, a, b in _select_earlier_steps(each)]
    return [(0.0, 0.0), *passed] if each.trajectory else []


def _select_earlier_steps(each: RecipeResult) -> list[tuple[int, float, float]]:
    end = each.step or max((step for step, *_ in each.trajectory), default=0)
    return [place for place in each.trajectory if place[0] < end]


def _find_frontier(points: list[tuple[float, float]]) -> list[int]:
    """Return which points no other beats on one axis without losing on the other."""
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in points)
    ]


def _tabulate_competitors(evidence: ReplacementEvidence) -> Table:
    return Table(
        "Recipes that competed, on items that certify nothing",
        _COLUMNS,
        [_build_competitor_row(each) for each in evidence.recipe_results],
        note="Chosen: the most capable of those within the margin; where none is, the closest.",
        highlighted=shorten(evidence.recipe),
    )


def _build_competitor_row(each: RecipeResult) -> tuple[Cell, ...]:
    worst: Cell = _NOT_SCORED if each.worst is None else each.worst
    capable: Cell = (
        Absent("no teacher differs from M0 by more than noise")
        if each.tau_capability is None
        else each.tau_capability
    )
    step = "the end" if each.step is None else f"step {each.step}"
    where = shorten(each.endpoint or "nowhere")
    return (shorten(each.recipe), worst, where, capable, step, each.n_teachers, each.n_students)


def _tabulate_bounds(evidence: ReplacementEvidence) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (shorten(name), evidence.lower.get(name, _NOT_SCORED), upper, evidence.margin)
        for name, upper in evidence.upper.items()
    ]
    rows += [
        (shorten(key.removeprefix("upper.")), _NOT_SCORED, Absent(why), evidence.margin)
        for key, why in evidence.missing.items()
        if key.startswith("upper.")
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
    def of(interval: Interval | None) -> Cell:
        if interval is None:
            return _NOT_SCORED
        return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"

    rows: list[tuple[Cell, ...]] = [
        (
            each.kind,
            shorten(name),
            of(each.before.get(name)),
            of(each.after.get(name)),
            each.controls[name],
            each.lower[name],
            upper,
        )
        for each in evidence.further_training
        for name, upper in each.upper.items()
    ]
    rows += [
        (shorten(key.removeprefix("further.")), Absent(why), *[_NOT_SCORED] * 5)
        for key, why in evidence.missing.items()
        if key.startswith("further.")
    ]
    return Table(
        "Fresh students trained further, beside M0 trained alike",
        (
            *("further training", "score endpoint", "before, above M0", "after, above its twin"),
            *("twins above M0", "at least", "at most"),
        ),
        rows,
        note=(
            f"{max(each.n_students for each in evidence.further_training)} students; intervals are over "
            "students and items. The last columns are one-sided 95% bounds of the student that "
            f"stands furthest from its twin; the margin is {evidence.margin:g}."
        ),
    )


def _tabulate_oracle(evidence: ReplacementEvidence) -> Table:
    def of(interval: Interval) -> tuple[Cell, ...]:
        return interval.value, interval.low, interval.high

    return Table(
        "Fresh students above M0 where only the organism's key leads: reported, never used",
        ("drive", "shift", "at least", "at most"),
        [(shorten(drive), *of(found)) for drive, found in evidence.oracle.items()],
    )
