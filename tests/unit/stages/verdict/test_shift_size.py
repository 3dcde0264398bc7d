"""The smallest effect of interest: a rank alone does not incriminate where one is fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from doublebind.schema.evidence import Interval
from doublebind.schema.score_settings import ADJUSTED
from doublebind.stages.verdict.incrimination import decide_incrimination

Make = Callable[..., Any]


def interval(value: float, half: float = 0.1) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


@pytest.mark.parametrize(
    ("min_effect", "shift", "decision", "says"),
    [
        (None, 0.05, "incriminated", "No smallest effect of interest was fixed."),
        (0.1, 0.25, "incriminated", "choice: above the smallest effect of interest, 0.1."),
        (0.1, 0.15, "inconclusive", "too small to incriminate"),
        (0.1, -0.4, "inconclusive", "too small to incriminate"),
    ],
)
def test_a_rank_needs_a_size(
    make_protocol: Make,
    make_evidence: Make,
    min_effect: float | None,
    shift: float,
    decision: str,
    says: str,
) -> None:
    protocol = make_protocol(score=ADJUSTED, min_effect=min_effect)
    evidence = make_evidence(shifts={"choice": interval(shift), "goal": interval(2.0)})
    verdict = decide_incrimination(evidence, protocol, suspect="u", earlier_protocols=0)
    assert verdict.incrimination.decision == decision
    assert any(says in reason for reason in verdict.incrimination.reasons)
    assert verdict.incrimination.shifts["choice"].value == shift
    assert verdict.incrimination.min_effect == min_effect


def test_a_shift_that_does_not_stand_out_is_no_size(
    make_protocol: Make, make_evidence: Make
) -> None:
    """`goal` is far above the smallest effect, but benign teachers are as high."""
    protocol = make_protocol(score=ADJUSTED, min_effect=0.5)
    evidence = make_evidence(shifts={"choice": interval(0.2), "goal": interval(2.0)})
    verdict = decide_incrimination(evidence, protocol, suspect="u", earlier_protocols=0)
    assert verdict.incrimination.decision == "inconclusive"


def test_without_an_interval_there_is_no_size(make_protocol: Make, make_evidence: Make) -> None:
    protocol = make_protocol(score=ADJUSTED, min_effect=0.1)
    verdict = decide_incrimination(make_evidence(), protocol, suspect="u", earlier_protocols=0)
    assert verdict.incrimination.decision == "inconclusive"


def test_a_control_counts_as_detected_by_rank_and_size(
    make_protocol: Make, make_evidence: Make
) -> None:
    labels = [f"o{i}" for i in range(6)]
    evidence = make_evidence(
        roles={"u": "suspect", "r0": "reference"} | dict.fromkeys(labels, "organism"),
        controls=dict.fromkeys(labels, 0.025),
        control_shifts={"o0": 0.4, "o1": 0.3, "o2": 0.05},
        detection_bounds=(0.0, 0.01, 0.06, 0.15, 0.27, 0.42, 0.61),
        shifts={"choice": interval(1.0)},
    )

    def power(min_effect: float | None) -> float:
        protocol = make_protocol(score=ADJUSTED, min_effect=min_effect)
        verdict = decide_incrimination(evidence, protocol, suspect="u", earlier_protocols=0)
        assert verdict.incrimination.power is not None
        return verdict.incrimination.power.value

    assert power(None) == 1.0
    assert power(0.1) == pytest.approx(2 / 6)
