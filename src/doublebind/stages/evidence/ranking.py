"""Ranks the suspect, and each organism in its place, among the references by their scores.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.endpoint_means import (
    EndpointMeans,
    ModelKind,
    compute_endpoint_means,
)
from doublebind.stages.evidence.score import score_as_suspect

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
    by_recipe: Floats
    """Shape (teachers, recipes, score endpoints)."""
    means: Floats
    """Their mean over recipes, shape (teachers, score endpoints)."""
    gap: str
    """Why suspect and references cannot be compared; empty where they can."""
    ranking: Ranking | None
    """Absent exactly where there is a gap."""


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


def measure_teachers(
    scores: pd.DataFrame, panel: Panel, protocol: Protocol, kind: ModelKind
) -> Measurement:
    """Return the endpoint means of one kind of model for every teacher, and their ranking."""
    measured = compute_endpoint_means(scores, panel.labels, protocol, kind)
    by_recipe = measured.score_endpoint_means(protocol)
    means = by_recipe.mean(axis=1)
    gap = explain_gaps(measured, panel)
    ranking = None if gap else _rank_teachers(measured, means, panel, protocol)
    return Measurement(measured, by_recipe, means, gap, ranking)


def explain_gaps(measured: EndpointMeans, panel: Panel) -> str:
    """Return why suspect and references cannot be compared; empty where they can."""
    reasons = list(measured.shortfalls)
    names = [measured.teachers[i] for i in panel.compared]
    gaps = [measured.gaps[name] for name in names if name in measured.gaps]
    if gaps:
        others = f" (and {len(gaps) - 1} other teachers)" if len(gaps) > 1 else ""
        reasons.append(gaps[0] + others)
    return "; ".join(reasons)


def _rank_teachers(
    measured: EndpointMeans, means: Floats, panel: Panel, protocol: Protocol
) -> Ranking:
    """Return the scores of every complete teacher. [2, 3, 4]."""
    labels, floor = panel.labels, protocol.scale_floor
    references = means[panel.references]
    suspect_score, reference_scores = score_as_suspect(means[panel.suspect], references, floor)
    scores = {labels[panel.suspect]: suspect_score}
    scores |= {labels[r]: float(x) for r, x in zip(panel.references, reference_scores, strict=True)}
    counts: dict[str, int] = {}
    for o in panel.organisms:
        if labels[o] not in measured.gaps:
            score, against = score_as_suspect(means[o], references, floor)
            scores[labels[o]] = score
            counts[labels[o]] = int(conformal.n_at_or_above(score, against))
    return Ranking(suspect_score, reference_scores, scores, counts)
