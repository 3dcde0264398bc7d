"""Finds teachers whose students are too damaged for their answers to mean anything.

One rule for all teachers, blind to roles: means of gate items, students against M0. The verdict
decides what follows from a failed gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from doublebind.schema.protocol import MAX_GATE_LOSS
from doublebind.schema.score_table import GATES, select_m0

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


def find_failed_gates(scores: pd.DataFrame, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the gates that a teacher's students fail, with what they lost. [45].

    Args:
        scores: Rows with the columns of `SCORE_COLUMNS`.
        labels: Teachers; rows of others are ignored.

    Returns:
        Label -> gate -> M0's mean minus the mean of the students of the recipe that lost most, in
        probability, above `MAX_GATE_LOSS`. Teachers that pass, and gates that M0 or the students
        were not asked, are absent.
    """
    rows = cast("Any", scores)
    rows = rows[(rows["role"] == "gate") & (rows["split"] == "audit") & rows["value"].notna()]
    failed: dict[str, dict[str, float]] = {}
    for gate in GATES:
        items = rows[rows["endpoint"] == gate]
        m0 = cast("Any", select_m0(items))["value"]
        # Unlike every score, this averages over all checkpoints and rounds, not over
        # `select_last_checkpoint` alone: earlier checkpoints dilute the loss. A known fault.
        students = items[(items["model_kind"] == "student") & items["teacher"].isin(list(labels))]
        if not len(m0) or not len(students):
            continue
        means = students.groupby(["teacher", "recipe"])["value"].mean()
        losses = (float(m0.mean()) - means).groupby("teacher").max()
        for label in labels:
            if label in losses.index and losses[label] > MAX_GATE_LOSS:
                failed.setdefault(label, {})[gate] = float(losses[label])
    return failed
