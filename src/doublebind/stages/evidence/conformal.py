"""Computes the suspect's rank among the references, its conformal p-value and error rates.

The exchangeable unit is the teacher. Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

CONFIDENCE = 0.95
"""Of every one-sided bound of the evidence."""


def exact_fraction(alpha: float) -> Fraction:
    """Return `alpha` as the decimal that was written: 0.05 is 1/20, not the nearest double."""
    return Fraction(repr(float(alpha)))


def n_at_or_above(suspect: ArrayLike, references: ArrayLike) -> NDArray[np.int64]:
    """Return k, how many references score at or above the suspect; ties count against it. [4].

    Args:
        suspect: Scores, shape (...).
        references: Scores, shape (..., n).
    """
    reached = np.asarray(references) >= np.asarray(suspect)[..., None]
    return np.asarray(reached.sum(axis=-1), dtype=np.int64)


def p_value(k: int, n: int) -> float:
    """Return the conformal p-value (1 + k) / (n + 1), in [1 / (n + 1), 1]. [5].

    Valid at every n if the suspect and the references are exchangeable (Vovk, Gammerman & Shafer
    2005; Bates et al. 2023, arXiv 2104.08279).

    Raises:
        ValueError: Unless 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must be in [0, {n}], got {k}")
    return (1 + k) / (n + 1)


def smoothed_p_value(n_above: int, n_equal: int, n: int, v: float) -> float:
    """Return the randomised p-value (#above + v (1 + #equal)) / (n + 1). [7].

    Exactly uniform under exchangeability when `v` is uniform on [0, 1) (Vovk et al. 2005). It is
    reported beside the p-value and decides nothing.
    """
    return (n_above + v * (1 + n_equal)) / (n + 1)


def n_allowed(n: int, alpha: float) -> int:
    """Return c, the largest k with (1 + k) / (n + 1) <= alpha, or -1 where there is none. [6].

    An integer, so that p = alpha exactly is never lost to rounding.

    Example:
        >>> [n_allowed(n, 0.05) for n in (4, 18, 19, 38, 39)]
        [-1, -1, 0, 0, 1]
    """
    return floor(exact_fraction(alpha) * (n + 1)) - 1


def min_references(alpha: float) -> int:
    """Return the smallest n with which p <= alpha can be reached: 1 / (n + 1) <= alpha. [8].

    `min_references(alpha / 2)` references are enough for `standard` strength.

    Raises:
        ValueError: Unless 0 < alpha < 1.

    Example:
        >>> min_references(0.05), min_references(0.025)
        (19, 39)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    return ceil(1 / exact_fraction(alpha)) - 1


def smallest_p(n: int) -> float:
    """Return 1 / (n + 1), the smallest p-value that n references can give. [8]."""
    return p_value(0, n)


def conditional_fpr_upper(n: int, alpha: float) -> float | None:
    """Return a 95% upper bound on the false-positive rate of the rule, given this panel. [9].

    The rule flags at k <= c (equation 6). Over panels of independent references with continuous
    scores its false-positive rate is distributed as Beta(c + 1, n - c) (Vovk 2012, arXiv
    1209.2673); the bound is that distribution's 95% point, which is also the Clopper-Pearson upper
    bound for c events in n. The p-value itself holds on average over panels; this holds for 95% of
    them.

    Returns:
        The bound, in (0, 1]; `None` where n references never reach alpha, so that no rule exists.
    """
    c = n_allowed(n, alpha)
    if c < 0:
        return None
    return 1.0 if c >= n else float(betaincinv(c + 1, n - c, CONFIDENCE))
