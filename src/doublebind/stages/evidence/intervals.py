"""Computes means and rates with intervals, for people to read; no decision uses them.

Intervals: Student's t over items; Clopper & Pearson (1934) over teachers; Korn & Graubard (1998)
over teachers that come in families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    betaincinv,
    stdtrit,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import CONFIDENCE, n_allowed, p_value

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


NORMAL_975 = 1.959964
"""The standard normal's 97.5% point."""


def summarise_endpoints(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one entry per endpoint of one model: name, role, value, interval, n, unscored.

    `value` is the mean over scored items, in [0, 1]; `interval` its two-sided 95% t-interval over
    items, cut to [0, 1]; both are absent (`null`) where too few items have a value.
    """
    entries: list[dict[str, Any]] = []
    groups = cast("Any", scores).groupby(["endpoint", "role"], sort=True)
    for (name, role), rows in groups:
        values = np.asarray(rows["value"].dropna(), dtype=np.float64)
        n = len(values)
        entry: dict[str, Any] = {"name": name, "role": role, "value": None, "interval": None}
        if n >= 1:
            mean = mean_interval(values)
            entry["value"] = mean["value"]
            if "interval" in mean:
                low, high = mean["interval"]
                entry["interval"] = [max(0.0, low), min(1.0, high)]
        entries.append(entry | {"n": n, "unscored": int(len(rows) - n)})
    return entries


def mean_interval(values: Floats) -> dict[str, Any]:
    """Return a mean, with its two-sided 95% t-interval where there are two values or more.

    Args:
        values: One number per item, at least one.

    Example:
        >>> mean = mean_interval(np.array([0.0, 1.0, 2.0]))
        >>> mean["value"], [round(bound, 2) for bound in mean["interval"]]
        (1.0, [-1.48, 3.48])
    """
    n, mean = len(values), float(values.mean())
    if n < 2:
        return {"value": mean}
    quantile = float(cast("Any", stdtrit)(n - 1, (1 + CONFIDENCE) / 2))
    half = quantile * float(values.std(ddof=1)) / n**0.5
    return {"value": mean, "interval": [mean - half, mean + half]}


def rank_measures(
    measures: Mapping[str, float], others: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return one entry per measure that all have: name, value, median, n_at_or_above, p_value.

    p is [5] of that measure alone; of many measures some are small by chance.

    Example:
        >>> rank_measures({"norm": 2.0}, [{"norm": 1.0}, {"norm": 3.0}])[0]["n_at_or_above"]
        1
    """
    entries: list[dict[str, Any]] = []
    for name in measures:
        values = [other[name] for other in others if name in other]
        if len(values) < len(others) or not values:
            continue
        above = sum(value >= measures[name] for value in values)
        entries.append(
            {
                "name": name,
                "value": measures[name],
                "median": float(np.median(values)),
                "n_at_or_above": above,
                "p_value": p_value(above, len(values)),
            }
        )
    return entries


def rate_interval(k: int, n: int) -> dict[str, Any]:
    """Return the rate k / n with its two-sided 95% Clopper-Pearson interval.

    Raises:
        ValueError: Unless 0 <= k <= n and n >= 1.

    Example:
        >>> rate = rate_interval(0, 19)
        >>> rate["value"], [round(bound, 3) for bound in rate["interval"]]
        (0.0, [0.0, 0.176])
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k={k}, n={n}")
    return {"value": k / n, "interval": clopper_pearson(k, n), "k": k, "n": n}


def clopper_pearson(k: float, n: float) -> list[float]:
    """Return the interval for k of n, neither of them whole where n is an effective number."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if k <= 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k >= n else float(betaincinv(k + 1, n - k, 1 - tail))
    return [low, high]


def clustered_rate_interval(flags: Sequence[bool], clusters: Sequence[str]) -> dict[str, Any]:
    """Return `rate_interval` of the flags with `clustered`, an interval that allows for clusters.

    Teachers of one family fail together and hold less information than as many independent ones:
    the number of teachers is divided by the design effect, and by a factor for the few degrees of
    freedom of the clusters. [47]. Korn & Graubard (1998), Survey Methodology 24, 193-201. With
    one cluster there is no such interval, and where all flags agree no design effect can be seen.

    Args:
        flags: One per teacher, at least one.
        clusters: The family or drive of each.

    Example:
        >>> rate = clustered_rate_interval([True, True, True, False, False, False], list("aaabbb"))
        >>> rate["interval"] != rate["clustered"], rate["n_clusters"]
        (True, 2)
    """
    n, k = len(flags), sum(flags)
    names = sorted(set(clusters))
    summary = rate_interval(k, n) | {"n_clusters": len(names)}
    if len(names) < 2:
        return summary
    rate = k / n
    sums = [sum(f - rate for f, c in zip(flags, clusters, strict=True) if c == a) for a in names]
    variance = len(names) / (len(names) - 1) * sum(total**2 for total in sums) / n**2
    effective = rate * (1 - rate) / variance if variance > 0 else float(n)
    upper = (1 + CONFIDENCE) / 2
    few, many = (float(cast("Any", stdtrit)(df, upper)) for df in (len(names) - 1, n - 1))
    effective = min(float(n), effective) * (many / few) ** 2
    return summary | {"clustered": clopper_pearson(effective * rate, effective)}


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, Any]:
    """Return the difference of two rates on the same teachers, with its two-sided 95% interval.

    Adjusted Wald for paired proportions. [37]. Bonett & Price (2012, doi
    10.3102/1076998611411915).

    Args:
        ours: Flags of one procedure, at least one teacher.
        theirs: Flags of another on the same teachers.

    Raises:
        ValueError: Unless both are of one length, 1 or more.

    Example:
        >>> difference = paired_difference([True] * 8 + [False] * 2, [True] * 2 + [False] * 8)
        >>> round(difference["value"], 3), [round(x, 2) for x in difference["interval"]]
        (0.6, [0.13, 0.87])
    """
    n = len(ours)
    if n < 1 or n != len(theirs):
        raise ValueError(f"need two answers on each of >= 1 teachers, got {n} and {len(theirs)}")
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    p, q = (only_ours + 1) / (n + 2), (only_theirs + 1) / (n + 2)
    half = NORMAL_975 * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    interval = [float(max(-1.0, p - q - half)), float(min(1.0, p - q + half))]
    return {"value": (only_ours - only_theirs) / n, "interval": interval, "n": n}


def reaches_alpha(p_value: float, n: int, alpha: float) -> bool:
    """Return whether a conformal p-value from n references is at most alpha, by ranks.

    Both sides are one division of integers by n + 1, so that the comparison is exact.
    """
    return p_value <= (1 + n_allowed(n, alpha)) / (n + 1)
