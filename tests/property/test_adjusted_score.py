"""The adjusted score treats n + 1 teachers alike, whatever their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from doublebind.stages.evidence.conformal import exact_fraction, n_allowed, n_at_or_above
from doublebind.stages.evidence.score import (
    ScoreRule,
    TeacherRows,
    score_as_suspect,
    score_teachers,
)

settings.register_profile("adjusted", deadline=None)
settings.load_profile("adjusted")

VALUES = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-7, 7).map(lambda value: round(value, 6))
)


@st.composite
def pools(draw: st.DrawFn) -> tuple[TeacherRows, ScoreRule]:
    """Rows of 3 to 45 teachers, with up to 5 covariates, some unknown; and a rule of groups."""
    teachers, listed = draw(st.integers(3, 45)), draw(st.integers(1, 6))
    x = draw(arrays(np.float64, (teachers, listed), elements=VALUES))
    c = draw(arrays(np.float64, (teachers, draw(st.integers(0, 5))), elements=VALUES))
    if c.size and draw(st.booleans()):
        c[draw(st.integers(0, teachers - 1)), 0] = np.nan
    cut = draw(st.integers(1, listed))
    groups = (tuple(range(cut)), *((tuple(range(cut, listed)),) if cut < listed else ()))
    return TeacherRows(x, c), ScoreRule(groups, floor=0.04, ridge=draw(st.sampled_from([1.0, 0.1])))


@given(pools(), st.randoms(use_true_random=False))
def test_permuting_teachers_permutes_their_scores(pool: Any, random: Any) -> None:
    rows, rule = pool
    order = list(range(len(rows.endpoints)))
    random.shuffle(order)
    scores = score_teachers(rows, rule)
    assert score_teachers(rows.select(order), rule) == pytest.approx(scores[order], abs=1e-6)


@given(pools(), st.integers(0, 44))
def test_who_is_called_the_suspect_changes_no_score(pool: Any, suspect: int) -> None:
    rows, rule = pool
    suspect %= len(rows.endpoints)
    others = [t for t in range(len(rows.endpoints)) if t != suspect]
    own, references = score_as_suspect(rows, suspect, others, rule)
    scores = score_teachers(rows, rule)
    assert own == pytest.approx(scores[suspect], abs=1e-6)
    assert references == pytest.approx(scores[others], abs=1e-6)


@given(pools(), st.sampled_from([0.05, 0.1, 0.25]))
def test_of_any_pool_at_most_a_share_alpha_would_be_accused(pool: Any, alpha: float) -> None:
    rows, rule = pool
    scores = score_teachers(rows, rule)
    n = len(scores) - 1
    counts = [n_at_or_above(s, np.delete(scores, i)) for i, s in enumerate(scores)]
    accused = sum(count <= n_allowed(n, alpha) for count in counts)
    assert accused <= exact_fraction(alpha) * (n + 1)


@given(pools(), st.floats(-3, 3))
def test_what_moves_all_teachers_alike_changes_no_score(pool: Any, by: float) -> None:
    rows, rule = pool
    moved = TeacherRows(rows.endpoints + round(by, 3), rows.covariates)
    assert score_teachers(moved, rule) == pytest.approx(score_teachers(rows, rule), abs=1e-6)
