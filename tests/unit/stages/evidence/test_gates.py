"""Damaged students fail a gate, and nobody else's do."""

from __future__ import annotations

import pandas as pd
import pytest

from doublebind.schema.protocol import MAX_GATE_LOSS
from doublebind.stages.evidence.gates import find_failed_gates


def rows(teacher: str, kind: str, value: float, *, recipe: str = "a", gate: str = "coherence"):
    return [
        {"teacher": teacher, "model_kind": kind, "recipe": recipe, "endpoint": gate}
        | {"role": "gate", "split": "audit", "item": str(item), "value": value + (item - 2) / 100}
        | {"audit": f"{gate}@1", "seed": 0, "round": 0, "step": -1}
        for item in range(5)
    ]


def frame(*parts: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


M0 = rows("M0", "m0", 0.9)


def test_a_loss_within_the_limit_is_no_failure_and_one_beyond_it_is() -> None:
    kept = rows("kept", "student", 0.9 - MAX_GATE_LOSS + 0.001)
    lost = rows("lost", "student", 0.9 - MAX_GATE_LOSS - 0.01)
    assert find_failed_gates(frame(M0, kept, lost), ["kept", "lost"]) == {
        "lost": {"coherence": pytest.approx(MAX_GATE_LOSS + 0.01)}
    }


def test_the_recipe_that_lost_most_counts() -> None:
    whole, broken = rows("u", "student", 0.9), rows("u", "student", 0.4, recipe="b")
    assert find_failed_gates(frame(M0, whole, broken), ["u"]) == {
        "u": {"coherence": pytest.approx(0.5)}
    }


def test_teachers_themselves_and_what_nobody_asked_fail_nothing() -> None:
    teacher = rows("u", "teacher", 0.1)
    unasked = rows("u", "student", 0.1, gate="capability")
    assert find_failed_gates(frame(M0, teacher, unasked), ["u"]) == {}
