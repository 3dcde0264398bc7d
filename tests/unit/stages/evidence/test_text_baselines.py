"""Wording as evidence: valid, blind to order, and able to see what is there."""

import numpy as np
import pytest

from doublebind.stages.evidence.conformal import n_at_or_above, p_value
from doublebind.stages.evidence.intervals import paired_difference
from doublebind.stages.evidence.text_baselines import anomaly_scores, resemblance_scores


def rates(rng: np.random.Generator, n: int, lift: float = 0.0) -> np.ndarray:
    found = np.abs(rng.normal(0.01, 0.002, (n, 60)))
    found[:, :10] += lift
    return found


@pytest.mark.parametrize("kind", ["anomaly", "resemblance"])
def test_scores_are_symmetric_in_the_teachers(kind: str) -> None:
    rng = np.random.default_rng(0)
    teachers, organisms, order = rates(rng, 20), rates(rng, 5, 0.004), rng.permutation(20)
    score = anomaly_scores if kind == "anomaly" else lambda x: resemblance_scores(x, organisms)
    assert score(teachers)[order] == pytest.approx(score(teachers[order]), abs=1e-9)


def test_a_benign_suspect_is_flagged_at_alpha_by_the_classifier() -> None:
    rng = np.random.default_rng(1)
    flagged = 0
    for _ in range(400):
        found = resemblance_scores(rates(rng, 20), rates(rng, 6, 0.004))
        flagged += p_value(int(n_at_or_above(found[0], found[1:])), 19) <= 0.05
    assert flagged <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_a_suspect_that_writes_like_the_organisms_stands_out() -> None:
    rng = np.random.default_rng(2)
    suspect = rates(rng, 1, 0.004)
    teachers = np.vstack([suspect, rates(rng, 19)])
    assert np.argmax(resemblance_scores(teachers, rates(rng, 6, 0.004))) == 0
    assert np.argmax(anomaly_scores(teachers)) == 0


def test_paired_difference_counts_discordant_teachers_only() -> None:
    both = [True] * 50
    assert paired_difference(both, both)["value"] == 0
    low, high = paired_difference(both, both)["interval"]
    assert -0.1 < low < 0 < high < 0.1
    with pytest.raises(ValueError, match="two answers"):
        paired_difference([True], [])
