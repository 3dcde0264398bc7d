"""Computes which endpoints and traits carry a result, and how large the shifts on them are.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from doublebind.schema.evidence import Effect, Interval
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import PLAIN
from doublebind.schema.score_table import M0, Endpoint
from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.effect_size import (
    build_intervals,
    collect_item_means,
    measure_shifts,
    pool_seed_variance,
)
from doublebind.stages.evidence.endpoint_effects import (
    specificity_margin,
    step_down_counts,
    subtract_reference_median,
)
from doublebind.stages.evidence.endpoint_means import (
    EndpointMeans,
    compute_endpoint_means,
    round_means,
)
from doublebind.stages.evidence.ranking import Measurement, Panel, explain_gaps
from doublebind.stages.evidence.score import (
    ScoreRule,
    adjust_rows,
    average_groups,
    standardise,
    standardise_groups,
)

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

Numbers = tuple[dict[str, Any], dict[str, str]]
"""Fields of the evidence, and why others are missing."""


def compare_endpoints(
    scores: pd.DataFrame, students: Measurement, panel: Panel, protocol: Protocol
) -> Numbers:
    """Return which endpoints and traits carry the result, and the effects. [15, 18]."""
    names, compared = tuple(protocol.score_endpoints), students.means[panel.compared]
    counts = _count_step_down(students, panel, panel.suspect)
    count_of = {name: int(k) for name, k in zip(names, counts, strict=True)}
    allowed = conformal.n_allowed(panel.n, protocol.alpha)
    m0 = compute_endpoint_means(scores, [M0], protocol, "m0")
    m0_means = m0.score_endpoint_means(protocol)[0, 0]
    shifts = subtract_reference_median(compared[0], compared[1:])
    reasons = (*m0.shortfalls, *m0.gaps.values())
    significant = tuple(name for name, k in count_of.items() if k <= allowed)
    return {
        "significant_endpoints": significant,
        "carried_by": _find_carriers(students, panel, protocol, significant),
        "endpoint_p": {name: conformal.p_value(k, panel.n) for name, k in count_of.items()},
        "effects": {
            name: Effect(
                minus_references=float(shifts[i]),
                minus_m0=float(compared[0, i] - m0_means[i]) if np.isfinite(m0_means[i]) else None,
            )
            for i, name in enumerate(names)
        },
        "traits": _find_traits(students, panel),
    }, {"effects.minus_m0": "; ".join(reasons)} if reasons else {}


def _find_carriers(
    students: Measurement, panel: Panel, protocol: Protocol, significant: Sequence[str]
) -> dict[str, str]:
    """Return score endpoint -> the listed endpoint on which the suspect is highest."""
    rule, listed = students.rule, students.endpoint_means.listed_endpoints
    rows = students.rows.select(panel.compared)
    z = standardise(adjust_rows(rows, rule), rule.floor)[0]
    return {
        name: max(protocol.score_endpoints[name], key=lambda entry: z[listed.index(entry)])
        for name in significant
    }


def _count_step_down(students: Measurement, panel: Panel, candidate: int) -> NDArray[np.int64]:
    """Return the step-down rank count of each score endpoint of a teacher. [15]."""
    rows = students.rows.select([candidate, *panel.references])
    return step_down_counts(standardise_groups(rows, students.rule))


def compute_sizes(
    scores: pd.DataFrame, students: Measurement, panel: Panel, protocol: Protocol
) -> Numbers:
    """Return the shift of each score endpoint with its interval. [53, 54].

    Of each positive control, where the protocol has a smallest effect, the largest lower end among
    the score endpoints on which it stands out: it is detected by rank and size, as a suspect is.
    """
    names, rule = tuple(protocol.score_endpoints), students.rule
    ranked = students.ranking.control_counts if students.ranking else {}
    controls = [o for o in panel.organisms if panel.labels[o] in ranked]
    wanted = [panel.suspect, *(controls if protocol.min_effect is not None else ())]
    items = collect_item_means(scores, [panel.labels[t] for t in wanted], protocol, rule)
    seeds = pool_seed_variance(students.endpoint_means, panel.compared, rule)
    allowed = conformal.n_allowed(panel.n, protocol.alpha)

    def measure(teacher: int) -> dict[str, Interval]:
        shifts = measure_shifts(students.rows.select([teacher, *panel.references]), rule)
        return build_intervals(shifts, items.get(panel.labels[teacher], {}), seeds, protocol)

    lows: dict[str, float] = {}
    for control in wanted[1:]:
        intervals, counts = measure(control), _count_step_down(students, panel, control)
        carried = [name for name, k in zip(names, counts, strict=True) if k <= allowed]
        known = [intervals[name].low for name in carried if name in intervals]
        if known:
            lows[panel.labels[control]] = max(known)
    shifts, missing = measure(panel.suspect), dict[str, str]()
    for name in names:
        if name not in shifts:
            missing[f"incrimination.shifts.{name}"] = "an endpoint of it has fewer than two items"
    if seeds is None:
        missing["incrimination.shifts.seeds"] = (
            "one student a teacher, so that the intervals are over items alone"
        )
    return {"shifts": shifts, "control_shifts": lows}, missing


def _find_traits(students: Measurement, panel: Panel) -> tuple[str, ...]:
    """Return the traits whose scored endpoints, averaged, put the suspect above every reference."""
    measured = students.endpoint_means
    names, columns = _list_traits(measured)
    rows = students.rows.select(panel.compared)
    means = round_means(average_groups(adjust_rows(rows, students.rule), columns))
    exceeds = np.all(means[0] > means[1:], axis=0)
    return tuple(name for name, above in zip(names, exceeds, strict=True) if above)


def _list_traits(measured: EndpointMeans) -> tuple[list[str], list[list[int]]]:
    """Return the traits of the listed endpoints, and the positions of those of each."""
    columns: dict[str, list[int]] = {}
    for column, endpoint in enumerate(measured.listed_endpoints):
        trait = Endpoint.parse(endpoint).trait
        if trait:
            columns.setdefault(trait, []).append(column)
    names = sorted(columns)
    return names, [columns[name] for name in names]


def compute_specificity(
    scores: pd.DataFrame, students: Measurement, panel: Panel, protocol: Protocol
) -> Numbers:
    """Return the effects on placebo traits, and by how much each scored trait exceeds them.

    Items of the same kinds, the same students and the same averages as for the score, on traits
    that nobody suspects. [18, 19].
    """
    names, columns = _list_traits(students.endpoint_means)
    if not protocol.placebo_endpoints or not names:
        absent = "placebo trait is measured" if names else "score endpoint names a trait"
        return {}, {"specificity": f"no {absent}"}
    placebo = protocol.model_copy(
        update={"score_endpoints": protocol.placebo_endpoints, "score": PLAIN}
    )
    measured = compute_endpoint_means(scores, panel.labels, placebo, "student")
    gap = explain_gaps(measured, panel, ScoreRule.from_protocol(placebo))
    if gap:
        return {}, {"specificity": gap}

    def subtract_references(names: Sequence[str], means: Floats) -> dict[str, float]:
        effects = subtract_reference_median(means[panel.suspect], means[panel.references])
        return {name: float(x) for name, x in zip(names, effects, strict=True)}

    placebo_means = measured.score_endpoint_means(placebo).mean(axis=1)
    placebos = subtract_references(tuple(placebo.score_endpoints), placebo_means)
    over_recipes = students.endpoint_means.values.mean(axis=1)
    effects = subtract_references(names, round_means(average_groups(over_recipes, columns)))
    return {
        "placebo_effects": placebos,
        "specificity": {
            name: specificity_margin(effects | placebos, name, tuple(placebos))
            for name in effects
            if name not in placebos
        },
    }, {}
