"""Ranks the suspect, and each organism in its place, among the references by their scores.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import get_adjusted_settings, get_other_score
from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.covariates import Shapes, collect_covariates
from doublebind.stages.evidence.endpoint_means import (
    EndpointMeans,
    ModelKind,
    compute_endpoint_means,
    round_means,
)
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_as_suspect

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


@dataclass(frozen=True)
class Panel:
    """The teachers, and the positions of suspect, references and organisms among them."""

    teachers: tuple[Teacher, ...]
    suspect: int
    references: list[int]
    organisms: list[int]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of each teacher."""
        return tuple(teacher.label for teacher in self.teachers)

    @property
    def compared(self) -> list[int]:
        """Positions of suspect and references."""
        return [self.suspect, *self.references]

    @property
    def n(self) -> int:
        """Number of references."""
        return len(self.references)

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each reference."""
        return tuple(self.teachers[r].family for r in self.references)


@dataclass(frozen=True)
class Ranking:
    """Scores of suspect and references, standardised together."""

    suspect_score: float
    reference_scores: Floats
    scores: dict[str, float]
    """By label; an organism's is standardised as if it were the suspect."""
    control_counts: dict[str, int]
    """References at or above each organism that could be scored."""

    @property
    def n_at_or_above(self) -> int:
        """References at or above the suspect. [4]."""
        return int(conformal.n_at_or_above(self.suspect_score, self.reference_scores))

    @property
    def p_value(self) -> float:
        """The suspect's conformal p-value. [5]."""
        return conformal.p_value(self.n_at_or_above, len(self.reference_scores))

    @property
    def control_p_values(self) -> dict[str, float]:
        """Conformal p-value of each organism that could be scored. [5]."""
        n = len(self.reference_scores)
        return {label: conformal.p_value(k, n) for label, k in self.control_counts.items()}


@dataclass(frozen=True)
class Measurement:
    """Endpoint means of one kind of model, averaged once, and the ranking that they give."""

    endpoint_means: EndpointMeans
    means: Floats
    """Score endpoints in probability, over recipes, shape (teachers, score endpoints)."""
    covariates: Floats
    """Shape (teachers, covariates of the protocol); nan where unknown."""
    rule: ScoreRule
    gap: str
    """Why suspect and references cannot be compared; empty where they can."""
    ranking: Ranking | None
    """Absent exactly where there is a gap."""
    other_ranking: Ranking | None
    """By the kind of score that the protocol has not."""

    @property
    def rows(self) -> TeacherRows:
        """What is scored, over recipes."""
        return build_rows(self.endpoint_means, self.covariates, self.rule)

    def rows_of_recipe(self, recipe: int) -> TeacherRows:
        """What would be scored with one recipe alone."""
        return build_rows(self.endpoint_means, self.covariates, self.rule, recipe)


def locate_teachers(teachers: Sequence[Teacher]) -> Panel:
    """Return the positions of suspect, references and organisms.

    Raises:
        ValueError: Unless one teacher is the suspect, one or more are references, and labels
            are unique.
    """

    def of(role: str) -> list[int]:
        return [i for i, teacher in enumerate(teachers) if teacher.role == role]

    suspects, references = of("suspect"), of("reference")
    if len(suspects) != 1:
        raise ValueError(f"exactly one teacher is the suspect, got {len(suspects)}")
    if not references:
        raise ValueError("no teacher is a reference; a suspect is weighed against references")
    if len({teacher.label for teacher in teachers}) < len(teachers):
        raise ValueError("two teachers share a label")
    return Panel(tuple(teachers), suspects[0], references, of("organism"))


def build_rows(
    measured: EndpointMeans, covariates: Floats, rule: ScoreRule, recipe: int | None = None
) -> TeacherRows:
    """Return what a rule scores: log-odds, or probabilities, over recipes or of one."""
    values = measured.values if rule.ridge is None else measured.log_odds
    over = values.mean(axis=1) if recipe is None else values[:, recipe]
    return TeacherRows(round_means(over), covariates)


def measure_teachers(
    scores: pd.DataFrame,
    panel: Panel,
    protocol: Protocol,
    kind: ModelKind,
    shapes: Shapes,
) -> Measurement:
    """Return the endpoint means of one kind of model for every teacher, and their ranking."""
    measured = compute_endpoint_means(scores, panel.labels, protocol, kind)
    rule = ScoreRule.from_protocol(protocol)
    names = get_adjusted_settings(protocol.score).covariates
    covariates = collect_covariates(scores, panel.labels, kind, shapes, names)
    other = ScoreRule.from_protocol(
        protocol.model_copy(update={"score": get_other_score(protocol.score)})
    )
    gap = explain_gaps(measured, panel, rule)
    other_gap = explain_gaps(measured, panel, other)
    return Measurement(
        endpoint_means=measured,
        means=measured.score_endpoint_means(protocol).mean(axis=1),
        covariates=covariates,
        rule=rule,
        gap=gap,
        ranking=None if gap else _rank_teachers(measured, covariates, panel, rule),
        other_ranking=None if other_gap else _rank_teachers(measured, covariates, panel, other),
    )


def explain_gaps(measured: EndpointMeans, panel: Panel, rule: ScoreRule) -> str:
    """Return why suspect and references cannot be compared; empty where they can."""
    reasons = list(measured.shortfalls)
    names = [measured.teachers[i] for i in panel.compared]
    gaps = [measured.gaps[name] for name in names if name in measured.gaps]
    if gaps:
        others = f" (and {len(gaps) - 1} other teachers)" if len(gaps) > 1 else ""
        reasons.append(gaps[0] + others)
    unknown = np.argwhere(np.isnan(measured.log_odds[panel.compared]))
    if not reasons and rule.ridge is not None and len(unknown):
        t, _, e = unknown[0]
        reasons.append(
            f"M0 has no value on the items of endpoint {measured.listed_endpoints[e]} that "
            f"{names[t]} was asked, so that there are no log-odds to compare; audit M0 again"
        )
    return "; ".join(reasons)


def _rank_teachers(
    measured: EndpointMeans, covariates: Floats, panel: Panel, rule: ScoreRule
) -> Ranking:
    """Return the scores of every complete teacher. [2, 3, 4]."""
    labels, rows = panel.labels, build_rows(measured, covariates, rule)
    suspect_score, reference_scores = score_as_suspect(rows, panel.suspect, panel.references, rule)
    scores = {labels[panel.suspect]: suspect_score}
    scores |= {labels[r]: float(x) for r, x in zip(panel.references, reference_scores, strict=True)}
    counts: dict[str, int] = {}
    for o in panel.organisms:
        if labels[o] not in measured.gaps and np.isfinite(rows.endpoints[o]).all():
            score, against = score_as_suspect(rows, o, panel.references, rule)
            scores[labels[o]] = score
            counts[labels[o]] = int(conformal.n_at_or_above(score, against))
    return Ranking(suspect_score, reference_scores, scores, counts)
