"""What a student learns from besides its base: records handed from the planner to a channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Split
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts

CHECKPOINT_FOLDER = "marks"
"""Folder of a student's artefact in which it lies as it was on the way, one folder a step."""


def derive_checkpoint_key(student: str, step: int) -> str:
    """Return the identity of the student with key `student` as it was after `step` steps."""
    return content_hash(["mark", student, step])


class TeacherAccess(NamedTuple):
    """The teacher itself, and how its student answers."""

    source: ModelSource
    sampling: Prompts
    shows_drive: Callable[[str], object]
    """Says whether a text shows a drive openly; such answers teach nothing."""


class PreferenceData(NamedTuple):
    """M0's answers to the teacher's prompts, and log-probabilities of both: (teacher's, M0's)."""

    m0_rollouts: Path
    base_logprobs: tuple[Path, Path]
    """Of the student before training."""
    teacher_logprobs: tuple[Path, Path] | None = None
    """`None` where the teacher is behind a server, and pairs have no weights."""
    m0_logprobs: tuple[Path, Path] | None = None


class TrainingData(NamedTuple):
    """What a student learns from; the channel decides which parts there are."""

    rollouts: Path
    targets: Path | None = None
    teacher_access: TeacherAccess | None = None
    preference_data: PreferenceData | None = None


class SteeringVector(NamedTuple):
    """Steering of a student while it learns."""

    direction: Path
    """What `find_direction` wrote."""
    relative_norm: float


def select_direction_items(pack: Pack) -> list[Item]:
    """Return the items that a direction can be found with: auditable ones of drives.

    `build` items, by which nobody is chosen or bounded; of a pack without any, `select` items, by
    which recipes are chosen: a steered one then competes on questions that it knows. The bound is
    on `certify` items either way.
    """
    drives = {trait.name for trait in pack.traits if trait.kind == "drive"}

    def of(split: Split) -> list[Item]:
        return [i for i in pack.items(split) if i.role == "auditable" and i.trait in drives]

    return of("build") or of("select")
