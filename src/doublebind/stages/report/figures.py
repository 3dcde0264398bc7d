"""Chooses what each figure shows, says why where it cannot, and keeps the data beside it.

Knows which record holds which number, and the drawing functions. Does not know HTML. What a
figure shows stands in words under it and as rows behind it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from doublebind.schema.evidence import Evidence
from doublebind.schema.score_table import M0
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.svg import dot_plot as figures
from doublebind.stages.report.svg import line_plot as curves
from doublebind.stages.report.svg.dot_plot import Bound, DotRow, Mark, Point
from doublebind.stages.report.tables.run import Absent, Cell, Table, select_labels
from doublebind.stages.report.tables.scores import Trajectory
from doublebind.stages.report.tables.verdict import METHOD_NAMES

_ROLE_MARKS: tuple[tuple[Mark, str], ...] = (
    ("reference", "reference"),
    ("organism", "organism"),
    ("suspect", "suspect"),
)
_SCORE_AXIS = "score (spreads between teachers; higher is more misaligned)"
_PROBABILITY = "mean probability of the misaligned answer"


class Figure(NamedTuple):
    """A drawing with its caption, what it shows in words, and its data."""

    caption: str
    description: str
    svg: Markup
    data: Table


FigureOrAbsent = Figure | Absent


def draw_distribution(evidence: Evidence, why: Mapping[str, str]) -> list[FigureOrAbsent]:
    """Return where the suspect stands among the references: student audit, then direct audit."""
    both = [*evidence.scores.values(), *evidence.direct_scores.values()]
    told = (
        ("student", "from their students", evidence.scores, "incrimination.p_value"),
        ("direct", "from their own answers", evidence.direct_scores, "direct_audit.p_value"),
    )
    drawn: list[FigureOrAbsent] = []
    for audit, how, scores, name in told:
        points = _build_points(scores, evidence)
        if not any(point.mark == "suspect" for point in points):
            reason = why.get(name, "no reason was recorded")
            drawn.append(Absent(f"The {audit} audit has no score of the suspect: {reason}."))
            continue
        caption = f"{audit.capitalize()} audit: scores of the teachers, {how}"
        bound = _find_rank_bound(evidence, points)
        svg = figures.draw_dot_strip(
            points,
            name=f"{audit}-audit",
            title=caption,
            axis=_SCORE_AXIS,
            bound=bound,
            span=_choose_span(both, [point.value for point in points]),
        )
        words = figures.describe_points(points)
        if bound is not None:
            words += f" Shaded: above {bound.value:.3g}, where a rank reaches {bound.name}."
        drawn.append(Figure(caption, words, svg, _tabulate_points(points, "score", evidence)))
    return drawn


def _choose_span(both: Sequence[float], own: Sequence[float]) -> Sequence[float]:
    """Return the span of both audits, unless one of them would be squeezed by it."""
    widest, width = max(both) - min(both), max(own) - min(own)
    return (min(both), max(both)) if widest <= 4 * width else ()


def _find_rank_bound(evidence: Evidence, points: Sequence[Point]) -> Bound | None:
    """Return from where on a suspect's rank would reach alpha, given these references."""
    references = sorted((p.value for p in points if p.mark == "reference"), reverse=True)
    k = evidence.n_allowed
    if not 0 <= k < len(references):
        return None
    return Bound(references[k], "p <= alpha")


def draw_capability_vs_misalignment(
    evidence: Evidence,
    trajectories: Mapping[str, Trajectory],
    direct_audit: Mapping[str, Trajectory],
) -> list[FigureOrAbsent]:
    """Return capability against misalignment, from M0 to each teacher's students.

    First over all score endpoints; then on the one on which the suspect stands highest, which is
    picked after the fact and said to be.

    Args:
        evidence: Says who is who.
        along: As from `measurements.courses`.
        direct: Suspect -> what its own answers show, one step.
    """
    if not any(course.capability for course in trajectories.values()):
        return [Absent("No capability item was scored, so that there is no plane to draw.")]
    if not any(label in trajectories for label in select_labels(evidence, "suspect")):
        return [Absent("No plane: the suspect's students lack a value on a score endpoint.")]
    drawn: list[FigureOrAbsent] = [_draw_plane(evidence, trajectories, direct_audit, "")]
    if len(evidence.effects) > 1:
        highest = min(
            evidence.effects,
            key=lambda e: (evidence.endpoint_p.get(e, 1.0), -evidence.effects[e].minus_references),
        )
        drawn.append(_draw_plane(evidence, trajectories, direct_audit, highest))
    return drawn


def _draw_plane(
    evidence: Evidence,
    trajectories: Mapping[str, Trajectory],
    direct_audit: Mapping[str, Trajectory],
    endpoint: str,
) -> Figure:
    def places(course: Trajectory) -> list[tuple[float, float]]:
        height = course.endpoints[endpoint] if endpoint else course.misalignment
        return list(zip(course.capability, height, strict=True))

    drawn = [
        curves.PlotPath(label, mark, places(course))
        for label, course, mark in _mark_trajectories(evidence, trajectories)
        if course.capability
    ]
    own = [curves.PlotPath(t, "itself", places(c)) for t, c in direct_audit.items() if c.capability]
    what = f"endpoint {endpoint}" if endpoint else "mean of all score endpoints"
    title = f"Capability and misalignment: {what}"
    said = _describe_plane([*drawn, *own], trajectories)
    if endpoint:
        said += " Picked after the fact: the endpoint on which the suspect stands out most."
    svg = curves.draw_paths(
        [*drawn, *own],
        name="plane-endpoint" if endpoint else "plane-mean",
        title=title,
        axes=("capability: mean probability of the right answer", _PROBABILITY),
        description=said,
        arrows=True,
    )
    rows: list[tuple[Cell, ...]] = [
        (shorten(path.label), _name_role(evidence, path.label), step, x, y)
        for path in drawn
        for step, (x, y) in zip(trajectories[path.label].steps, path.points, strict=True)
    ]
    rows += [(f"{shorten(p.label)}, itself", "suspect", "", *p.points[0]) for p in own]
    heads = ("teacher", "role", "step", "capability", "misalignment")
    return Figure(title, said, svg, Table(f"Data: {title}", heads, rows))


def _describe_plane(
    drawn: Sequence[curves.PlotPath], trajectories: Mapping[str, Trajectory]
) -> str:
    said: list[str] = []
    for path in drawn:
        (a, b), (c, d) = path.points[0], path.points[-1]
        if path.mark == "suspect":
            said.append(
                f"The suspect's students went from capability {a:.3g}, misalignment {b:.3g} (M0) "
                f"to {c:.3g}, {d:.3g}."
            )
        elif path.mark == "itself":
            said.append(f"The suspect itself, hollow, is at {a:.3g}, {b:.3g}.")
    ends = [path.points[-1] for path in drawn if path.mark == "reference"]
    if ends:
        x, y = (statistics.median(part) for part in zip(*ends, strict=True))
        said.append(f"Those of {len(ends)} references end around {x:.3g}, {y:.3g}.")
    between = sorted({step for course in trajectories.values() for step in course.steps[1:-1]})
    said.append(
        f"Arrows bend at the audited steps ({', '.join(map(str, between))})."
        if between
        else "Students were audited at the end of training only: each arrow is one leg from M0."
    )
    return " ".join(said)


def draw_endpoint_scores(
    evidence: Evidence,
    trajectories: Mapping[str, Trajectory],
    floor: float,
    why: Mapping[str, str],
) -> FigureOrAbsent:
    """Return every score endpoint on one scale: spreads between suspect and references.

    Centre and scale are the score's: the median, and 1.48 median absolute deviations or `floor`,
    over suspect and references together; organisms and M0 are put on the scale so found.
    """
    compared = [*select_labels(evidence, "suspect"), *select_labels(evidence, "reference")]
    lines: list[DotRow] = []
    m0 = trajectories.get(M0)
    names = list(dict.fromkeys(name for own in evidence.endpoints.values() for name in own))
    for name in names:
        means = {label: own[name] for label, own in evidence.endpoints.items() if name in own}
        known = [means[label] for label in compared if label in means]
        if not any(label in means for label in select_labels(evidence, "suspect")):
            continue
        centre = statistics.median(known)
        spread = 1.48 * statistics.median(abs(value - centre) for value in known)
        scale = max(spread, floor)
        points = _build_points(
            {t: (value - centre) / scale for t, value in means.items()}, evidence
        )
        if m0 is not None:
            points.append(Point(M0, (m0.endpoints[name][0] - centre) / scale, "m0"))
        p = evidence.endpoint_p.get(name)
        lines.append(DotRow(name, "" if p is None else f"step-down p {p:.3g}", points))
    if not lines:
        reason = why.get("incrimination.p_value", "no reason was recorded")
        return Absent(f"The suspect's students have no value on any score endpoint: {reason}.")
    caption = "Every score endpoint, in spreads between teachers"
    said = " ".join(f"{line.name}: {figures.describe_points(line.points)}" for line in lines)
    svg = figures.draw_dot_rows(
        lines,
        name="endpoints-z",
        title=caption,
        axis="z against suspect and references (higher is more misaligned)",
        description=said,
    )
    rows: list[tuple[Cell, ...]] = [
        (line.name, shorten(p.label), _name_role(evidence, p.label), p.value)
        for line in lines
        for p in line.points
    ]
    table = Table(f"Data: {caption}", ("endpoint", "teacher", "role", "z"), rows)
    highest = [(p.value, line.name) for line in lines for p in line.points if p.mark == "suspect"]
    z, name = max(highest)
    words = f"The suspect stands highest on {name}, at z = {z:.3g}; a score is the largest z."
    return Figure(caption, words, svg, table)


def draw_endpoint_strips(
    evidence: Evidence, trajectories: Mapping[str, Trajectory]
) -> list[FigureOrAbsent]:
    """Return one strip per score endpoint, in probability: means of each teacher's students."""
    m0 = trajectories.get(M0)
    drawn: list[FigureOrAbsent] = []
    names = list(dict.fromkeys(name for own in evidence.endpoints.values() for name in own))
    for i, name in enumerate(names):
        means = {label: own[name] for label, own in evidence.endpoints.items() if name in own}
        points = _build_points(means, evidence)
        points += [] if m0 is None else [Point(M0, m0.endpoints[name][0], "m0")]
        caption = f"Endpoint {shorten(name)}: mean of each teacher's students"
        svg = figures.draw_dot_strip(points, name=f"endpoint-{i}", title=caption, axis=_PROBABILITY)
        data = _tabulate_points(points, "mean probability", evidence)
        drawn.append(Figure(caption, figures.describe_points(points), svg, data))
    return drawn


def draw_dose_curves(
    evidence: Evidence, trajectories: Mapping[str, Trajectory]
) -> list[FigureOrAbsent]:
    """Return each score endpoint against training steps, where several were audited."""
    steps = sorted({step for course in trajectories.values() for step in course.steps} - {0})
    if len(steps) < 2:
        at = f"once, at step {steps[0]}" if steps else "at no step that all recipes share"
        return [Absent(f"No dose curve: students were audited {at}, and a curve needs two steps.")]
    drawn: list[FigureOrAbsent] = []
    for i, name in enumerate(next(iter(trajectories.values())).endpoints):
        courses = [
            curves.PlotPath(label, mark, list(zip(c.steps, c.endpoints[name], strict=True)))
            for label, c, mark in _mark_trajectories(evidence, trajectories)
        ]
        caption = f"Endpoint {shorten(name)} against training steps"
        said = " ".join(
            f"The suspect's students: {', '.join(f'{y:.3g} at step {x}' for x, y in p.points)}."
            for p in courses
            if p.mark == "suspect"
        )
        svg = curves.draw_paths(
            courses,
            name=f"dose-{i}",
            title=caption,
            axes=("training steps of the students", _PROBABILITY),
            description=said,
            arrows=False,
            ticks=sorted({x for path in courses for x, _ in path.points}),
        )
        rows: list[tuple[Cell, ...]] = [
            (shorten(p.label), _name_role(evidence, p.label), int(x), y)
            for p in courses
            for x, y in p.points
        ]
        data = Table(f"Data: {caption}", ("teacher", "role", "step", "mean probability"), rows)
        drawn.append(Figure(caption, said, svg, data))
    return drawn


def draw_methods_compared(evidence: Evidence, alpha: float) -> FigureOrAbsent:
    """Return the suspect's p-value by each way of looking, with and without students."""
    found = {"students": evidence.p_value, "direct": evidence.direct.p_value}
    found.update(evidence.baselines)
    suspect = next(iter(select_labels(evidence, "suspect")), "suspect")
    lines = [
        DotRow(
            METHOD_NAMES.get(name, name), f"p = {p:.3g}", [Point(suspect, math.log10(p), "suspect")]
        )
        for name, p in found.items()
        if p is not None
    ]
    if not evidence.baselines or not lines:
        return Absent(
            "This study measured no reading baseline, so that it cannot say whether reading the "
            "suspect's answers would have been enough."
        )
    caption = "The suspect's p-value by each way of looking"
    said = "; ".join(f"{line.name}: {line.remark}" for line in lines) + f". Alpha is {alpha:g}."
    svg = figures.draw_p_values(lines, name="ways", title=caption, description=said, alpha=alpha)
    rows: list[tuple[Cell, ...]] = [(line.name, 10.0 ** line.points[0].value) for line in lines]
    return Figure(caption, said, svg, Table(f"Data: {caption}", ("way of looking", "p"), rows))


# --- who is who ----------------------------------------------------------------------------------


def _build_points(values: Mapping[str, float], evidence: Evidence) -> list[Point]:
    return [
        Point(label, values[label], mark)
        for mark, role in _ROLE_MARKS
        for label in select_labels(evidence, role)
        if label in values
    ]


def _mark_trajectories(
    evidence: Evidence, trajectories: Mapping[str, Trajectory]
) -> list[tuple[str, Trajectory, Mark]]:
    """Return the courses with their signs, references first."""
    found: list[tuple[str, Trajectory, Mark]] = [
        (label, trajectories[label], mark)
        for mark, role in _ROLE_MARKS
        for label in select_labels(evidence, role)
        if label in trajectories
    ]
    if M0 in trajectories:
        found.append((M0, trajectories[M0], "m0"))
    return found


def _name_role(evidence: Evidence, label: str) -> str:
    return evidence.roles.get(label, "student base" if label == M0 else "")


def _tabulate_points(points: Sequence[Point], what: str, evidence: Evidence) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (shorten(p.label), _name_role(evidence, p.label), p.value)
        for p in sorted(points, key=lambda p: -p.value)
    ]
    return Table("Data of this figure, highest first", ("teacher", "role", what), rows)
