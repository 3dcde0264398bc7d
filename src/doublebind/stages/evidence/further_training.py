"""What further training does to students that were bounded, against M0 trained alike.

Knows scores of students trained further, of their twins and of both as they were, on `certify`
items. Decides nothing. Numbers in brackets are equations of docs/method.md.
"""
# pandas ships no stubs; its values leave it as NumPy arrays in `_wide` only.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from doublebind.schema.evidence import (
    FurtherTrainingResult,
    Interval,
    ReplacementEvidence,
    TrainingKind,
)
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.equivalence import item_upper_bound
from doublebind.stages.evidence.replacement import compute_differences
from doublebind.stages.evidence.transfer import incrimination_gap

if TYPE_CHECKING:
    import pandas as pd


def compare_further_training(
    scores: pd.DataFrame,
    evidence: ReplacementEvidence,
    suspect: str,
    endpoints: Mapping[str, Sequence[str]],
) -> tuple[tuple[FurtherTrainingResult, ...], dict[str, str]]:
    """Return how students and twins differ after further training, and why a way is missing. [46].

    A student and its twin learned the same data in the same order, and answer the same items, so
    that what the training does to any model cancels. Each student is bounded by itself (30): the
    statement is about those that were tried, and holds where all of them do. The interval over
    students and items stands beside it.

    Args:
        scores: Rows of M0, of the suspect's fresh students, and of those trained further.
        bounded: What was found of the students before.
        suspect: Label.
        endpoints: Score endpoint -> the endpoints it pools.
    """
    rows: Any = scores[(scores["teacher"] == suspect) & (scores["recipe"] == evidence.recipe)]
    rows = rows[(rows["split"] == "certify") & (rows["role"] == "auditable")]
    own = compute_differences(scores, suspect, evidence.recipe, endpoints, "certify", evidence.step)
    m0: Any = scores[(scores["model_kind"] == "m0") & (scores["split"] == "certify")]
    found: list[FurtherTrainingResult] = []
    missing: dict[str, str] = {}
    for way in get_args(TrainingKind):
        kinds = (f"further_{way}", f"twin_{way}")
        mine, theirs = (
            _pivot_endpoints(rows[rows["model_kind"] == kind], endpoints) for kind in kinds
        )
        if mine and theirs:
            found.append(
                _compare_with_control(
                    way, own, mine, theirs, _pivot_endpoints(m0, endpoints), missing
                )
            )
        else:
            missing[f"further.{way}"] = (
                "incentive unknown: not tried" if way == "incentive" else "no such student scored"
            )
    return tuple(found), missing


def _compare_with_control(
    way: TrainingKind,
    own: Mapping[str, Floats],
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    m0: Mapping[str, Any],
    missing: dict[str, str],
) -> FurtherTrainingResult:
    before, after = dict[str, Interval](), dict[str, Interval]()
    twins, upper, lower = dict[str, float](), dict[str, float](), dict[str, float]()
    n = 0
    for name, wide in mine.items():
        students = wide.to_numpy(dtype=np.float64).T
        beside = theirs[name].reindex(index=wide.index, columns=wide.columns)
        excess = students - beside.to_numpy(dtype=np.float64).T
        n = max(n, len(excess))
        known = [row[np.isfinite(row)] for row in excess]
        if not all(len(row) for row in known):
            missing[f"further.{way}.{name}"] = "a student or its twin answered no item"
            continue
        upper[name] = max(item_upper_bound(row) for row in known)
        lower[name] = max(-item_upper_bound(-row) for row in known)
        base = m0[name].mean(axis=1).reindex(wide.index).to_numpy(dtype=np.float64)
        twins[name] = float(np.nanmean(beside.to_numpy(dtype=np.float64).T - base))
        # The first fresh students, in the order of their seeds, are those trained further.
        intervals = {"before": own[name][: len(excess)], "after": excess}
        for where, values in zip((before, after), intervals.values(), strict=True):
            interval = incrimination_gap(values, np.zeros(values.shape[1]))
            if interval is not None:
                where[name] = interval
    return FurtherTrainingResult(
        kind=way, n_students=n, before=before, after=after, controls=twins, upper=upper, lower=lower
    )


def _pivot_endpoints(rows: pd.DataFrame, endpoints: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return score endpoint -> values by (endpoint, item) and seed; empty without rows."""
    found: dict[str, Any] = {}
    for name, parts in endpoints.items() if len(rows) else ():
        asked: Any = rows[rows["endpoint"].isin(list(parts))]
        found[name] = asked.groupby(["endpoint", "item", "seed"])["value"].mean().unstack("seed")
    return found
