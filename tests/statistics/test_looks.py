"""Looking more than once: why neither p-values nor products of e-values may stop a study early.

`python tests/statistics/test_looks.py` prints the figure of docs/method.md.
"""

import numpy as np

from doublebind.stages.evidence import conformal, evalue
from doublebind.stages.evidence.score import teacher_scores

ALPHA = 0.05
LOOKS, PER_LOOK = 8, 19


def e_values(rng: np.random.Generator, studies: int, n: int = PER_LOOK) -> np.ndarray:
    """E-values of one suspect against fresh references at each look, (studies, looks)."""
    suspects = rng.normal(size=(studies, 1, 1, 1)).repeat(LOOKS, axis=1)
    means = np.concatenate([suspects, rng.normal(size=(studies, LOOKS, n, 1))], axis=2)
    scores = teacher_scores(means, 1e-6)
    return np.array([[evalue.soft_rank_e_value(s[0], s[1:]) for s in study] for study in scores])


def bound(rate: float, draws: int) -> float:
    return rate + 3 * np.sqrt(rate * (1 - rate) / draws)


def test_product_of_looks_that_share_the_suspect_accuses_too_many() -> None:
    e = e_values(np.random.default_rng(61), 1000)
    assert np.mean(np.cumprod(e, axis=1).max(axis=1) >= 1 / ALPHA) > 2 * ALPHA


def test_stopping_by_p_accuses_too_many() -> None:
    """References added until p <= alpha, up to 8 looks."""
    rng, studies = np.random.default_rng(62), 4000
    scores = rng.normal(size=(studies, 1 + LOOKS * PER_LOOK))
    flagged = np.zeros(studies, dtype=bool)
    for look in range(1, LOOKS + 1):
        n = look * PER_LOOK
        k = conformal.n_at_or_above(scores[:, 0], scores[:, 1 : n + 1])
        flagged |= k <= conformal.n_allowed(n, ALPHA)
    assert np.mean(flagged) > bound(ALPHA, studies)


if __name__ == "__main__":
    drawn = e_values(np.random.default_rng(64), 10_000, 79)
    print("product:", float(np.mean(np.cumprod(drawn, axis=1).max(axis=1) >= 1 / ALPHA)))
