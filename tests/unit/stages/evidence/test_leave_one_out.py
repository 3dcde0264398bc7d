"""What is left of a rate when a family, a drive or a recipe is left out."""

from __future__ import annotations

import numpy as np
import pytest

from doublebind.stages.evidence.conformal import n_allowed
from doublebind.stages.evidence.leave_one_out import (
    flag_without_family,
    held_out_p_value,
    is_flagged,
    max_flagged_by_chance,
)

FLOOR, ALPHA = 0.01, 0.05


def teachers(n: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    """Endpoint means of n benign teachers, (n, 3)."""
    return np.random.default_rng(seed).normal(0.1 + shift, 0.03, (n, 3)).clip(0, 1)


def test_a_far_teacher_is_flagged_and_an_ordinary_one_is_not() -> None:
    references = teachers(39, seed=0)
    assert is_flagged(np.full(3, 0.4), references, FLOOR, ALPHA) is True
    assert is_flagged(np.full(3, 0.1), references, FLOOR, ALPHA) is False


def test_too_few_references_flag_nobody_and_say_so() -> None:
    assert is_flagged(np.full(3, 0.9), teachers(18, seed=0), FLOOR, ALPHA) is None
    assert is_flagged(np.full(3, 0.9), teachers(19, seed=0), FLOOR, ALPHA) is True


def test_an_odd_family_is_flagged_by_all_others_where_its_own_would_hide_it() -> None:
    means = teachers(60, seed=1)
    means[:6] += 0.3  # one family of six, alike among themselves
    families = [str(i // 6) for i in range(60)]
    found = flag_without_family(means, families, FLOOR, ALPHA)
    assert found[:6] == [True] * 6
    assert sum(bool(each) for each in found[6:]) <= 4


def test_families_alike_are_flagged_about_alpha_of_the_time() -> None:
    rates = [
        np.mean(
            flag_without_family(
                teachers(60, seed=s), [str(i % 20) for i in range(60)], FLOOR, ALPHA
            )
        )
        for s in range(40)
    ]
    assert np.mean(rates) == pytest.approx(ALPHA, abs=0.015)


def test_the_rank_test_finds_held_out_teachers_above_the_panel() -> None:
    panel = teachers(60, seed=2)
    assert held_out_p_value(teachers(30, seed=3, shift=0.05), panel, FLOOR) < 0.001
    alike = [held_out_p_value(teachers(30, seed=100 + s), panel, FLOOR) for s in range(20)]
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
