"""Chooses what each figure of a run shows: its drawing, its description and its data table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from doublebind.schema.evidence import Evidence
from doublebind.schema.score_table import M0
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.run_content import select_labels
from doublebind.stages.report.svg.dot_plot import (
    Bound,
    DotRow,
    describe_points,
    draw_dot_rows,
    draw_dot_strip,
    draw_p_values,
)
from doublebind.stages.report.svg.elements import Mark, PlotText, Point
from doublebind.stages.report.svg.line_plot import PlotPath, draw_paths
from doublebind.stages.report.tables.scores import Trajectory
from doublebind.stages.report.tables.table import Absent, Row, Table, find_reason
from doublebind.stages.report.tables.verdict import METHOD_NAMES

_DRAWING_ORDER: tuple[Mark, ...] = ("reference", "organism", "suspect")
"""Roles, each also the mark of its teachers; the last lies on top."""
_SCORE_AXIS = "score (spreads between teachers; higher is more misaligned)"
_PROBABILITY = "mean probability of the misaligned answer"

Trajectories = Mapping[str, Trajectory]
"""Label of a teacher, or `M0` -> means of its students."""


class Figure(NamedTuple):
    """A drawing with its caption, its description and its data."""

    caption: str
    description: str
    svg: Markup
    data: Table


FigureOrAbsent = Figure | Absent


def build_figure(
    text: PlotText, svg: Markup, columns: tuple[str, ...], rows: Sequence[Row]
) -> Figure:
    """Return a figure whose words are its plot's, with its data as a table."""
    data = Table(f"Data: {text.title}", columns, list(rows))
    return Figure(text.title, text.description, svg, data)


# --- distributions -------------------------------------------------------------------------------


def draw_distribution(evidence: Evidence, reasons: Mapping[str, str]) -> list[FigureOrAbsent]:
    """Return the suspect's score among the references': student audit, then direct audit."""
    all_scores = [*evidence.scores.values(), *evidence.direct_scores.values()]
    figures: list[FigureOrAbsent] = []
    for audit, source, scores, name in (
        ("student", "from their students", evidence.scores, "incrimination.p_value"),
        ("direct", "from their own answers", evidence.direct_scores, "direct_audit.p_value"),
    ):
        points = _build_points(scores, evidence)
        if not any(point.mark == "suspect" for point in points):
            reason = find_reason(reasons, name).reason
            figures.append(Absent(f"The {audit} audit has no score of the suspect: {reason}."))
            continue
        caption = f"{audit.capitalize()} audit: scores of the teachers, {source}"
        bound = _find_rank_bound(evidence, points)
        text = PlotText(f"{audit}-audit", caption, describe_points(points))
        span = _choose_span(all_scores, [point.value for point in points])
        svg = draw_dot_strip(points, text, _SCORE_AXIS, bound=bound, span=span)
        words = text.description
        if bound is not None:
            words += f" Shaded: above {bound.value:.3g}, where a rank reaches {bound.name}."
        figures.append(Figure(caption, words, svg, _tabulate_points(points, "score", evidence)))
    return figures


def _choose_span(both: Sequence[float], values: Sequence[float]) -> Sequence[float]:
    """Return the span of both audits, unless it would squeeze the values of this one."""
    widest, width = max(both) - min(both), max(values) - min(values)
    return (min(both), max(both)) if widest <= 4 * width else ()


def _find_rank_bound(evidence: Evidence, points: Sequence[Point]) -> Bound | None:
    """Return the score above which a suspect's rank reaches alpha, given these references."""
    references = sorted((p.value for p in points if p.mark == "reference"), reverse=True)
    k = evidence.n_allowed
    if not 0 <= k < len(references):
        return None
    return Bound(references[k], "p <= alpha")


# --- capability against misalignment -------------------------------------------------------------


def draw_capability_vs_misalignment(
    evidence: Evidence, trajectories: Trajectories, direct_audit: Trajectories
) -> list[FigureOrAbsent]:
    """Return capability against misalignment, from M0 to each teacher's students.

    The first figure averages all score endpoints. The second shows the endpoint on which the
    suspect stands highest, and says that it is picked after the fact.

    Args:
        evidence: Roles, and effects by endpoint.
        trajectories: As from `compute_trajectories`.
        direct_audit: Suspect -> means of its own answers, as from `compute_direct_audit`.
    """
    if not any(each.capability for each in trajectories.values()):
        return [Absent("No capability item was scored, so that there is no plane to draw.")]
    if not any(label in trajectories for label in select_labels(evidence, "suspect")):
        return [Absent("No plane: the suspect's students lack a value on a score endpoint.")]
    figures: list[FigureOrAbsent] = [_draw_plane(evidence, trajectories, direct_audit, "")]
    if len(evidence.effects) > 1:
        highest = min(
            evidence.effects,
            key=lambda e: (evidence.endpoint_p.get(e, 1.0), -evidence.effects[e].minus_references),
        )
        figures.append(_draw_plane(evidence, trajectories, direct_audit, highest))
    return figures


def _draw_plane(
    evidence: Evidence, trajectories: Trajectories, direct_audit: Trajectories, endpoint: str
) -> Figure:
    """Return the plane of one score endpoint, or of the mean of all where it is empty."""

    def place(label: str, trajectory: Trajectory, mark: Mark) -> PlotPath:
        height = trajectory.endpoints[endpoint] if endpoint else trajectory.misalignment
        return PlotPath(label, mark, list(zip(trajectory.capability, height, strict=True)))

    marked = list(_mark_trajectories(evidence, trajectories))
    students = [place(*each) for each in marked if each[1].capability]
    suspect = [place(t, c, "itself") for t, c in direct_audit.items() if c.capability]
    paths = [*students, *suspect]
    description = _describe_plane(paths, trajectories)
    what = "mean of all score endpoints"
    if endpoint:
        what = f"endpoint {endpoint}"
        description += " Picked after the fact: the endpoint on which the suspect stands out most."
    text = PlotText(
        "plane-endpoint" if endpoint else "plane-mean",
        f"Capability and misalignment: {what}",
        description,
    )
    axes = ("capability: mean probability of the right answer", _PROBABILITY)
    rows: list[Row] = [
        (shorten(path.label), _name_role(evidence, path.label), step, x, y)
        for path in students
        for step, (x, y) in zip(trajectories[path.label].steps, path.points, strict=True)
    ]
    rows += [(f"{shorten(p.label)}, itself", "suspect", "", *p.points[0]) for p in suspect]
    heads = ("teacher", "role", "step", "capability", "misalignment")
    return build_figure(text, draw_paths(paths, text, axes, arrows=True), heads, rows)


def _describe_plane(paths: Sequence[PlotPath], trajectories: Trajectories) -> str:
    sentences: list[str] = []
    for path in paths:
        (a, b), (c, d) = path.points[0], path.points[-1]
        if path.mark == "suspect":
            sentences.append(
                f"The suspect's students went from capability {a:.3g}, misalignment {b:.3g} (M0) "
                f"to {c:.3g}, {d:.3g}."
            )
        elif path.mark == "itself":
            sentences.append(f"The suspect itself, hollow, is at {a:.3g}, {b:.3g}.")
    ends = [path.points[-1] for path in paths if path.mark == "reference"]
    if ends:
        x, y = (statistics.median(part) for part in zip(*ends, strict=True))
        sentences.append(f"Those of {len(ends)} references end around {x:.3g}, {y:.3g}.")
    between = sorted({step for each in trajectories.values() for step in each.steps[1:-1]})
    sentences.append(
        f"Arrows bend at the audited steps ({', '.join(map(str, between))})."
        if between
        else "Students were audited at the end of training only: each arrow is one leg from M0."
    )
    return " ".join(sentences)


# --- endpoints -----------------------------------------------------------------------------------


def draw_endpoint_scores(
    evidence: Evidence, trajectories: Trajectories, floor: float, reasons: Mapping[str, str]
) -> FigureOrAbsent:
    """Return every score endpoint on one scale: spreads between suspect and references.

    Centre and scale are the score's: the median, and 1.48 median absolute deviations or `floor`,
    over suspect and references together. Organisms and M0 are put on the same scale.
    """
    lines = [
        _standardise_endpoint(name, means, evidence, trajectories, floor)
        for name, means in _list_endpoint_means(evidence)
        if any(label in means for label in select_labels(evidence, "suspect"))
    ]
    if not lines:
        reason = find_reason(reasons, "incrimination.p_value").reason
        return Absent(f"The suspect's students have no value on any score endpoint: {reason}.")
    text = PlotText(
        "endpoints-z",
        "Every score endpoint, in spreads between teachers",
        " ".join(f"{line.name}: {describe_points(line.points)}" for line in lines),
    )
    axis = "z against suspect and references (higher is more misaligned)"
    rows: list[Row] = [
        (line.name, shorten(p.label), _name_role(evidence, p.label), p.value)
        for line in lines
        for p in line.points
    ]
    highest = [(p.value, line.name) for line in lines for p in line.points if p.mark == "suspect"]
    z, name = max(highest)
    words = f"The suspect stands highest on {name}, at z = {z:.3g}; a score is the largest z."
    heads = ("endpoint", "teacher", "role", "z")
    figure = build_figure(text, draw_dot_rows(lines, text, axis), heads, rows)
    return figure._replace(description=words)


def _standardise_endpoint(
    name: str,
    means: Mapping[str, float],
    evidence: Evidence,
    trajectories: Trajectories,
    floor: float,
) -> DotRow:
    compared = [*select_labels(evidence, "suspect"), *select_labels(evidence, "reference")]
    values = [means[label] for label in compared if label in means]
    centre = statistics.median(values)
    scale = max(1.48 * statistics.median(abs(value - centre) for value in values), floor)
    points = [
        point._replace(value=(point.value - centre) / scale)
        for point in _build_endpoint_points(name, means, evidence, trajectories)
    ]
    p = evidence.endpoint_p.get(name)
    return DotRow(name, "" if p is None else f"step-down p {p:.3g}", points)


def draw_endpoint_strips(evidence: Evidence, trajectories: Trajectories) -> list[FigureOrAbsent]:
    """Return one strip per score endpoint, in probability: means of each teacher's students."""
    figures: list[FigureOrAbsent] = []
    for i, (name, means) in enumerate(_list_endpoint_means(evidence)):
        points = _build_endpoint_points(name, means, evidence, trajectories)
        caption = f"Endpoint {shorten(name)}: mean of each teacher's students"
        text = PlotText(f"endpoint-{i}", caption, describe_points(points))
        data = _tabulate_points(points, "mean probability", evidence)
        svg = draw_dot_strip(points, text, _PROBABILITY)
        figures.append(Figure(caption, text.description, svg, data))
    return figures


def _list_endpoint_means(evidence: Evidence) -> list[tuple[str, dict[str, float]]]:
    """Return each score endpoint with the means of the teachers that have one."""
    names = dict.fromkeys(name for means in evidence.endpoints.values() for name in means)
    return [
        (name, {label: m[name] for label, m in evidence.endpoints.items() if name in m})
        for name in names
    ]


def _build_endpoint_points(
    name: str, means: Mapping[str, float], evidence: Evidence, trajectories: Trajectories
) -> list[Point]:
    points = _build_points(means, evidence)
    if M0 in trajectories:
        points.append(Point(M0, trajectories[M0].endpoints[name][0], "m0"))
    return points


def draw_dose_curves(evidence: Evidence, trajectories: Trajectories) -> list[FigureOrAbsent]:
    """Return each score endpoint against training steps, where several were audited."""
    steps = sorted({step for each in trajectories.values() for step in each.steps} - {0})
    if len(steps) < 2:
        at = f"once, at step {steps[0]}" if steps else "at no step that all recipes share"
        return [Absent(f"No dose curve: students were audited {at}, and a curve needs two steps.")]
    names = next(iter(trajectories.values())).endpoints
    return [_draw_dose_curve(i, name, evidence, trajectories) for i, name in enumerate(names)]


def _draw_dose_curve(
    i: int, name: str, evidence: Evidence, trajectories: Trajectories
) -> FigureOrAbsent:
    paths = [
        PlotPath(label, mark, list(zip(each.steps, each.endpoints[name], strict=True)))
        for label, each, mark in _mark_trajectories(evidence, trajectories)
    ]
    description = " ".join(
        f"The suspect's students: {', '.join(f'{y:.3g} at step {x}' for x, y in p.points)}."
        for p in paths
        if p.mark == "suspect"
    )
    text = PlotText(f"dose-{i}", f"Endpoint {shorten(name)} against training steps", description)
    ticks = sorted({x for path in paths for x, _ in path.points})
    axes = ("training steps of the students", _PROBABILITY)
    svg = draw_paths(paths, text, axes, arrows=False, ticks=ticks)
    rows: list[Row] = [
        (shorten(p.label), _name_role(evidence, p.label), int(x), y)
        for p in paths
        for x, y in p.points
    ]
    return build_figure(text, svg, ("teacher", "role", "step", "mean probability"), rows)


# --- methods -------------------------------------------------------------------------------------


def draw_methods_compared(evidence: Evidence, alpha: float) -> FigureOrAbsent:
    """Return the suspect's p-value by each method, with and without students."""
    p_values = {
        "students": evidence.p_value,
        "direct": evidence.direct.p_value,
        **evidence.baselines,
    }
    suspect = next(iter(select_labels(evidence, "suspect")), "suspect")
    lines = [
        DotRow(
            METHOD_NAMES.get(name, name), f"p = {p:.3g}", [Point(suspect, math.log10(p), "suspect")]
        )
        for name, p in p_values.items()
        if p is not None
    ]
    if not evidence.baselines or not lines:
        return Absent(
            "This study measured no reading baseline, so that it cannot say whether reading the "
            "suspect's answers would have been enough."
        )
    description = "; ".join(f"{line.name}: {line.remark}" for line in lines)
    text = PlotText(
        "ways",
        "The suspect's p-value by each way of looking",
        f"{description}. Alpha is {alpha:g}.",
    )
    rows: list[Row] = [(line.name, 10.0 ** line.points[0].value) for line in lines]
    return build_figure(text, draw_p_values(lines, text, alpha), ("way of looking", "p"), rows)


# --- points of teachers --------------------------------------------------------------------------


def _build_points(values: Mapping[str, float], evidence: Evidence) -> list[Point]:
    return [
        Point(label, values[label], mark)
        for mark in _DRAWING_ORDER
        for label in select_labels(evidence, mark)
        if label in values
    ]


def _mark_trajectories(
    evidence: Evidence, trajectories: Trajectories
) -> Iterator[tuple[str, Trajectory, Mark]]:
    """Yield the trajectories with their symbols, references first and M0 last."""
    for mark in _DRAWING_ORDER:
        for label in select_labels(evidence, mark):
            if label in trajectories:
                yield label, trajectories[label], mark
    if M0 in trajectories:
        yield M0, trajectories[M0], "m0"


def _name_role(evidence: Evidence, label: str) -> str:
    return evidence.roles.get(label, "student base" if label == M0 else "")


def _tabulate_points(points: Sequence[Point], value_name: str, evidence: Evidence) -> Table:
    rows: list[Row] = [
        (shorten(p.label), _name_role(evidence, p.label), p.value)
        for p in sorted(points, key=lambda p: -p.value)
    ]
    return Table("Data of this figure, highest first", ("teacher", "role", value_name), rows)
