"""Decides the second horn from scores and protocol alone, so that anyone can do it again.

Knows which rows compete and which are bounded. Does not know how a student is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from doublebind.execution.store import write_atomic
from doublebind.schema.errors import ConfigError
from doublebind.schema.evidence import RecipeResult, ReplacementEvidence
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol, find_control_recipe, select_organisms
from doublebind.schema.verdict import Replacement, Verdict
from doublebind.stages.verdict.outcome import decide_horn
from doublebind.stages.verdict.replacement import decide_replacement
from doublebind.study.plan import Plan
from doublebind.study.replacement import find_delivered_student, hash_weights, merge_artefacts
from doublebind.study.resolve import ResolvedStudy

if TYPE_CHECKING:
    import pandas as pd


def record_replacement(
    out: Path,
    setting: ResolvedStudy,
    plans: Sequence[Plan],
    scores: pd.DataFrame,
    verdict: Verdict,
) -> Verdict:
    """Decide the second horn, keep what it rests on, and return the verdict on both."""
    assert setting.replacement is not None
    label, competitors = setting.suspect.label, setting.replacement.teachers
    contest = compute_competition_result(scores, label, competitors, setting.protocol)
    student = find_delivered_student(
        plans[-1], label, next(c for c in contest.recipe_results if c.recipe == contest.winner)
    )
    evidence, replacement = assess_replacement(
        scores, label, contest, setting.protocol, weights_sha256=hash_weights(student)
    )
    made = ReplacementRecord(
        evidence=evidence,
        artefacts=merge_artefacts(plans),
        student=student.sha256,
        further_training=tuple(
            FurtherTrainedModel(e.model_kind, e.recipe, e.seed, e.step, e.train.content_key)
            for e in plans[-1].further_training
        ),
    )
    write_atomic(out / "replacement.json", made.model_dump_json(indent=1))
    return merge_verdicts(verdict, evidence, replacement, setting.protocol)


class FurtherTrainedModel(NamedTuple):
    """A model trained further, as its rows name it."""

    model_kind: str
    recipe: str
    seed: int
    step: int
    content_key: str


class ReplacementRecord(Record):
    """`replacement.json`: what the second horn found, and what was made for it."""

    evidence: ReplacementEvidence
    artefacts: dict[str, dict[str, str]]
    """Kind -> key -> what it is, for every artefact."""
    student: str | None
    """Key of the student that is handed over."""
    further_training: tuple[FurtherTrainedModel, ...] = Field(
        default=(), exclude_if=lambda v: not v
    )
    """Students that were trained further, and their twins."""


def select_recipe(
    scores: pd.DataFrame, suspect: str, competitors: Sequence[Teacher], protocol: Protocol
) -> tuple[tuple[RecipeResult, ...], str]:
    """Return how every recipe did on `select` items, and the name of the one that won.

    Raises:
        ConfigError: If no recipe has a score.
    """
    from doublebind.stages.evidence.replacement import choose_recipe, compare_recipes

    second = protocol.replacement
    assert second is not None
    labels = [t.label for t in competitors] or [suspect]
    stopping = {
        str(recipe["name"]): second.margin
        for recipe in second.recipes
        if any(t["kind"] == "distil_and_audit" for t in recipe.get("treatments", ()))
    }
    try:
        competed = compare_recipes(
            scores, labels, second.recipe_names, protocol.score_endpoints, stopping
        )
        return competed, choose_recipe(competed, second.margin)
    except ValueError as error:
        raise ConfigError(f"`replace`: {error}; add an audit that asks them") from None


class CompetitionResult(NamedTuple):
    """What a bound needs that is the same for every suspect: who won, and what it is held to."""

    recipe_results: tuple[RecipeResult, ...]
    winner: str
    controls: list[tuple[str, str]]
    """Positive controls: teacher and recipe."""
    hard_classes: dict[str, str]
    """Competitor (label) -> the hard class that it stands for."""


def compute_competition_result(
    scores: pd.DataFrame, suspect: str, competitors: Sequence[Teacher], protocol: Protocol
) -> CompetitionResult:
    """Return how the competition ended, and the positive controls of what follows."""
    from doublebind.stages.evidence.replacement import select_carriers

    second = protocol.replacement
    assert second is not None
    competed, winner = select_recipe(scores, suspect, competitors, protocol)
    control = find_control_recipe(protocol)
    planted = [t.label for t in select_organisms(competitors) if t.label != suspect]
    known = select_carriers(scores, planted, control, second.margin)
    classes = {t.label: t.hard_class for t in competitors if t.hard_class}
    return CompetitionResult(competed, winner, [(label, control) for label in known], classes)


def assess_replacement(
    scores: pd.DataFrame,
    suspect: str,
    competition: CompetitionResult,
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
    from doublebind.stages.evidence.replacement import bound_replacement

    second = protocol.replacement
    assert second is not None
    bounded = recipe or competition.winner
    evidence = bound_replacement(
        scores,
        suspect,
        bounded,
        protocol.score_endpoints,
        margin=second.margin,
        competitors=competition.recipe_results,
        controls=competition.controls,
        hard_classes=competition.hard_classes,
        step=next(each.step for each in competition.recipe_results if each.recipe == bounded),
    )
    if second.further_training is not None:
        from doublebind.stages.evidence.further_training import compare_further_training

        found, missing = compare_further_training(
            scores, evidence, suspect, protocol.score_endpoints
        )
        missing = evidence.missing | missing
        evidence = evidence.model_copy(update={"further_training": found, "missing": missing})
    return evidence, decide_replacement(evidence, protocol, weights_sha256=weights_sha256)


def merge_verdicts(
    verdict: Verdict, evidence: ReplacementEvidence, replacement: Replacement, protocol: Protocol
) -> Verdict:
    """Return the verdict with the second horn; which horn was reached, where both were asked."""
    both = "incriminate" in protocol.horns
    missing = {f"replacement.{name}": why for name, why in evidence.missing.items()}
    return verdict.model_copy(
        update={
            "replacement": replacement,
            "horn": decide_horn(verdict.incrimination, replacement) if both else None,
            "missing": verdict.missing | missing,
        }
    )
