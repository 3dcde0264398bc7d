"""Ranks, p-values and the decision rule."""

import numpy as np
import pytest
from scipy import stats

from doublebind.stages.evidence import conformal


@pytest.mark.parametrize(
    ("k", "n", "alpha", "flags"),
    [
        (0, 19, 0.05, True),
        (1, 19, 0.05, False),
        (0, 18, 0.05, False),
        (1, 39, 0.05, True),
        (2, 39, 0.05, False),
        (0, 99, 0.01, True),
        (0, 9, 0.1, True),
        (2, 29, 0.1, True),
        (6, 99, 0.07, True),
        (7, 99, 0.07, False),
        (28, 99, 0.29, True),
    ],
)
def test_p_equal_to_alpha_flags(k: int, n: int, alpha: float, flags: bool) -> None:
    assert (k <= conformal.n_allowed(n, alpha)) is flags


def test_comparing_floats_would_have_lost_a_case() -> None:
    lost = [
        (n, a)
        for a in (0.01, 0.03, 0.05, 0.07, 0.1, 0.15, 0.29)
        for n in range(1, 200)
        if int(a * (n + 1)) - 1 != conformal.n_allowed(n, a)
    ]
    assert lost, "integer ranks are needed nowhere: the guard guards nothing"


@pytest.mark.parametrize(
    ("alpha", "n"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.03, 33), (0.07, 14), (0.025, 39)]
)
def test_requirement_is_the_first_n_that_reaches_alpha(alpha: float, n: int) -> None:
    assert conformal.min_references(alpha) == n
    assert conformal.n_allowed(n, alpha) == 0
    assert conformal.n_allowed(n - 1, alpha) == -1
    assert conformal.smallest_p(n) <= alpha < conformal.smallest_p(n - 1)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_requirement_refuses_a_senseless_alpha(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be in"):
        conformal.min_references(alpha)


def test_ties_count_against_the_suspect() -> None:
    assert conformal.n_at_or_above(1.0, np.array([0.0, 1.0, 2.0])) == 2
    assert conformal.p_value(2, 3) == 0.75


@pytest.mark.parametrize("k", [-1, 20])
def test_impossible_rank_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k must be in"):
        conformal.p_value(k, 19)


def test_smoothed_p_lies_between_the_neighbouring_ranks() -> None:
    assert conformal.smoothed_p_value(0, 0, 19, 0.0) == 0.0
    assert conformal.smoothed_p_value(2, 3, 19, 1.0) == conformal.p_value(5, 19)


@pytest.mark.parametrize(
    ("n", "alpha", "published"),
    [(19, 1 / 20, 0.146), (39, 1 / 40, 0.074), (99, 0.01, 0.030), (199, 0.005, 0.015)],
)
def test_bound_of_the_strictest_rule_matches_its_closed_form(
    n: int, alpha: float, published: float
) -> None:
    bound = conformal.conditional_fpr_upper(n, alpha)
    assert bound == pytest.approx(1 - 0.05 ** (1 / n))
    assert bound == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (39, 0.05), (59, 0.1), (9, 0.4)])
def test_bound_solves_the_binomial_tail(n: int, alpha: float) -> None:
    bound = conformal.conditional_fpr_upper(n, alpha)
    assert bound is not None
    tail = stats.binom.cdf(conformal.n_allowed(n, alpha), n, bound)
    assert tail == pytest.approx(0.05)


def test_no_rule_no_bound() -> None:
    assert conformal.conditional_fpr_upper(4, 0.05) is None
