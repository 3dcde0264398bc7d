"""Numbers beside the p-value: a parametric one for few references, and a rule for many suspects.

Knows scores and rank counts. Does not decide a single suspect's case. Numbers in brackets are
equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    stdtr,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.evidence.conformal import exact


def predictive_t_p_value(suspect: float, references: NDArray[np.float64]) -> float | None:
    """Return the one-sided p-value of t = (S_U - mean) / (sd sqrt(1 + 1/n)), n - 1 df. [15].

    The prediction-interval test for one new observation from a normal population (Geisser 1993,
    Predictive Inference). Its level rests on normality in the tail, which few references cannot
    show: secondary to the conformal p-value, and no decision uses it.

    Args:
        suspect: Score of the suspect.
        references: Scores, shape (n,).

    Returns:
        In (0, 1); `None` below two references or where they do not differ.
    """
    n = len(references)
    if n < 2:
        return None
    spread = float(np.std(references, ddof=1))
    if spread == 0:
        return None
    t = (suspect - float(np.mean(references))) / (spread * np.sqrt(1 + 1 / n))
    return float(cast("Any", stdtr)(n - 1, -t))


def benjamini_hochberg(counts: Sequence[int], n: int, q: float) -> tuple[bool, ...]:
    """Return which of many suspects are selected at false-discovery rate `q`. [19].

    For suspects weighed against the same n references: the largest i with p_(i) <= q i / m and all
    before it (Benjamini & Hochberg 1995, doi 10.1111/j.2517-6161.1995.tb02031.x). Conformal
    p-values that share references are positively dependent, so the rate is held (Bates et al. 2023,
    arXiv 2104.08279). Compared in exact arithmetic.

    Args:
        counts: References at or above each suspect, m numbers in [0, n].
        n: References.
        q: False-discovery rate, in (0, 1).
    """
    level, m = exact(q), len(counts)
    passing = [
        count
        for i, count in enumerate(sorted(counts), start=1)
        if (1 + count) * m <= level * i * (n + 1)
    ]
    return tuple(bool(passing) and count <= passing[-1] for count in counts)
