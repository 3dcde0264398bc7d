"""Finds teachers whose students are too damaged for their answers to mean anything.

One rule for all teachers, blind to roles: each student against M0. The verdict decides what follows
from a failed gate.
"""
# pandas ships no stubs.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from doublebind.schema.protocol import MAX_GATE_LOSS, MAX_UNSCORED_SHARE
from doublebind.schema.score_table import (
    GATES,
    UNSCORED_GATE,
    measure_unscored_share,
    select_counted,
    select_m0,
)

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

_STUDENT = ["teacher", "recipe", "seed"]


def find_failed_gates(scores: pd.DataFrame, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the gates that a teacher's students fail, with how far they fail them. [45].

    A student counts at its last checkpoint. It fails a gate of `GATES` whose mean is more than
    `MAX_GATE_LOSS` below M0's, and the gate `UNSCORED_GATE` where it has no value on more than
    `MAX_UNSCORED_SHARE` of the items that M0 has one on: of all its items, or of one gate's.

    Args:
        scores: All rows of the study, with the columns of `SCORE_COLUMNS`.
        labels: Teachers; rows of others are ignored.

    Returns:
        Label -> gate -> what the teacher's worst student lost, in probability; of `UNSCORED_GATE`
        the largest share without a value. Teachers that pass, and gates that M0 or the students
        were not asked, are absent.
    """
    rows: Any = select_counted(scores, "audit")
    of_teachers = rows["teacher"].isin(list(labels)) & (rows["model_kind"] == "student")
    m0, students = cast("Any", select_m0(rows)), rows[of_teachers]
    worst: list[tuple[str, float, dict[str, float]]] = []
    for gate in GATES:
        means = _select_gate(students, gate).groupby(_STUDENT)["value"].mean().dropna()
        m0_mean = _select_gate(m0, gate)["value"].mean()
        worst.append((gate, MAX_GATE_LOSS, (m0_mean - means).groupby("teacher").max().to_dict()))
    worst.append((UNSCORED_GATE, MAX_UNSCORED_SHARE, _measure_unscored(students, m0)))
    failed: dict[str, dict[str, float]] = {}
    for label in labels:
        for gate, limit, by_label in worst:
            # A loss without a mean of M0 is nan, which is never above the limit.
            if by_label.get(label, 0.0) > limit:
                failed.setdefault(label, {})[gate] = float(by_label[label])
    return failed


def _select_gate(rows: Any, gate: str) -> Any:
    return rows[(rows["endpoint"] == gate) & (rows["role"] == "gate")]


def _measure_unscored(students: Any, m0: Any) -> dict[str, float]:
    """Return teacher -> the largest share of items without a value that a student of it has."""
    largest: dict[str, float] = {}
    for (label, *_), rows in students.groupby(_STUDENT):
        largest[label] = max(largest.get(label, 0.0), measure_unscored_share(rows, m0))
    return largest
