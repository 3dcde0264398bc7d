"""Decides the second horn from scores and protocol alone, so that anyone can do it again.

Knows which rows compete and which are bounded. Does not know how a student is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from doublebind.errors import ConfigError
from doublebind.records import (
    Competitor,
    Protocol,
    Record,
    Replacement,
    ReplacementEvidence,
    Teacher,
    Verdict,
)
from doublebind.verdict import horn, replace

if TYPE_CHECKING:
    import pandas as pd


class Made(NamedTuple):
    """A model trained further, as its rows name it."""

    model_kind: str
    recipe: str
    seed: int
    step: int
    key: str


class Done(Record):
    """`replacement.json`: what the second horn found, and what was made for it."""

    evidence: ReplacementEvidence
    cells: dict[str, dict[str, str]]
    """Kind -> key -> what it is, for every artefact."""
    student: str | None
    """Key of the student that is handed over."""
    further: tuple[Made, ...] = Field(default=(), exclude_if=lambda v: not v)
    """Students that were trained further, and their twins."""


def won(
    scores: pd.DataFrame, suspect: str, competitors: Sequence[Teacher], protocol: Protocol
) -> tuple[tuple[Competitor, ...], str]:
    """Return how every recipe did on `select` items, and the name of the one that won.

    Raises:
        ConfigError: If no recipe has a score.
    """
    from doublebind.evidence.replacement import choose, compete

    second = protocol.second
    assert second is not None
    labels = [t.label for t in competitors] or [suspect]
    stopping = {
        str(recipe["name"]): second.margin
        for recipe in second.recipes
        if any(t["kind"] == "distil_and_audit" for t in recipe.get("treatments", ()))
    }
    try:
        competed = compete(scores, labels, second.names, protocol.score_endpoints, stopping)
        return competed, choose(competed, second.margin)
    except ValueError as error:
        raise ConfigError(f"`replace`: {error}; add an audit that asks them") from None


class Settled(NamedTuple):
    """What a bound needs that is the same for every suspect: who won, and what it is held to."""

    competed: tuple[Competitor, ...]
    winner: str
    controls: list[tuple[str, str]]
    """Positive controls: teacher and recipe."""
    hard_classes: dict[str, str]
    """Competitor (label) -> the hard class that it stands for."""


def control_of(protocol: Protocol) -> str:
    """Return the name of the recipe that makes the positive controls: the one named, or the first.

    `protocol` has a second horn.
    """
    assert protocol.second is not None
    return protocol.second.controls or str(protocol.recipes[0]["name"])


def settled(
    scores: pd.DataFrame, suspect: str, competitors: Sequence[Teacher], protocol: Protocol
) -> Settled:
    """Return how the competition ended, and the positive controls of what follows."""
    from doublebind.evidence.replacement import carriers

    second = protocol.second
    assert second is not None
    competed, winner = won(scores, suspect, competitors, protocol)
    control = control_of(protocol)
    planted = [t.label for t in organisms(competitors) if t.label != suspect]
    known = carriers(scores, planted, control, second.margin)
    classes = {t.label: t.hard_class for t in competitors if t.hard_class}
    return Settled(competed, winner, [(label, control) for label in known], classes)


def decided(
    scores: pd.DataFrame,
    suspect: str,
    contest: Settled,
    protocol: Protocol,
    *,
    weights_sha256: str | None,
    recipe: str | None = None,
) -> tuple[ReplacementEvidence, Replacement]:
    """Return the second horn's evidence and decision, from scores and protocol alone.

    Args:
        scores: Rows of split `certify` of the suspect, its fresh students, M0 and the controls.
        suspect: Label of the teacher to be replaced.
        contest: How the competition ended.
        protocol: With a second horn.
        weights_sha256: Of the student that is handed over.
        recipe: Bound this one instead of the winner.
    """
    from doublebind.evidence.replacement import bound

    second = protocol.second
    assert second is not None
    bounded = recipe or contest.winner
    evidence = bound(
        scores,
        suspect,
        bounded,
        protocol.score_endpoints,
        margin=second.margin,
        competed=contest.competed,
        controls=contest.controls,
        hard_classes=contest.hard_classes,
        step=next(each.step for each in contest.competed if each.recipe == bounded),
    )
    if second.further is not None:
        from doublebind.evidence.further import furthered

        found, missing = furthered(scores, evidence, suspect, protocol.score_endpoints)
        missing = evidence.missing | missing
        evidence = evidence.model_copy(update={"further": found, "missing": missing})
    return evidence, replace(evidence, protocol, weights_sha256=weights_sha256)


def joined(
    verdict: Verdict, evidence: ReplacementEvidence, replacement: Replacement, protocol: Protocol
) -> Verdict:
    """Return the verdict with the second horn; which horn was reached, where both were asked."""
    both = "incriminate" in protocol.horns
    missing = {f"replacement.{name}": why for name, why in evidence.missing.items()}
    return verdict.model_copy(
        update={
            "replacement": replacement,
            "horn": horn(verdict.incrimination, replacement) if both else None,
            "missing": verdict.missing | missing,
        }
    )


def organisms(teachers: Sequence[Teacher]) -> list[Teacher]:
    """Return the planted ones among `teachers`."""
    return [t for t in teachers if t.role == "organism"]
