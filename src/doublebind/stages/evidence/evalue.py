"""Computes the evidence against the suspect as an e-value, which may be averaged.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

import numpy as np

from doublebind.stages.evidence.arrays import Floats


def soft_rank_e_value(suspect: float, references: Floats) -> float:
    """Return E = (n + 1) f(S_U) / sum of f over suspect and references, with f = exp. [10].

    Its mean is 1 under exchangeability, whatever f >= 0 is, so that P(E >= 1/alpha) <= alpha
    (conformal e-prediction, Vovk 2020, arXiv 2001.05989; Gauthier, Bach & Jordan 2025, arXiv
    2503.13050; soft ranks after Wang & Ramdas 2022, arXiv 2009.02824). f is fixed: the
    exponential of the standardised score. The largest score is subtracted first, so that none
    overflows.

    Args:
        suspect: Score of the suspect.
        references: Scores, shape (n,).

    Returns:
        The e-value, in [0, n + 1].
    """
    scores = np.append(references, suspect)
    weights = np.exp(scores - scores.max())
    return float(len(scores) * weights[-1] / weights.sum())
