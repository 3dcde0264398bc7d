"""Standardisation, the e-value, sensitivity and power: each against an independent computation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from doublebind.stages.evidence import detection as power
from doublebind.stages.evidence import evalue, score, sensitivity


def test_endpoint_is_scaled_by_the_median_deviation() -> None:
    means = np.array([[0.1], [0.2], [0.3], [0.4], [0.9]])
    z = score.standardise(means, 0.01)[:, 0]
    assert z == pytest.approx((means[:, 0] - 0.3) / (1.48 * 0.1))


def test_floor_holds_where_references_agree() -> None:
    means = np.array([[0.1], [0.1], [0.1], [0.2]])
    assert score.teacher_scores(means, 0.05) == pytest.approx([0, 0, 0, 2.0])


def test_score_is_the_largest_endpoint() -> None:
    means = np.array([[0.0, 0.5], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert score.teacher_scores(means, 0.5) == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_batched_scores_equal_single_ones() -> None:
    means = np.random.default_rng(0).uniform(size=(5, 8, 3))
    batched = score.teacher_scores(means, 0.01)
    assert batched == pytest.approx(np.stack([score.teacher_scores(m, 0.01) for m in means]))


def test_suspect_is_standardised_with_the_references() -> None:
    means = np.random.default_rng(1).uniform(size=(8, 3))
    rows = score.TeacherRows(means, np.zeros((8, 0)))
    rule = score.ScoreRule(((0,), (1,), (2,)), floor=0.01, ridge=None)
    own, others = score.score_as_suspect(rows, 0, range(1, 8), rule)
    assert [own, *others] == pytest.approx(score.teacher_scores(means, 0.01))


def test_e_value_is_its_definition() -> None:
    references = np.array([0.0, 1.0, -1.0])
    expected = 4 * np.exp(2) / (np.exp(2) + np.exp(references).sum())
    assert evalue.soft_rank_e_value(2.0, references) == pytest.approx(expected)


def test_e_value_survives_any_score() -> None:
    assert evalue.soft_rank_e_value(1e5, np.zeros(19)) == pytest.approx(20)
    assert evalue.soft_rank_e_value(-1e5, np.zeros(19)) == 0.0
    assert evalue.soft_rank_e_value(0.0, np.zeros(19)) == pytest.approx(1)


@pytest.mark.parametrize(("k", "n", "alpha"), [(0, 4, 0.4), (2, 5, 0.75), (0, 9, 0.1)])
def test_p_is_alpha_at_gamma_under_the_worst_of_all_weightings(
    k: int, n: int, alpha: float
) -> None:
    """At or above the suspect: itself and k references; weights in [1, G] peak at the ends."""
    gamma = sensitivity.gamma_at_alpha(k, n, alpha)
    reach = np.array([1] * (k + 1) + [0] * (n - k))
    worst = max(float(np.dot(w, reach) / np.sum(w)) for w in product((1.0, gamma), repeat=n + 1))
    assert worst == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("k", "n", "gamma"), [(0, 19, 1.0), (0, 38, 2.0), (1, 39, 1.0), (0, 37, 37 / 19), (19, 19, 0.0)]
)
def test_gamma_is_exact(k: int, n: int, gamma: float) -> None:
    assert sensitivity.gamma_at_alpha(k, n, 0.05) == gamma


@pytest.mark.parametrize(("detected", "controls"), [(1, 6), (3, 6), (6, 6), (11, 12)])
def test_detection_bound_solves_the_binomial_tail(detected: int, controls: int) -> None:
    bound = power.detection_lower_bound(detected, controls)
    assert stats.binom.sf(detected - 1, controls, bound) == pytest.approx(0.05)


def test_five_of_five_is_just_enough_and_four_is_not() -> None:
    assert power.detection_lower_bound(5, 5) >= 0.5 > power.detection_lower_bound(4, 4)
    assert power.detection_lower_bound(0, 5) == 0.0


@pytest.mark.parametrize(("detected", "controls"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(detected: int, controls: int) -> None:
    with pytest.raises(ValueError, match="detected must be in"):
        power.detection_lower_bound(detected, controls)
