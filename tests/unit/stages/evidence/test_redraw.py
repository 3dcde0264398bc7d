"""References drawn anew, and checks of exchangeability with what they would find."""

from __future__ import annotations

import numpy as np
import pytest

from doublebind.stages.evidence import exchangeability as checks
from doublebind.stages.evidence.redraw import average_shares, compute_flag_shares
from doublebind.stages.evidence.score import ScoreRule, TeacherRows

RULE = ScoreRule(((0,), (1,)), floor=0.01, ridge=1.0)


def build_rows(means: np.ndarray) -> TeacherRows:
    return TeacherRows(means, np.zeros((len(means), 0)))


def test_a_far_teacher_is_flagged_by_every_draw_and_a_low_one_by_none() -> None:
    means = np.random.default_rng(0).normal(size=(62, 2))
    means[60], means[61] = 9.0, -9.0
    shares = compute_flag_shares(build_rows(means), [60, 61], range(60), 39, rule=RULE, alpha=0.05)
    assert shares.tolist() == [1.0, 0.0]


def test_members_of_the_pool_are_flagged_about_alpha_of_the_time() -> None:
    rng = np.random.default_rng(1)
    rates = [
        compute_flag_shares(
            build_rows(rng.normal(size=(60, 2))), range(60), range(60), 39, rule=RULE, alpha=0.05
        ).mean()
        for _ in range(10)
    ]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.01)


def test_a_pool_that_has_but_one_draw_is_refused() -> None:
    rows = build_rows(np.zeros((40, 2)))
    with pytest.raises(ValueError, match="draws of 39 from 39"):
        compute_flag_shares(rows, [39], range(39), 39, rule=RULE, alpha=0.05)


def test_the_interval_of_whole_flags_is_clopper_pearson() -> None:
    value, (low, high) = average_shares(np.array([1.0, 0.0, 0.0, 0.0]))
    assert value == 0.25
    assert (low, high) == pytest.approx((0.0063, 0.8059), abs=1e-4)


def test_the_checks_are_silent_on_like_teachers_and_speak_on_others() -> None:
    rng = np.random.default_rng(2)
    for check in (checks.check_ranks, checks.check_draws):
        alike = [check(rng.normal(size=20), rng.normal(size=39)) for _ in range(200)]
        assert np.mean(np.array(alike) <= 0.05) == pytest.approx(0.05, abs=0.045)
        assert check(rng.normal(2, 1, 20), rng.normal(size=39)) < 0.01
    families = [str(i // 5) for i in range(60)]
    alike = [checks.check_families(rng.normal(size=60), families) or 1.0 for _ in range(200)]
    assert np.mean(np.array(alike) <= 0.05) == pytest.approx(0.05, abs=0.045)
    apart = np.repeat(rng.normal(0, 3, 12), 5) + rng.normal(size=60)
    assert (checks.check_families(apart, families) or 1.0) < 0.001


def test_families_of_one_cannot_be_compared() -> None:
    assert checks.check_families(np.arange(5.0), list("abcde")) is None


def test_more_teachers_find_a_smaller_departure() -> None:
    few, many = checks.find_shift_by_ranks(5, 39), checks.find_shift_by_ranks(40, 60)
    assert few is not None
    assert many is not None
    assert many < few
    by_draws = checks.find_shift_by_draws(20, 39, 39, 0.05)
    assert by_draws is not None
    assert by_draws > many  # the tail alone says less than all ranks
    spread = checks.find_spread_of_families([str(i // 5) for i in range(60)])
    assert spread is not None
    assert 0.2 < spread < 2
    assert checks.find_spread_of_families(list("aabb")) is None
