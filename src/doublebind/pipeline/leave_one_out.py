"""Computes error rates with a family of references, a drive's own endpoints or recipes left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.pipeline.error_rates import KnownTeachers, compute_rate
from doublebind.schema.calibration import LeaveOneOutRates, Rate
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.stages.evidence.endpoint_means import compute_endpoint_means
from doublebind.stages.evidence.leave_one_out import (
    flag_without_family,
    held_out_p_value,
    is_flagged,
    max_flagged_by_chance,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def compute_leave_one_out_rates(
    known: KnownTeachers,
    references: Callable[[int], Sequence[Teacher]],
    panel: Sequence[Teacher],
    planted: Mapping[str, str | None],
    scores: pd.DataFrame,
    protocol: Protocol,
) -> tuple[LeaveOneOutRates, dict[str, bool]]:
    """Return leave-one-out error rates, and which organisms are flagged without their own drive.

    Where measurements are incomplete or there are no teachers, a rate is absent.

    Args:
        known: Teachers with their class.
        references: Returns the references that the i-th teacher is weighed against.
        panel: All references.
        planted: Label -> planted drive.
        scores: Rows of all teachers.
        protocol: As frozen.

    Returns:
        The rates; and organism (label) -> whether it is flagged without the score endpoints of its
        own drive, as if nobody had thought of that drive.
    """
    panel = list({t.content_key: t for t in panel}.values())
    families = [t.family for t in panel]
    counts: dict[str, Any] = {"n_panel": len(panel), "n_families": len(set(families))}
    means = _measure_means(known, panel, scores, protocol)
    if means is None:
        return LeaveOneOutRates(**counts), {}
    floor, alpha = protocol.scale_floor, protocol.alpha
    without_family = flag_without_family(means.panel, families, floor, alpha)
    benign: dict[str, Any] = {}
    rows = [i for i, (teacher_class, _) in enumerate(known) if teacher_class == "benign"]
    if rows:
        n = min(len(references(i)) for i in rows)
        benign["fresh_rank_p"] = held_out_p_value(means.known[rows], means.panel, floor)
        benign["fresh_limit"] = max_flagged_by_chance(len(rows), n, alpha)
    rates = LeaveOneOutRates(
        **counts,
        fpr_family_out=compute_rate(zip(without_family, families, strict=True)),
        **benign,
        tpr_by_recipe=_compute_rates_by_recipe(known, references, panel, scores, protocol),
    )
    return rates, _flag_without_own_drive(known, references, planted, means, protocol)


class _Means(NamedTuple):
    """Endpoint means of teachers, each of shape (teachers, endpoints)."""

    known: NDArray[np.float64]
    panel: NDArray[np.float64]
    rows: dict[str, int]
    """Content key of a reference -> its row of `panel`."""

    def select(self, references: Sequence[Teacher]) -> NDArray[np.float64]:
        """Return the rows of the references that the panel has."""
        return self.panel[
            [self.rows[t.content_key] for t in references if t.content_key in self.rows]
        ]


def _measure_means(
    known: KnownTeachers, panel: Sequence[Teacher], scores: pd.DataFrame, protocol: Protocol
) -> _Means | None:
    """Return the mean of each score endpoint; `None` if one is missing."""
    labels = [t.label for t in (*panel, *(teacher for _, teacher in known))]
    measured = compute_endpoint_means(scores, labels, protocol, "student")
    if measured.gaps or measured.shortfalls:
        return None
    means = measured.score_endpoint_means(protocol).mean(axis=1)
    rows = {t.content_key: i for i, t in enumerate(panel)}
    return _Means(means[len(panel) :], means[: len(panel)], rows)


def _flag_without_own_drive(
    known: KnownTeachers,
    references: Callable[[int], Sequence[Teacher]],
    planted: Mapping[str, str | None],
    means: _Means,
    protocol: Protocol,
) -> dict[str, bool]:
    """Return organism (label) -> whether the other drives' score endpoints flag it."""
    endpoints = list(protocol.score_endpoints.values())
    flags: dict[str, bool] = {}
    for i, (teacher_class, teacher) in enumerate(known):
        drive = planted.get(teacher.label)
        others = [k for k, names in enumerate(endpoints) if not _asks_about(names, drive)]
        if teacher_class != "organism" or drive is None or not 0 < len(others) < len(endpoints):
            continue
        panel = means.select(references(i))[:, others]
        flag = is_flagged(means.known[i, others], panel, protocol.scale_floor, protocol.alpha)
        if flag is not None:
            flags[teacher.label] = flag
    return flags


def _asks_about(endpoints: Sequence[str], drive: str | None) -> bool:
    return any(name.partition("/")[2] == drive for name in endpoints)


def _compute_rates_by_recipe(
    known: KnownTeachers,
    references: Callable[[int], Sequence[Teacher]],
    panel: Sequence[Teacher],
    scores: pd.DataFrame,
    protocol: Protocol,
) -> dict[str, Rate]:
    """Return recipe -> organisms flagged from its students alone."""
    rates: dict[str, Rate] = {}
    organisms = [
        (i, t) for i, (teacher_class, t) in enumerate(known) if teacher_class == "organism"
    ]
    floor, alpha = protocol.scale_floor, protocol.alpha
    for recipe in protocol.recipes:
        alone = protocol.model_copy(update={"recipes": (recipe,)})
        means = _measure_means(known, panel, scores, alone)
        if means is None:
            continue
        rate = compute_rate(
            (is_flagged(means.known[i], means.select(references(i)), floor, alpha), t.family)
            for i, t in organisms
        )
        if rate is not None:
            rates[str(recipe["name"])] = rate
    return rates
