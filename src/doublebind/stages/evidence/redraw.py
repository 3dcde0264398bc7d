"""Weighs teachers against many draws of references from one pool of benign teachers.

A rate against one set of references is that set's: weighed against another, the same procedure
flags others. Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import n_allowed, n_at_or_above
from doublebind.stages.evidence.intervals import clopper_pearson
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_teachers

N_DRAWS = 100
"""Draws per teacher: the Monte Carlo s.e. of a teacher's share is at most 0.05."""


def compute_flag_shares(
    rows: TeacherRows,
    teachers: Sequence[int],
    pool: Sequence[int],
    n: int,
    *,
    rule: ScoreRule,
    alpha: float,
) -> Floats:
    """Return, per teacher, the share of draws of n references that flag it by rank. [56].

    Args:
        rows: All teachers.
        teachers: Positions of those that are weighed; one that is in the pool is drawn from the
            others alone.
        pool: Positions of the benign teachers, more than n.
        n: References in a draw.
        rule: From the protocol.
        alpha: Largest p-value that flags.

    Raises:
        ValueError: If the pool is too small to draw from, or n too few to reach alpha.
    """
    if len(pool) <= n or n_allowed(n, alpha) < 0:
        raise ValueError(f"draws of {n} from {len(pool)} cannot differ, or cannot reach {alpha:g}")
    shares: list[float] = []
    for teacher in teachers:
        rng = np.random.default_rng(0)  # the same places of the pool for everybody
        others = np.array([t for t in pool if t != teacher])
        drawn = np.stack([rng.choice(others, n, replace=False) for _ in range(N_DRAWS)])
        index = np.concatenate([np.full((N_DRAWS, 1), teacher), drawn], axis=1)
        scores = score_teachers(TeacherRows(rows.endpoints[index], rows.covariates[index]), rule)
        counts = n_at_or_above(scores[:, 0], scores[:, 1:])
        shares.append(float(np.mean(counts <= n_allowed(n, alpha))))
    return np.array(shares)


def average_shares(shares: Floats) -> tuple[float, tuple[float, float]]:
    """Return the mean share over teachers, with its 95% interval over teachers. [56].

    Clopper & Pearson's interval for as many whole flags: of all numbers in [0, 1] of one mean,
    flags vary most, so that it errs to the wide side.
    """
    low, high = clopper_pearson(float(shares.sum()), len(shares))
    return float(shares.mean()), (low, high)
