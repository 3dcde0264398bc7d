"""Power of the adjusted score: the library against a script that shares no code with it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.statistics import adjusted_power as script

from doublebind.stages.evidence import adjustment
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_teachers

PUBLISHED = {
    "max over 30 endpoints": (0.04, 0.09, 0.17, 0.32, 0.71),
    "drive means, max": (0.04, 0.21, 0.49, 0.70, 0.94),
    "adjusted, drive means, max": (0.04, 0.30, 0.62, 0.87, 1.00),
    "the same, n = 19": (0.05, 0.18, 0.37, 0.60, 0.86),
    "the same, covariates of pure noise": (0.06, 0.17, 0.42, 0.62, 0.91),
    "the same, one of three endpoints moved": (0.05, 0.08, 0.10, 0.13, 0.28),
}
"""What was expected of each score before it was built, at shifts of 0, 1, 1.5, 2 and 3 s.d."""

GROUPS = tuple((3 * d, 3 * d + 1, 3 * d + 2) for d in range(script.DRIVES))


@pytest.mark.parametrize("n", [19, 39])
def test_library_and_script_give_the_same_scores(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(adjustment, "count_usable_covariates", lambda n: 6)
    x, c = script.draw(np.random.default_rng(n), 50, n, 1.5)
    rule = ScoreRule(GROUPS, floor=1e-6, ridge=1.0)
    scores = script.score("adjusted", x, c)
    assert score_teachers(TeacherRows(x, c), rule) == pytest.approx(scores, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("row", PUBLISHED)
def test_the_script_reproduces_what_was_expected(row: str) -> None:
    name, n, world = script.ROWS[row]
    rates = [script.power(name, n, shift, 6000, **world) for shift in script.SHIFTS]
    print(row, rates)
    assert rates == pytest.approx(PUBLISHED[row], abs=0.03)
