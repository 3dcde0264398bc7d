"""Collects, for every teacher, the covariates that its endpoints are adjusted for."""
# pandas ships no stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from doublebind.schema.score_table import GATES, select_counted
from doublebind.stages.evidence.arrays import Floats

if TYPE_CHECKING:
    import pandas as pd

Shapes = Mapping[str, Mapping[str, float]]
"""Teacher label -> feature of its shape -> value."""


def collect_covariates(
    scores: pd.DataFrame, labels: Sequence[str], kind: str, shapes: Shapes, names: Sequence[str]
) -> Floats:
    """Return the covariates of teachers, shape (teachers, names); nan where unknown.

    A feature of the shape is the teacher's; the mean of a gate's items is that of its models of
    `kind`, over all of them, at their last checkpoint.

    Args:
        scores: All rows of the study, with the columns of `SCORE_COLUMNS`.
        labels: Teachers.
        kind: Kind of the models that are scored: `student`, `teacher` or a baseline.
        shapes: Of the teachers.
        names: Of the covariates.
    """
    gates = _measure_gates(scores, kind) if set(names) & set(GATES) else {}
    columns = [
        [
            gates.get((label, name), np.nan)
            if name in GATES
            else shapes.get(label, {}).get(name, np.nan)
            for name in names
        ]
        for label in labels
    ]
    return np.array(columns, dtype=np.float64).reshape(len(labels), len(names))


def _measure_gates(scores: pd.DataFrame, kind: str) -> dict[tuple[str, str], float]:
    """Return (teacher, gate) -> mean over the items and models of `kind`."""
    rows: Any = cast("Any", scores)
    rows = select_counted(rows[rows["model_kind"] == kind], "audit", "gate")
    rows = rows[rows["endpoint"].isin(GATES)].dropna(subset=["value"])
    means: Any = rows.groupby(["teacher", "endpoint"])["value"].mean()
    return {(str(label), str(gate)): float(mean) for (label, gate), mean in means.items()}
