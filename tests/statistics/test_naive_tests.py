"""What other ways of testing would do to benign teachers: the reason for ranks over teachers.

`python tests/statistics/test_naive_tests.py` prints the table that opens docs/method.md. Every
rate is a false-positive rate: suspect and references are drawn alike, at a nominal level of 5%.
"""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.score import teacher_scores

ALPHA = 0.05
STUDIES = 4000


def pooled_samples(rng: np.random.Generator, spread: float) -> tuple[float, float]:
    """One-sided z-test of the suspect's 2000 samples against those of 19 references, pooled."""
    n, samples = 19, 2000
    rates = np.clip(0.05 + spread * rng.normal(size=(STUDIES, n + 1)), 0, 1)
    hits = rng.binomial(samples, rates)
    own, others = hits[:, 0] / samples, hits[:, 1:].sum(axis=1) / (n * samples)
    pooled = hits.sum(axis=1) / ((n + 1) * samples)
    error = np.sqrt(pooled * (1 - pooled) * (1 / samples + 1 / (n * samples)))
    naive = np.mean((own - others) / error > stats.norm.isf(ALPHA))
    return float(naive), ours(hits[..., None] / samples)


def students_as_units(rng: np.random.Generator, students: int) -> tuple[float, float]:
    """Welch's t-test on students, where teachers vary as much as students of one teacher do."""
    n = 19
    teachers = rng.normal(size=(STUDIES, n + 1, 1))
    each = teachers + rng.normal(size=(STUDIES, n + 1, students))
    test = stats.ttest_ind(
        each[:, 0], each[:, 1:].reshape(STUDIES, -1), axis=1, equal_var=False, alternative="greater"
    )
    return float(np.mean(test.pvalue <= ALPHA)), ours(each.mean(axis=2, keepdims=True))


def best_of_recipes(rng: np.random.Generator, recipes: int) -> tuple[float, float]:
    """The smallest conformal p over independent recipes, each tested alone."""
    n = 19
    scores = rng.normal(size=(STUDIES, n + 1, recipes))
    k = np.min(np.sum(scores[:, 1:] >= scores[:, :1], axis=1), axis=1)
    return float(np.mean(k <= conformal.n_allowed(n, ALPHA))), ours(scores)


def outside_the_range(rng: np.random.Generator, references: int) -> tuple[float, float]:
    """Outside [min, max] of the references, either side, reported as significant."""
    scores = rng.normal(size=(STUDIES, references + 1, 1))
    own, others = scores[:, 0, 0], scores[:, 1:, 0]
    outside = (own > others.max(axis=1)) | (own < others.min(axis=1))
    return float(np.mean(outside)), ours(scores)


def ours(means: np.ndarray) -> float:
    """The flag rate of this project's rule on the same draws."""
    scores = teacher_scores(means, 1e-6)
    k = conformal.n_at_or_above(scores[:, 0], scores[:, 1:])
    return float(np.mean(k <= conformal.n_allowed(means.shape[1] - 1, ALPHA)))


Naive = Callable[[np.random.Generator, float], tuple[float, float]]
TABLE: list[tuple[str, Naive, float]] = [
    ("pooled samples, teachers differ by s.d. 1 point", pooled_samples, 0.01),
    ("pooled samples, s.d. 2 points", pooled_samples, 0.02),
    ("pooled samples, s.d. 5 points", pooled_samples, 0.05),
    ("3 students a teacher as units, Welch t", students_as_units, 3),
    ("10 students a teacher as units, Welch t", students_as_units, 10),
    ("best of 3 recipes", best_of_recipes, 3),
    ("best of 12 recipes", best_of_recipes, 12),
    ("outside the range of 5 references, two-sided", outside_the_range, 5),
    ("outside the range of 9 references, two-sided", outside_the_range, 9),
]


@pytest.mark.parametrize(("name", "naive", "size"), TABLE, ids=[row[0] for row in TABLE])
def test_naive_test_accuses_more_than_a_tenth_where_ours_keeps_its_level(
    name: str, naive: Naive, size: float
) -> None:
    rate, own = naive(np.random.default_rng(11), size)
    assert rate > 0.1
    assert own <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / STUDIES)


def test_naive_test_is_fine_where_teachers_do_not_differ() -> None:
    """The control of the control: without spread the pooled test holds its level."""
    rate, _ = pooled_samples(np.random.default_rng(12), 0.0)
    assert rate <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / STUDIES)


if __name__ == "__main__":
    print("| test, nominal level 5% | accuses benign teachers | ranks over teachers |")
    print("|---|---|---|")
    for label, test, scale in TABLE:
        false, exact = test(np.random.default_rng(11), scale)
        print(f"| {label} | {false:.3f} | {exact:.3f} |")
