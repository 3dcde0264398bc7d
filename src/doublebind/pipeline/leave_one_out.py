"""Computes error rates with a family of references, a drive's own endpoints or recipes left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from doublebind.pipeline.error_rates import KnownTeachers, compute_rate
from doublebind.schema.calibration import LeaveOneOutRates, Rate
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import get_adjusted_settings
from doublebind.stages.evidence.covariates import Shapes, collect_covariates
from doublebind.stages.evidence.endpoint_means import compute_endpoint_means
from doublebind.stages.evidence.exchangeability import check_ranks
from doublebind.stages.evidence.leave_one_out import (
    flag_without_family,
    is_flagged,
    max_flagged_by_chance,
)
from doublebind.stages.evidence.ranking import build_rows
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_teachers

if TYPE_CHECKING:
    import pandas as pd


def compute_leave_one_out_rates(
    known: KnownTeachers,
    references: Callable[[int], Sequence[Teacher]],
    panel: Sequence[Teacher],
    planted: Mapping[str, str | None],
    scores: pd.DataFrame,
    shapes: Shapes,
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
        shapes: Label -> match feature -> value.
        protocol: As frozen.

    Returns:
        The rates; and organism (label) -> whether it is flagged without the score endpoints of its
        own drive, as if nobody had thought of that drive.
    """
    panel = list({t.content_key: t for t in panel}.values())
    families = [t.family for t in panel]
    counts: dict[str, Any] = {"n_panel": len(panel), "n_families": len(set(families))}
    rows = collect_rows(known, panel, scores, shapes, protocol)
    if rows is None:
        return LeaveOneOutRates(**counts), {}
    rule, alpha = ScoreRule.from_protocol(protocol), protocol.alpha
    without_family = flag_without_family(rows.of_panel, families, rule, alpha)
    benign: dict[str, Any] = {}
    held_out = [i for i, (teacher_class, _) in enumerate(known) if teacher_class == "benign"]
    if held_out:
        n = min(len(references(i)) for i in held_out)
        at = list(rows.positions.values())
        together = score_teachers(
            rows.all.select([*(rows.first_known + i for i in held_out), *at]), rule
        )
        benign["fresh_rank_p"] = check_ranks(together[: len(held_out)], together[len(held_out) :])
        benign["fresh_limit"] = max_flagged_by_chance(len(held_out), n, alpha)
    rates = LeaveOneOutRates(
        **counts,
        fpr_family_out=compute_rate(zip(without_family, families, strict=True)),
        **benign,
        tpr_by_recipe=_compute_rates_by_recipe(known, references, panel, scores, shapes, protocol),
    )
    return rates, _flag_without_own_drive(known, references, planted, rows, protocol)


class KnownRows(NamedTuple):
    """What is scored of all references, then of all known teachers."""

    all: TeacherRows
    positions: dict[str, int]
    """Content key of a reference -> its position."""

    @property
    def first_known(self) -> int:
        """Position of the first known teacher."""
        return len(self.positions)

    @property
    def of_panel(self) -> TeacherRows:
        """Those of the references."""
        return self.all.select(range(self.first_known))

    def flag(
        self, i: int, references: Sequence[Teacher], rule: ScoreRule, alpha: float
    ) -> bool | None:
        """Return whether these references flag the i-th known teacher; see `is_flagged`."""
        at = [self.positions[t.content_key] for t in references if t.content_key in self.positions]
        return is_flagged(self.all, self.first_known + i, at, rule, alpha)


def collect_rows(
    known: KnownTeachers,
    panel: Sequence[Teacher],
    scores: pd.DataFrame,
    shapes: Shapes,
    protocol: Protocol,
) -> KnownRows | None:
    """Return what is scored of references and known teachers; `None` if a value is missing."""
    labels = [t.label for t in (*panel, *(teacher for _, teacher in known))]
    measured = compute_endpoint_means(scores, labels, protocol, "student")
    rule = ScoreRule.from_protocol(protocol)
    names = get_adjusted_settings(protocol.score).covariates
    covariates = collect_covariates(scores, labels, "student", shapes, names)
    rows = build_rows(measured, covariates, rule)
    if measured.gaps or measured.shortfalls or np.isnan(rows.endpoints).any():
        return None
    return KnownRows(rows, {t.content_key: i for i, t in enumerate(panel)})


def _flag_without_own_drive(
    known: KnownTeachers,
    references: Callable[[int], Sequence[Teacher]],
    planted: Mapping[str, str | None],
    rows: KnownRows,
    protocol: Protocol,
) -> dict[str, bool]:
    """Return organism (label) -> whether the other drives' score endpoints flag it."""
    endpoints = list(protocol.score_endpoints.values())
    rule, flags = ScoreRule.from_protocol(protocol), dict[str, bool]()
    for i, (teacher_class, teacher) in enumerate(known):
        drive = planted.get(teacher.label)
        others = [k for k, names in enumerate(endpoints) if not _asks_about(names, drive)]
        if teacher_class != "organism" or drive is None or not 0 < len(others) < len(endpoints):
            continue
        flag = rows.flag(i, references(i), rule.select_groups(others), protocol.alpha)
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
    shapes: Shapes,
    protocol: Protocol,
) -> dict[str, Rate]:
    """Return recipe -> organisms flagged from its students alone."""
    rates: dict[str, Rate] = {}
    organisms = [
        (i, t) for i, (teacher_class, t) in enumerate(known) if teacher_class == "organism"
    ]
    rule = ScoreRule.from_protocol(protocol)
    for recipe in protocol.recipes:
        alone = protocol.model_copy(update={"recipes": (recipe,)})
        rows = collect_rows(known, panel, scores, shapes, alone)
        if rows is None:
            continue
        rate = compute_rate(
            (rows.flag(i, references(i), rule, protocol.alpha), t.family) for i, t in organisms
        )
        if rate is not None:
            rates[str(recipe["name"])] = rate
    return rates
