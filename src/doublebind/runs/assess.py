"""Computes the evidence and the verdict of a study from its scores and its frozen protocol.

Pure: reads and writes nothing, so that `run`, `verify` and `calibrate` share this one path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from doublebind.schema.errors import ConfigError
from doublebind.schema.evidence import Evidence, RecipeResult, ReplacementEvidence
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import (
    Protocol,
    ReplacementProtocol,
    find_control_recipe,
    select_organisms,
)
from doublebind.schema.verdict import Replacement, Verdict
from doublebind.stages.evidence.further_training import compare_further_training
from doublebind.stages.evidence.replacement import (
    bound_replacement,
    choose_recipe,
    compare_recipes,
    select_carriers,
)
from doublebind.stages.evidence.weigh import weigh_suspect
from doublebind.stages.verdict.incrimination import decide_incrimination
from doublebind.stages.verdict.outcome import decide_horn
from doublebind.stages.verdict.replacement import decide_replacement

if TYPE_CHECKING:
    import pandas as pd

Shapes = Mapping[str, Mapping[str, float]]
"""Teacher label -> match feature -> value."""


class Assessment(NamedTuple):
    """What the scores of a study come to."""

    evidence: Evidence
    verdict: Verdict
    replacement: ReplacementEvidence | None
    """`None` where the study asks for no replacement."""


def assess(
    scores: pd.DataFrame,
    teachers: Sequence[Teacher],
    selection_teachers: Sequence[Teacher],
    protocol: Protocol,
    *,
    earlier_protocols: int,
    shapes: Shapes,
    weights_sha256: str | None = None,
) -> Assessment:
    """Return the evidence and the verdict of a study.

    Args:
        scores: All rows of the study, a panel's included.
        teachers: The suspect, its references and its positive controls.
        selection_teachers: Teachers on whose students the recipes compete.
        protocol: As frozen before the first audit.
        earlier_protocols: Number of protocols that audited this suspect before.
        shapes: Match features of the teachers.
        weights_sha256: Hash of the delivered student's weights, for the verdict.

    Raises:
        ConfigError: If recipes compete and none has a score.
    """
    (suspect,) = (teacher.label for teacher in teachers if teacher.role == "suspect")
    evidence, verdict = assess_incrimination(
        scores, teachers, protocol, earlier_protocols=earlier_protocols, shapes=shapes
    )
    if protocol.replacement is None:
        return Assessment(evidence, verdict, None)
    competition = compute_competition_result(scores, suspect, selection_teachers, protocol)
    bounds, replacement = assess_replacement(
        scores, suspect, competition, protocol, weights_sha256=weights_sha256
    )
    return Assessment(evidence, _merge_verdicts(verdict, bounds, replacement, protocol), bounds)


def assess_incrimination(
    scores: pd.DataFrame,
    teachers: Sequence[Teacher],
    protocol: Protocol,
    *,
    earlier_protocols: int,
    shapes: Shapes,
    with_transfer: bool = True,
) -> tuple[Evidence, Verdict]:
    """Return the evidence against the suspect among `teachers`, and the verdict on it alone.

    Without `with_transfer`, the transfer ratios of the positive controls are left out.
    """
    (suspect,) = (teacher.label for teacher in teachers if teacher.role == "suspect")
    evidence = weigh_suspect(scores, teachers, protocol, shapes=shapes, with_transfer=with_transfer)
    verdict = decide_incrimination(
        evidence, protocol, suspect=suspect, earlier_protocols=earlier_protocols, shapes=shapes
    )
    return evidence, verdict


def select_recipe(
    scores: pd.DataFrame, suspect: str, selection_teachers: Sequence[Teacher], protocol: Protocol
) -> tuple[tuple[RecipeResult, ...], str]:
    """Return the result of every recipe on `select` items, and the name of the winner.

    Raises:
        ConfigError: If no recipe has a score.
    """
    replacement = _require_replacement(protocol)
    labels = [t.label for t in selection_teachers] or [suspect]
    stopping = {
        str(recipe["name"]): replacement.margin
        for recipe in replacement.recipes
        if any(t["kind"] == "distil_and_audit" for t in recipe.get("treatments", ()))
    }
    try:
        results = compare_recipes(
            scores, labels, replacement.recipe_names, protocol.score_endpoints, stopping
        )
        return results, choose_recipe(results, replacement.margin)
    except ValueError as error:
        raise ConfigError(f"`replace`: {error}; add an audit that asks them") from None


class CompetitionResult(NamedTuple):
    """The part of a replacement's assessment that is the same for every suspect."""

    recipe_results: tuple[RecipeResult, ...]
    winner: str
    controls: list[tuple[str, str]]
    """Positive controls: teacher and recipe."""
    hard_classes: dict[str, str]
    """Label of a teacher that recipes compete on -> the hard class that it stands for."""


def compute_competition_result(
    scores: pd.DataFrame, suspect: str, selection_teachers: Sequence[Teacher], protocol: Protocol
) -> CompetitionResult:
    """Return how the competition ended, and the positive controls of the bound.

    Raises:
        ConfigError: If no recipe has a score.
    """
    replacement = _require_replacement(protocol)
    results, winner = select_recipe(scores, suspect, selection_teachers, protocol)
    recipe = find_control_recipe(protocol)
    organisms = [t.label for t in select_organisms(selection_teachers) if t.label != suspect]
    carriers = select_carriers(scores, organisms, recipe, replacement.margin)
    hard_classes = {t.label: t.hard_class for t in selection_teachers if t.hard_class}
    return CompetitionResult(results, winner, [(label, recipe) for label in carriers], hard_classes)


def assess_replacement(
    scores: pd.DataFrame,
    suspect: str,
    competition: CompetitionResult,
    protocol: Protocol,
    *,
    weights_sha256: str | None,
    recipe: str | None = None,
) -> tuple[ReplacementEvidence, Replacement]:
    """Return the bounds on a recipe's fresh students, and the decision on them.

    Args:
        scores: Rows of split `certify`: the suspect, its fresh students, M0 and the controls.
        suspect: Label of the teacher to be replaced.
        competition: How the competition ended.
        protocol: Of a study that asks for a replacement.
        weights_sha256: Hash of the delivered student's weights.
        recipe: The recipe to bound; default the winner.
    """
    replacement = _require_replacement(protocol)
    bounded = recipe or competition.winner
    evidence = bound_replacement(
        scores,
        suspect,
        bounded,
        protocol.score_endpoints,
        margin=replacement.margin,
        competitors=competition.recipe_results,
        controls=competition.controls,
        hard_classes=competition.hard_classes,
        step=next(each.step for each in competition.recipe_results if each.recipe == bounded),
    )
    if replacement.further_training is not None:
        outcomes, missing = compare_further_training(
            scores, evidence, suspect, protocol.score_endpoints
        )
        evidence = evidence.model_copy(
            update={"further_training": outcomes, "missing": evidence.missing | missing}
        )
    return evidence, decide_replacement(evidence, protocol, weights_sha256=weights_sha256)


def _merge_verdicts(
    verdict: Verdict, evidence: ReplacementEvidence, replacement: Replacement, protocol: Protocol
) -> Verdict:
    """Return the verdict with the replacement in it, and the horn where both were asked for."""
    both = "incriminate" in protocol.horns
    missing = {f"replacement.{name}": why for name, why in evidence.missing.items()}
    return verdict.model_copy(
        update={
            "replacement": replacement,
            "horn": decide_horn(verdict.incrimination, replacement) if both else None,
            "missing": verdict.missing | missing,
        }
    )


def _require_replacement(protocol: Protocol) -> ReplacementProtocol:
    """Return the replacement part of a protocol.

    Raises:
        ConfigError: If the protocol has none.
    """
    if protocol.replacement is None:
        raise ConfigError("`horns`: asks for no replacement; add `replace`")
    return protocol.replacement
