"""A parametric p-value for few references, reported beside the conformal one.

Knows scores. Does not decide a single suspect's case. Numbers in brackets are
equations of docs/method.md.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    stdtr,  # pyright: ignore[reportUnknownVariableType]
)


def predictive_t_p_value(suspect: float, references: NDArray[np.float64]) -> float | None:
    """Return the one-sided p-value of t = (S_U - mean) / (sd sqrt(1 + 1/n)), n - 1 df. [14].

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
