"""Which shift a pilot's references would find; and several suspects together."""

from __future__ import annotations

import numpy as np
import pytest

from doublebind.stages.evidence.many_suspects import (
    adjust_for_suspects,
    min_references_for_suspects,
)
from doublebind.stages.evidence.score import ScoreRule, TeacherRows
from doublebind.stages.evidence.score_power import tabulate_score_power

GROUPS = tuple((3 * g, 3 * g + 1, 3 * g + 2) for g in range(4))


def build_pilot(n: int, drift: float) -> tuple[TeacherRows, np.ndarray]:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(n, 1))
    x = drift * common + rng.normal(size=(n, 12))
    shown = np.hstack([common + 0.3 * rng.normal(size=(n, 1)), np.full((n, 1), np.nan)])
    return TeacherRows(x, shown), np.full((n, 12), 0.5)


def test_more_references_find_smaller_shifts_and_covariates_help() -> None:
    rows, probabilities = build_pilot(40, drift=2.0)
    rule = ScoreRule(GROUPS, floor=0.04, ridge=1.0)
    table = tabulate_score_power(rows, probabilities, rule, 0.05)
    assert [row.references for row in table] == [19, 39, 59, 99]
    sizes = [row.smallest_sd for row in table]
    assert None not in sizes
    assert sizes[0] > sizes[-1]  # type: ignore[operator]
    assert table[1].power["1"] <= table[1].power["2"] <= table[1].power["3"]
    blind = TeacherRows(rows.endpoints, np.zeros((40, 0)))
    without = tabulate_score_power(blind, probabilities, rule, 0.05)[1]
    assert without.power["2"] < table[1].power["2"] - 0.1


def test_the_smallest_shift_is_given_in_three_units() -> None:
    rows, probabilities = build_pilot(60, drift=0.0)
    row = tabulate_score_power(rows, probabilities, ScoreRule(GROUPS, 0.04, 1.0), 0.05)[1]
    assert row.smallest_sd is not None
    assert row.smallest == pytest.approx(row.smallest_sd, rel=0.15)  # s.d. of about 1
    assert row.smallest_probability == pytest.approx((row.smallest or 0) / 4, rel=0.01)


def test_benjamini_hochberg_is_the_textbooks() -> None:
    p = [0.01, 0.04, 0.03, 0.5]
    assert adjust_for_suspects(p) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


@pytest.mark.parametrize("m", [1, 2, 3, 10, 40])
def test_one_fewer_reference_and_no_suspect_alone_can_pass(m: int) -> None:
    n = min_references_for_suspects(m, 0.05)
    others = [1.0] * (m - 1)
    assert adjust_for_suspects([1 / (n + 1), *others])[0] <= 0.05 + 1e-12
    assert adjust_for_suspects([1 / n, *others])[0] > 0.05
