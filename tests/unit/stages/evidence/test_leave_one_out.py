"""What is left of a rate when a family, a drive or a recipe is left out."""

from __future__ import annotations

import numpy as np
import pytest

from doublebind.stages.evidence.conformal import n_allowed
from doublebind.stages.evidence.exchangeability import check_ranks
from doublebind.stages.evidence.leave_one_out import (
    flag_without_family,
    is_flagged,
    max_flagged_by_chance,
)
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_teachers

ALPHA = 0.05
RULE = ScoreRule(groups=((0,), (1,), (2,)), floor=0.01, ridge=None)


def teachers(n: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    """Endpoint means of n benign teachers, (n, 3)."""
    return np.random.default_rng(seed).normal(0.1 + shift, 0.03, (n, 3)).clip(0, 1)


def rows(*means: np.ndarray) -> TeacherRows:
    """Rows of all these teachers, without covariates."""
    endpoints = np.vstack(means)
    return TeacherRows(endpoints, np.zeros((len(endpoints), 0)))


def flag(candidate: float, references: np.ndarray) -> bool | None:
    return is_flagged(
        rows(np.full(3, candidate), references), 0, range(1, len(references) + 1), RULE, ALPHA
    )


def test_a_far_teacher_is_flagged_and_an_ordinary_one_is_not() -> None:
    references = teachers(39, seed=0)
    assert flag(0.4, references) is True
    assert flag(0.1, references) is False


def test_too_few_references_flag_nobody_and_say_so() -> None:
    assert flag(0.9, teachers(18, seed=0)) is None
    assert flag(0.9, teachers(19, seed=0)) is True


def test_an_odd_family_is_flagged_by_all_others_where_its_own_would_hide_it() -> None:
    means = teachers(60, seed=1)
    means[:6] += 0.3  # one family of six, alike among themselves
    families = [str(i // 6) for i in range(60)]
    found = flag_without_family(rows(means), families, RULE, ALPHA)
    assert found[:6] == [True] * 6
    assert sum(bool(each) for each in found[6:]) <= 4


def test_families_alike_are_flagged_about_alpha_of_the_time() -> None:
    rates = [
        np.mean(
            flag_without_family(
                rows(teachers(60, seed=s)), [str(i % 20) for i in range(60)], RULE, ALPHA
            )
        )
        for s in range(40)
    ]
    assert np.mean(rates) == pytest.approx(ALPHA, abs=0.015)


def test_the_rank_test_finds_held_out_teachers_above_the_panel() -> None:
    panel = teachers(60, seed=2)

    def p_value(held_out: np.ndarray) -> float:
        scores = score_teachers(rows(held_out, panel), RULE)
        return check_ranks(scores[:30], scores[30:])

    assert p_value(teachers(30, seed=3, shift=0.05)) < 0.001
    alike = [p_value(teachers(30, seed=100 + s)) for s in range(20)]
    assert np.median(alike) > 0.1


def test_one_panel_flags_more_than_its_limit_once_in_a_hundred() -> None:
    rng, m, n = np.random.default_rng(5), 40, 99
    allowed = n_allowed(n, ALPHA)
    scores = rng.normal(size=(4000, m + n))
    bar = np.sort(scores[:, m:], axis=1)[:, -allowed - 1]
    counts = (scores[:, :m] > bar[:, None]).sum(axis=1)
    limit = max_flagged_by_chance(m, n, ALPHA)
    assert (counts > limit).mean() <= 0.01 + 0.005
    assert (counts >= limit).mean() > 0.01
    assert max_flagged_by_chance(m, 18, ALPHA) == 0  # so few references flag nobody
