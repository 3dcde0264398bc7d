"""Estimates how large a teacher's shift on a score endpoint is, with an interval.

A rank has no size in it: with many items a trifle can be the largest of n + 1. Numbers in brackets
are equations of docs/method.md.
"""
# pandas ships no stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    stdtrit,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.schema.evidence import Interval
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import get_adjusted_settings
from doublebind.schema.score_table import M0, select_counted, split_contrast
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.endpoint_means import EndpointMeans, compute_log_odds
from doublebind.stages.evidence.score import (
    ScoreRule,
    TeacherRows,
    adjust_rows,
    average_groups,
)

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
"""Of the two-sided intervals."""

ItemMeans = Mapping[str, Floats]
"""Endpoint -> mean of each item over a teacher's students, less M0's in log-odds."""


def measure_shifts(rows: TeacherRows, rule: ScoreRule) -> Floats:
    """Return the first teacher's adjusted group means minus the median of the others'. [53].

    Args:
        rows: The teacher in question, then its references.
        rule: From the protocol; the unit of the shift is that of its endpoints.

    Returns:
        Shape (groups,).
    """
    means = average_groups(adjust_rows(rows, rule), rule.groups)
    return means[0] - np.median(means[1:], axis=0)


def build_intervals(
    shifts: Floats,
    items: ItemMeans,
    seeds: tuple[Floats, int] | None,
    protocol: Protocol,
) -> dict[str, Interval]:
    """Return score endpoint -> shift with its 95% interval over items and seeds. [54].

    The variance over items is the teacher's own, that over seeds is pooled over all compared
    teachers, and t is the mean of both quantiles weighted by the variances, as in equation 27. The
    references are taken as they are: how they scatter is what the rank is for.

    Args:
        shifts: From `measure_shifts`.
        items: Of the teacher, from `collect_item_means`.
        seeds: From `pool_seed_variance`; `None` where seeds cannot be told apart.
        protocol: Names the score endpoints.

    Returns:
        Score endpoints with an endpoint of fewer than two items are absent.
    """
    intervals: dict[str, Interval] = {}
    for group, (name, listed) in enumerate(protocol.score_endpoints.items()):
        parts = [items.get(part, np.zeros(0)) for entry in listed for part in split_contrast(entry)]
        if min(map(len, parts)) < 2:
            continue
        over_items = sum(float(np.var(part, ddof=1)) / len(part) for part in parts)
        variances = [over_items / len(listed) ** 2]
        degrees = [sum(len(part) - 1 for part in parts)]
        if seeds is not None:
            variances.append(float(seeds[0][group]))
            degrees.append(seeds[1])
        value, total = float(shifts[group]), sum(variances)
        quantiles = cast("Any", stdtrit)(np.array(degrees), (1 + CONFIDENCE) / 2)
        t = float(np.average(quantiles, weights=variances)) if total > 0 else 0.0
        half = t * float(np.sqrt(total))
        intervals[name] = Interval(value=value, low=value - half, high=value + half)
    return intervals


def pool_seed_variance(
    measured: EndpointMeans, teachers: Sequence[int], rule: ScoreRule
) -> tuple[Floats, int] | None:
    """Return the variance of a teacher's group means over seeds, and its degrees of freedom. [54].

    Pooled over teachers, whose pipelines are one. With one seed a recipe, seeds are told from
    recipes by what recipes do to all teachers alike; what a recipe does to one teacher counts as
    noise then, which errs to the wide side.

    Args:
        measured: Endpoint means by seed.
        teachers: Positions of the compared.
        rule: Gives groups and unit.

    Returns:
        The variances, shape (groups,); `None` with one student a teacher, or one missing.
    """
    by_seed = measured.values_by_seed if rule.ridge is None else measured.log_odds_by_seed
    means = average_groups(by_seed[list(teachers)], rule.groups)
    n, recipes, seeds, _ = means.shape
    if seeds > 1:
        rest, degrees = means - means.mean(axis=2, keepdims=True), n * recipes * (seeds - 1)
    else:
        rest = means - means.mean(axis=1, keepdims=True)
        rest = rest - rest.mean(axis=0, keepdims=True)
        degrees = (n - 1) * (recipes - 1)
    if degrees < 1 or not np.isfinite(means).all():
        return None
    variance = np.asarray((rest**2).sum(axis=(0, 1, 2)) / degrees, dtype=np.float64)
    return variance / (recipes * seeds), degrees


def collect_item_means(
    scores: pd.DataFrame, labels: Sequence[str], protocol: Protocol, rule: ScoreRule
) -> dict[str, dict[str, Floats]]:
    """Return teacher -> endpoint -> mean of each item over its students.

    In log-odds less M0's where the score is adjusted, else in probability; items without a value
    are left out.

    Args:
        scores: All rows of the study.
        labels: Teachers.
        protocol: Lists the endpoints and recipes.
        rule: From the protocol.
    """
    endpoints = {p for name in protocol.listed_endpoints for p in split_contrast(name)}
    rows: Any = cast("Any", scores)
    rows = rows[rows["endpoint"].isin(endpoints)]
    wanted = rows["teacher"].isin(list(labels)) & (rows["model_kind"] == "student")
    students = _average_over_students(
        rows[wanted & rows["recipe"].isin(protocol.recipe_names)], ["teacher"], protocol, rule
    )
    if rule.ridge is not None:
        m0 = _average_over_students(
            rows[(rows["teacher"] == M0) & (rows["model_kind"] == "m0")], [], protocol, rule
        )
        places = students.index.droplevel("teacher")
        students = (students - m0.reindex(places).to_numpy()).dropna()
    means: dict[str, dict[str, Floats]] = {}
    for (label, endpoint), cell in students.groupby(level=["teacher", "endpoint"], sort=False):
        means.setdefault(str(label), {})[str(endpoint)] = cell.to_numpy(dtype=np.float64)
    return means


def _average_over_students(rows: Any, by: list[str], protocol: Protocol, rule: ScoreRule) -> Any:
    """Return the mean of each item, indexed by `by`, endpoint and item."""
    rows = cast("Any", select_counted(rows, "audit", "auditable")).dropna(subset=["value"])
    if rule.ridge is not None:
        clip = get_adjusted_settings(protocol.score).clip
        values = compute_log_odds(rows["value"].to_numpy(dtype=np.float64), clip)
        rows = rows.assign(value=values)
    return rows.groupby([*by, "endpoint", "item"], sort=True)["value"].mean()
