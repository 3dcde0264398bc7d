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
from doublebind.stages.report.hostile_text import short
from doublebind.stages.report.svg import dot_plot as figures
from doublebind.stages.report.svg import line_plot as curves
from doublebind.stages.report.svg.dot_plot import Bound, Line, Mark, Point
from doublebind.stages.report.tables.run import Absent, Cell, Table, labels
from doublebind.stages.report.tables.scores import Course
from doublebind.stages.report.tables.verdict import WAYS

_MARKS: tuple[tuple[Mark, str], ...] = (
    ("reference", "reference"),
    ("organism", "organism"),
    ("suspect", "suspect"),
)
_SCORE_AXIS = "score (spreads between teachers; higher is more misaligned)"
_PROBABILITY = "mean probability of the misaligned answer"


class Figure(NamedTuple):
    """A drawing with its caption, what it shows in words, and its data."""

    caption: str
    said: str
    svg: Markup
    data: Table


Drawn = Figure | Absent


def distribution(evidence: Evidence, why: Mapping[str, str]) -> list[Drawn]:
    """Return where the suspect stands among the references: student audit, then direct audit."""
    both = [*evidence.scores.values(), *evidence.direct_scores.values()]
    told = (
        ("student", "from their students", evidence.scores, "incrimination.p_value"),
        ("direct", "from their own answers", evidence.direct_scores, "direct_audit.p_value"),
    )
    drawn: list[Drawn] = []
    for audit, how, scores, name in told:
        points = _points(scores, evidence)
        if not any(point.mark == "suspect" for point in points):
            reason = why.get(name, "no reason was recorded")
            drawn.append(Absent(f"The {audit} audit has no score of the suspect: {reason}."))
            continue
        caption = f"{audit.capitalize()} audit: scores of the teachers, {how}"
        bound = _deciding(evidence, points)
        svg = figures.strip(
            points,
            name=f"{audit}-audit",
            title=caption,
            axis=_SCORE_AXIS,
            bound=bound,
            span=_shared(both, [point.value for point in points]),
        )
        words = figures.describe(points)
        if bound is not None:
            words += f" Shaded: above {bound.at:.3g}, where a rank reaches {bound.name}."
        drawn.append(Figure(caption, words, svg, _listed(points, "score", evidence)))
    return drawn


def _shared(both: Sequence[float], own: Sequence[float]) -> Sequence[float]:
    """Return the span of both audits, unless one of them would be squeezed by it."""
    widest, width = max(both) - min(both), max(own) - min(own)
    return (min(both), max(both)) if widest <= 4 * width else ()


def _deciding(evidence: Evidence, points: Sequence[Point]) -> Bound | None:
    """Return from where on a suspect's rank would reach alpha, given these references."""
    references = sorted((p.value for p in points if p.mark == "reference"), reverse=True)
    k = evidence.n_allowed
    if not 0 <= k < len(references):
        return None
    return Bound(references[k], "p <= alpha")


def planes(
    evidence: Evidence, along: Mapping[str, Course], direct: Mapping[str, Course]
) -> list[Drawn]:
    """Return capability against misalignment, from M0 to each teacher's students.

    First over all score endpoints; then on the one on which the suspect stands highest, which is
    picked after the fact and said to be.

    Args:
        evidence: Says who is who.
        along: As from `measurements.courses`.
        direct: Suspect -> what its own answers show, one step.
    """
    if not any(course.capability for course in along.values()):
        return [Absent("No capability item was scored, so that there is no plane to draw.")]
    if not any(label in along for label in labels(evidence, "suspect")):
        return [Absent("No plane: the suspect's students lack a value on a score endpoint.")]
    drawn: list[Drawn] = [_plane(evidence, along, direct, "")]
    if len(evidence.effects) > 1:
        highest = min(
            evidence.effects,
            key=lambda e: (evidence.endpoint_p.get(e, 1.0), -evidence.effects[e].minus_references),
        )
        drawn.append(_plane(evidence, along, direct, highest))
    return drawn


def _plane(
    evidence: Evidence, along: Mapping[str, Course], direct: Mapping[str, Course], endpoint: str
) -> Figure:
    def places(course: Course) -> list[tuple[float, float]]:
        height = course.endpoints[endpoint] if endpoint else course.misalignment
        return list(zip(course.capability, height, strict=True))

    drawn = [
        curves.Path(label, mark, places(course))
        for label, course, mark in _marked(evidence, along)
        if course.capability
    ]
    own = [curves.Path(t, "itself", places(c)) for t, c in direct.items() if c.capability]
    what = f"endpoint {endpoint}" if endpoint else "mean of all score endpoints"
    title = f"Capability and misalignment: {what}"
    said = _plane_said([*drawn, *own], along)
    if endpoint:
        said += " Picked after the fact: the endpoint on which the suspect stands out most."
    svg = curves.paths(
        [*drawn, *own],
        name="plane-endpoint" if endpoint else "plane-mean",
        title=title,
        axes=("capability: mean probability of the right answer", _PROBABILITY),
        said=said,
        arrows=True,
    )
    rows: list[tuple[Cell, ...]] = [
        (short(path.label), _role(evidence, path.label), step, x, y)
        for path in drawn
        for step, (x, y) in zip(along[path.label].steps, path.places, strict=True)
    ]
    rows += [(f"{short(p.label)}, itself", "suspect", "", *p.places[0]) for p in own]
    heads = ("teacher", "role", "step", "capability", "misalignment")
    return Figure(title, said, svg, Table(f"Data: {title}", heads, rows))


def _plane_said(drawn: Sequence[curves.Path], along: Mapping[str, Course]) -> str:
    said: list[str] = []
    for path in drawn:
        (a, b), (c, d) = path.places[0], path.places[-1]
        if path.mark == "suspect":
            said.append(
                f"The suspect's students went from capability {a:.3g}, misalignment {b:.3g} (M0) "
                f"to {c:.3g}, {d:.3g}."
            )
        elif path.mark == "itself":
            said.append(f"The suspect itself, hollow, is at {a:.3g}, {b:.3g}.")
    ends = [path.places[-1] for path in drawn if path.mark == "reference"]
    if ends:
        x, y = (statistics.median(part) for part in zip(*ends, strict=True))
        said.append(f"Those of {len(ends)} references end around {x:.3g}, {y:.3g}.")
    between = sorted({step for course in along.values() for step in course.steps[1:-1]})
    said.append(
        f"Arrows bend at the audited steps ({', '.join(map(str, between))})."
        if between
        else "Students were audited at the end of training only: each arrow is one leg from M0."
    )
    return " ".join(said)


def standing(
    evidence: Evidence,
    along: Mapping[str, Course],
    floor: float,
    why: Mapping[str, str],
) -> Drawn:
    """Return every score endpoint on one scale: spreads between suspect and references.

    Centre and scale are the score's: the median, and 1.48 median absolute deviations or `floor`,
    over suspect and references together; organisms and M0 are put on the scale so found.
    """
    compared = [*labels(evidence, "suspect"), *labels(evidence, "reference")]
    lines: list[Line] = []
    m0 = along.get(M0)
    names = list(dict.fromkeys(name for own in evidence.endpoints.values() for name in own))
    for name in names:
        means = {label: own[name] for label, own in evidence.endpoints.items() if name in own}
        known = [means[label] for label in compared if label in means]
        if not any(label in means for label in labels(evidence, "suspect")):
            continue
        centre = statistics.median(known)
        spread = 1.48 * statistics.median(abs(value - centre) for value in known)
        scale = max(spread, floor)
        points = _points({t: (value - centre) / scale for t, value in means.items()}, evidence)
        if m0 is not None:
            points.append(Point(M0, (m0.endpoints[name][0] - centre) / scale, "m0"))
        p = evidence.endpoint_p.get(name)
        lines.append(Line(name, "" if p is None else f"step-down p {p:.3g}", points))
    if not lines:
        reason = why.get("incrimination.p_value", "no reason was recorded")
        return Absent(f"The suspect's students have no value on any score endpoint: {reason}.")
    caption = "Every score endpoint, in spreads between teachers"
    said = " ".join(f"{line.name}: {figures.describe(line.points)}" for line in lines)
    svg = figures.rows(
        lines,
        name="endpoints-z",
        title=caption,
        axis="z against suspect and references (higher is more misaligned)",
        said=said,
    )
    rows: list[tuple[Cell, ...]] = [
        (line.name, short(p.label), _role(evidence, p.label), p.value)
        for line in lines
        for p in line.points
    ]
    table = Table(f"Data: {caption}", ("endpoint", "teacher", "role", "z"), rows)
    highest = [(p.value, line.name) for line in lines for p in line.points if p.mark == "suspect"]
    z, name = max(highest)
    words = f"The suspect stands highest on {name}, at z = {z:.3g}; a score is the largest z."
    return Figure(caption, words, svg, table)


def endpoint_strips(evidence: Evidence, along: Mapping[str, Course]) -> list[Drawn]:
    """Return one strip per score endpoint, in probability: means of each teacher's students."""
    m0 = along.get(M0)
    drawn: list[Drawn] = []
    names = list(dict.fromkeys(name for own in evidence.endpoints.values() for name in own))
    for i, name in enumerate(names):
        means = {label: own[name] for label, own in evidence.endpoints.items() if name in own}
        points = _points(means, evidence)
        points += [] if m0 is None else [Point(M0, m0.endpoints[name][0], "m0")]
        caption = f"Endpoint {short(name)}: mean of each teacher's students"
        svg = figures.strip(points, name=f"endpoint-{i}", title=caption, axis=_PROBABILITY)
        data = _listed(points, "mean probability", evidence)
        drawn.append(Figure(caption, figures.describe(points), svg, data))
    return drawn


def doses(evidence: Evidence, along: Mapping[str, Course]) -> list[Drawn]:
    """Return each score endpoint against training steps, where several were audited."""
    steps = sorted({step for course in along.values() for step in course.steps} - {0})
    if len(steps) < 2:
        at = f"once, at step {steps[0]}" if steps else "at no step that all recipes share"
        return [Absent(f"No dose curve: students were audited {at}, and a curve needs two steps.")]
    drawn: list[Drawn] = []
    for i, name in enumerate(next(iter(along.values())).endpoints):
        courses = [
            curves.Path(label, mark, list(zip(c.steps, c.endpoints[name], strict=True)))
            for label, c, mark in _marked(evidence, along)
        ]
        caption = f"Endpoint {short(name)} against training steps"
        said = " ".join(
            f"The suspect's students: {', '.join(f'{y:.3g} at step {x}' for x, y in p.places)}."
            for p in courses
            if p.mark == "suspect"
        )
        svg = curves.paths(
            courses,
            name=f"dose-{i}",
            title=caption,
            axes=("training steps of the students", _PROBABILITY),
            said=said,
            arrows=False,
            at=sorted({x for path in courses for x, _ in path.places}),
        )
        rows: list[tuple[Cell, ...]] = [
            (short(p.label), _role(evidence, p.label), int(x), y)
            for p in courses
            for x, y in p.places
        ]
        data = Table(f"Data: {caption}", ("teacher", "role", "step", "mean probability"), rows)
        drawn.append(Figure(caption, said, svg, data))
    return drawn


def ways(evidence: Evidence, alpha: float) -> Drawn:
    """Return the suspect's p-value by each way of looking, with and without students."""
    found = {"students": evidence.p_value, "direct": evidence.direct.p_value}
    found.update(evidence.baselines)
    suspect = next(iter(labels(evidence, "suspect")), "suspect")
    lines = [
        Line(WAYS.get(name, name), f"p = {p:.3g}", [Point(suspect, math.log10(p), "suspect")])
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
    svg = figures.by_p(lines, name="ways", title=caption, said=said, alpha=alpha)
    rows: list[tuple[Cell, ...]] = [(line.name, 10.0 ** line.points[0].value) for line in lines]
    return Figure(caption, said, svg, Table(f"Data: {caption}", ("way of looking", "p"), rows))


# --- who is who ----------------------------------------------------------------------------------


def _points(values: Mapping[str, float], evidence: Evidence) -> list[Point]:
    return [
        Point(label, values[label], mark)
        for mark, role in _MARKS
        for label in labels(evidence, role)
        if label in values
    ]


def _marked(evidence: Evidence, along: Mapping[str, Course]) -> list[tuple[str, Course, Mark]]:
    """Return the courses with their signs, references first."""
    found: list[tuple[str, Course, Mark]] = [
        (label, along[label], mark)
        for mark, role in _MARKS
        for label in labels(evidence, role)
        if label in along
    ]
    if M0 in along:
        found.append((M0, along[M0], "m0"))
    return found


def _role(evidence: Evidence, label: str) -> str:
    return evidence.roles.get(label, "student base" if label == M0 else "")


def _listed(points: Sequence[Point], what: str, evidence: Evidence) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (short(p.label), _role(evidence, p.label), p.value)
        for p in sorted(points, key=lambda p: -p.value)
    ]
    return Table("Data of this figure, highest first", ("teacher", "role", what), rows)
