"""Intervals contain the truth as often as they say, in simulations where it is known."""

import numpy as np
import pytest
from scipy import stats

from doublebind.stages.evidence import detection as power
from doublebind.stages.evidence import transfer

NOMINAL = 0.95


def least(draws: int, nominal: float = NOMINAL) -> float:
    return nominal - 3 * np.sqrt(nominal * (1 - nominal) / draws)


def answers(
    rng: np.random.Generator, seeds: int, items: int, tau: float, shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Students, teacher and M0 on the same items, of mean shifts tau * shift and shift.

    The population of items is infinite: M0 and the teacher's effect differ by item.
    """
    m0 = np.clip(0.3 + 0.1 * rng.normal(size=items), 0, 1)
    moved = shift + 0.1 * rng.normal(size=items)
    own = tau * moved + 0.05 * rng.normal(size=(seeds, items))
    if seeds > 1:
        own = own + 0.02 * rng.normal(size=(seeds, 1))
    return m0 + own, m0 + moved, m0


def covered(seeds: int, items: int, tau: float, shift: float, studies: int) -> tuple[float, float]:
    """Share of intervals that hold tau among those that exist, and the share that exist."""
    rng, found = np.random.default_rng([seeds, items]), []
    for _ in range(studies):
        moved = transfer.compute_shifts(*answers(rng, seeds, items, tau, shift))
        assert moved is not None
        one = transfer.transfer_ratio(moved)
        if one is not None:
            found.append(one.low <= tau <= one.high)
    return float(np.mean(found)), len(found) / studies


SETTINGS = [
    (1, 20, 0.5, 0.4), (1, 60, 0.0, 0.3), (1, 60, 1.0, 0.3),
    (3, 40, 0.5, 0.4), (5, 60, 0.2, 0.3), (10, 100, 0.8, 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("seeds", "items", "tau", "shift"), SETTINGS)
def test_fieller_interval_covers_tau(seeds: int, items: int, tau: float, shift: float) -> None:
    studies = 1000
    assert covered(seeds, items, tau, shift, studies)[0] >= least(studies)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "items", "tau", "shift"), SETTINGS)
def test_fieller_interval_covers_tau_in_10_000_studies(
    seeds: int, items: int, tau: float, shift: float
) -> None:
    assert covered(seeds, items, tau, shift, 10_000)[0] >= least(10_000)


def test_ratio_of_a_teacher_without_the_drive_is_rarely_given() -> None:
    assert covered(1, 40, 0.5, 0.0, 2000)[1] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_transfer_gap_covers_the_difference() -> None:
    rng, studies, hits = np.random.default_rng(71), 1000, 0
    for _ in range(studies):
        deployed = transfer.compute_shifts(*answers(rng, 1, 60, 0.6, 0.4))
        audited = transfer.compute_shifts(*answers(rng, 1, 60, 0.0, 0.0))
        assert deployed is not None
        assert audited is not None
        gap = transfer.transfer_gap(deployed, transfer.subtract_shifts(deployed, audited))
        assert gap is not None
        hits += gap.low <= 0.0 <= gap.high
    assert hits / studies >= least(studies)


def test_incrimination_gap_covers_the_difference() -> None:
    rng, studies, hits = np.random.default_rng(72), 1000, 0
    for _ in range(studies):
        students, teacher, _ = answers(rng, 1, 40, 0.5, 0.4)
        gap = transfer.incrimination_gap(students, teacher)
        assert gap is not None
        hits += gap.low <= -0.2 <= gap.high
    assert hits / studies >= least(studies)


@pytest.mark.parametrize(("controls", "rate"), [(5, 0.9), (6, 0.6), (20, 0.8), (60, 0.95)])
def test_detection_bound_covers_the_rate_exactly(controls: int, rate: float) -> None:
    """Summed over every outcome, not simulated."""
    outcomes = np.arange(controls + 1)
    below = np.array([power.detection_lower_bound(int(x), controls) <= rate for x in outcomes])
    assert float(np.sum(stats.binom.pmf(outcomes, controls, rate) * below)) >= NOMINAL
