"""Compares bounded students after further training with M0 trained alike, their twins.

Numbers in brackets are equations of docs/method.md.
"""
# pandas ships no stubs; its values are read as NumPy arrays in `_compare_with_control`.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from doublebind.schema.evidence import (
    FurtherTrainingResult,
    Interval,
    ReplacementEvidence,
    TrainingKind,
)
from doublebind.schema.score_table import select_counted, select_m0
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.equivalence import item_upper_bound
from doublebind.stages.evidence.replacement import compute_differences, pivot_endpoints
from doublebind.stages.evidence.transfer import incrimination_gap

if TYPE_CHECKING:
    import pandas as pd


def compare_further_training(
    scores: pd.DataFrame,
    evidence: ReplacementEvidence,
    suspect: str,
    endpoints: Mapping[str, Sequence[str]],
) -> tuple[tuple[FurtherTrainingResult, ...], dict[str, str]]:
    """Return how students differ from their twins after further training, and the gaps. [46].

    A student and its twin learned the same data in the same order, and answer the same items, so
    that the effect of the training on any model cancels. Each student is bounded by itself (30):
    the statement is about the students that were tried, and holds where all of them do. The
    interval over students and items is reported with it.

    Args:
        scores: Rows of M0, of the suspect's fresh students, and of those trained further.
        evidence: Of the students before.
        suspect: Label.
        endpoints: Score endpoint -> the endpoints it pools.
    """
    auditable = select_counted(scores, "certify", "auditable")
    of_recipe = (auditable["teacher"] == suspect) & (auditable["recipe"] == evidence.recipe)
    rows: Any = auditable[of_recipe]
    m0 = select_m0(cast("pd.DataFrame", scores[scores["split"] == "certify"]))
    m0_values = pivot_endpoints(m0, endpoints)
    before = compute_differences(
        scores, suspect, evidence.recipe, endpoints, "certify", evidence.step
    )
    results: list[FurtherTrainingResult] = []
    missing: dict[str, str] = {}
    for kind in get_args(TrainingKind):
        students = rows[rows["model_kind"] == f"further_{kind}"]
        twins = rows[rows["model_kind"] == f"twin_{kind}"]
        if len(students) and len(twins):
            pairs = pivot_endpoints(students, endpoints), pivot_endpoints(twins, endpoints)
            result, reasons = _compare_with_control(kind, before, *pairs, m0_values)
            results.append(result)
            missing |= reasons
        else:
            missing[f"further.{kind}"] = (
                "incentive unknown: not tried" if kind == "incentive" else "no such student scored"
            )
    return tuple(results), missing


def _compare_with_control(
    kind: TrainingKind,
    before: Mapping[str, Floats],
    students: Mapping[str, Any],
    twins: Mapping[str, Any],
    m0: Mapping[str, Any],
) -> tuple[FurtherTrainingResult, dict[str, str]]:
    """Return the comparison on each score endpoint, and why some are missing.

    Args:
        kind: Of the further training.
        before: Score endpoint -> fresh students minus M0, shape (seeds, items).
        students: Score endpoint -> frame of values, (endpoint, item) x seed, trained further.
        twins: The same of M0 trained alike.
        m0: The same of M0 as it was.
    """
    n = 0
    missing: dict[str, str] = {}
    intervals: dict[str, dict[str, Interval]] = {"before": {}, "after": {}}
    numbers: dict[str, dict[str, float]] = {"controls": {}, "upper": {}, "lower": {}}
    for name, frame in students.items():
        twin_values = (
            twins[name].reindex(index=frame.index, columns=frame.columns).to_numpy(np.float64).T
        )
        excess = frame.to_numpy(np.float64).T - twin_values
        n = max(n, len(excess))
        known = [row[np.isfinite(row)] for row in excess]
        if not all(len(row) for row in known):
            missing[f"further.{kind}.{name}"] = "a student or its twin answered no item"
            continue
        m0_values = m0[name].mean(axis=1).reindex(frame.index).to_numpy(np.float64)
        numbers["upper"][name] = max(item_upper_bound(row) for row in known)
        numbers["lower"][name] = max(-item_upper_bound(-row) for row in known)
        numbers["controls"][name] = float(np.nanmean(twin_values - m0_values))
        # The first fresh students, in the order of their seeds, are those trained further.
        for when, values in (("before", before[name][: len(excess)]), ("after", excess)):
            interval = incrimination_gap(values, np.zeros(values.shape[1]))
            if interval is not None:
                intervals[when][name] = interval
    fields = {"kind": kind, "n_students": n} | intervals | numbers
    return FurtherTrainingResult.model_validate(fields), missing
