"""Checks whether held-out benign teachers are like the references, and what a check would find.

Exchangeability cannot be shown; a departure can. Each check comes with the departure that it would
find in 80% of cases, since passing a blind check means nothing. Numbers in brackets are equations
of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from scipy.stats import (  # pyright: ignore[reportMissingTypeStubs]
    hypergeom,  # pyright: ignore[reportUnknownVariableType]
    kruskal,  # pyright: ignore[reportUnknownVariableType]
    mannwhitneyu,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import n_allowed
from doublebind.stages.evidence.detection import TARGET_DETECTION_RATE

LEVEL = 0.05
"""At or below it, a check says that the teachers differ."""

_STUDIES = 200
_SHIFTS = tuple(round(0.1 * step, 1) for step in range(1, 41))
_PERMUTATIONS = 999


def check_ranks(held_out: Floats, references: Floats) -> float:
    """Return the one-sided p-value that held-out teachers score above references. [44].

    Mann & Whitney (1947, doi 10.1214/aoms/1177730491).

    Args:
        held_out: Scores, standardised with those of the references.
        references: Their scores.
    """
    result = cast("Any", mannwhitneyu)(held_out, references, alternative="greater")
    return float(result.pvalue)


def check_families(scores: Floats, families: Sequence[str]) -> float | None:
    """Return the p-value that families of benign teachers score alike. [57].

    Kruskal & Wallis (1952, doi 10.1080/01621459.1952.10483441), over families of two or more.

    Returns:
        `None` with fewer than two of them, or where all scores are equal.
    """
    groups = _group_by_family(scores, families)
    if len(groups) < 2 or len(np.unique(np.concatenate(groups))) < 2:
        return None
    return float(cast("Any", kruskal)(*groups).pvalue)


def check_draws(held_out: Floats, references: Floats) -> float:
    """Return the one-sided p-value that held-out teachers are flagged in more draws. [58].

    Asks about the upper tail alone, where the ranks' check asks about all. By permutation of who
    was held out (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585).

    Args:
        held_out: Shares of draws that flag each, from `redraw.compute_flag_shares`.
        references: The same of the references, drawn from the same pool.
    """
    rng, m = np.random.default_rng(0), len(held_out)
    pool = np.concatenate([held_out, references])
    orders = np.stack([rng.permutation(len(pool))[:m] for _ in range(_PERMUTATIONS)])
    means = pool[orders].mean(axis=1)
    return float((1 + np.sum(means >= held_out.mean() - 1e-12)) / (_PERMUTATIONS + 1))


def find_shift_by_ranks(m: int, n: int) -> float | None:
    """Return the shift, in s.d., of m held-out teachers that `check_ranks` finds. [59]."""

    def check(rng: np.random.Generator, shift: float) -> float:
        return check_ranks(rng.normal(shift, 1, m), rng.normal(size=n))

    return _find_smallest(check)


def find_shift_by_draws(m: int, n: int, drawn: int, alpha: float) -> float | None:
    """Return the shift, in s.d., of m held-out teachers that `check_draws` finds. [59].

    On one normal score each, a teacher's share of draws follows from its rank in the pool.
    """
    allowed, size = n_allowed(drawn, alpha), m + n
    by_rank = cast("Any", hypergeom).cdf(allowed, size - 1, np.arange(size), drawn)

    def check(rng: np.random.Generator, shift: float) -> float:
        scores = np.concatenate([rng.normal(shift, 1, m), rng.normal(size=n)])
        above = size - 1 - np.argsort(np.argsort(scores))
        return check_draws(by_rank[above[:m]], by_rank[above[m:]])

    return _find_smallest(check)


def find_spread_of_families(families: Sequence[str]) -> float | None:
    """Return the s.d. between families, in s.d. within, that `check_families` finds. [59]."""

    def check(rng: np.random.Generator, spread: float) -> float:
        of_family = {name: rng.normal(0, spread) for name in dict.fromkeys(families)}
        scores = np.array([of_family[name] for name in families]) + rng.normal(size=len(families))
        p = check_families(scores, families)
        return 1.0 if p is None else p

    return _find_smallest(check)


def _group_by_family(scores: Floats, families: Sequence[str]) -> list[Floats]:
    names = np.array(families)
    groups = [scores[names == name] for name in dict.fromkeys(families)]
    return [group for group in groups if len(group) > 1]


def _find_smallest(check: Callable[[np.random.Generator, float], float]) -> float | None:
    """Return the smallest departure found in 80% of simulated cases; `None` above 4 s.d."""

    def detects(size: float) -> bool:
        rng = np.random.default_rng(0)
        rejections = [check(rng, size) <= LEVEL for _ in range(_STUDIES)]
        return float(np.mean(rejections)) >= TARGET_DETECTION_RATE

    low, high = -1, len(_SHIFTS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detects(_SHIFTS[middle]) else (middle, high)
    return _SHIFTS[high] if high < len(_SHIFTS) else None
