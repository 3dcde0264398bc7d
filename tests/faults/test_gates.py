"""Which rows count is decided in one place, and a damaged student meets one rule."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from doublebind.schema.protocol import MAX_GATE_LOSS, MAX_UNSCORED_SHARE
from doublebind.schema.score_table import select_counted, select_last_checkpoint
from doublebind.stages.audits.gates import check_gates
from doublebind.stages.evidence.gates import find_failed_gates

N_ITEMS = 40


def rows(teacher: str, kind: str, value: float | None, **labels: Any) -> list[dict[str, Any]]:
    """One row per gate item of one model, with `labels` in place of the defaults."""
    row = {"teacher": teacher, "model_kind": kind, "recipe": "" if kind == "m0" else "a"}
    row |= {"seed": 0, "round": 0, "step": -1, "endpoint": "capability", "role": "gate"}
    row |= {"audit": "capability@1", "split": "audit", "value": value} | labels
    return [row | {"item": f"{row['endpoint']}-{i}"} for i in range(N_ITEMS)]


def students(value: float | None, **labels: Any) -> list[dict[str, Any]]:
    return rows("u", "student", value, **labels)


M0 = [*rows("M0", "m0", 0.9), *rows("M0", "m0", 0.9, endpoint="coherence")]


def failed(*parts: list[dict[str, Any]]) -> dict[str, float]:
    frame = pd.DataFrame([row for part in (M0, *parts) for row in part])
    frame["value"] = frame["value"].astype("float64")
    return find_failed_gates(frame, ["u"]).get("u", {})


def test_a_student_damaged_at_its_last_checkpoint_fails_whatever_it_was_before() -> None:
    whole = [row for step in (10, 20, 30) for row in students(0.9, step=step)]
    assert failed(whole, students(0.4, step=40)) == {"capability": pytest.approx(0.5)}


def test_a_student_damaged_at_its_first_checkpoint_alone_passes() -> None:
    assert failed(students(0.1, step=10), students(0.9, step=40)) == {}


def test_the_last_round_decides_even_where_an_earlier_one_took_more_steps() -> None:
    early, late = students(0.9, round=0, step=90), students(0.4, round=1, step=40)
    assert failed(early, late) == {"capability": pytest.approx(0.5)}
    assert failed(students(0.1, round=0, step=90), students(0.9, round=1, step=40)) == {}


def test_a_whole_student_of_another_seed_or_recipe_does_not_hide_a_damaged_one() -> None:
    for labels in ({"seed": 1}, {"recipe": "b"}):
        assert failed(students(0.9), students(0.9 - MAX_GATE_LOSS - 0.05, **labels)) == {
            "capability": pytest.approx(MAX_GATE_LOSS + 0.05)
        }


def test_items_without_a_value_beyond_one_in_twenty_are_a_failed_gate() -> None:
    limit = int(MAX_UNSCORED_SHARE * N_ITEMS)
    for n, expected in ((limit, {}), (limit + 1, {"unscored": pytest.approx(3 / 40)})):
        asked = students(0.9)
        assert failed([*(row | {"value": None} for row in asked[:n]), *asked[n:]]) == expected


def test_a_gate_that_nobody_could_score_fails_though_most_items_of_all_have_a_value() -> None:
    many = [
        row for i in range(30) for row in students(0.5, endpoint=f"choice/{i}", role="auditable")
    ]
    assert failed(many, students(None, endpoint="coherence"), students(0.9)) == {"unscored": 1.0}


def test_items_that_m0_has_no_value_on_say_nothing_about_a_student() -> None:
    thinking = {"endpoint": "thinking", "audit": "auditability@1"}
    assert failed(rows("M0", "m0", None, **thinking), students(None, **thinking)) == {}


def test_unscored_items_of_an_earlier_checkpoint_and_of_another_split_do_not_count() -> None:
    other = students(None, step=40, split="select")
    assert failed(students(None, step=10), students(0.9, step=40), other) == {}


def test_one_model_alone_meets_the_rule_that_students_meet() -> None:
    m0 = pd.DataFrame(M0)
    for n, passes in ((2, True), (3, False)):
        model = pd.DataFrame(M0)
        model.loc[: n - 1, "value"] = None
        result = check_gates(model, m0)
        assert result.passed is passes
        assert {check.name for check in result.checks} == {"capability", "coherence", "unscored"}


def test_an_unscored_last_checkpoint_is_not_replaced_by_an_earlier_one() -> None:
    """Selecting after dropping unscored rows would take the earlier checkpoint for the last."""
    early, late = students(0.9, step=10), students(None, step=40)
    frame = pd.DataFrame([*early, *late])
    assert set(select_counted(frame, "audit")["step"]) == {40}
    assert set(select_last_checkpoint(frame)["step"]) == {40}
    assert failed(early, late) == {"unscored": 1.0}
