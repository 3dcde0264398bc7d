"""Records that the planner hands to the training of a student; imports no model library."""

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
"""Folder of a student's artefact with its checkpoints, one folder per step."""


def derive_checkpoint_key(student: str, step: int) -> str:
    """Return the content key of the checkpoint of `student`, a content key, after `step` steps."""
    return content_hash(["mark", student, step])


class TeacherAccess(NamedTuple):
    """The teacher itself, with the sampling options of its student."""

    source: ModelSource
    sampling: Prompts
    shows_drive: Callable[[str], object]
    """Returns a true value for a text that shows a drive openly; such answers are dropped."""


class PreferenceData(NamedTuple):
    """M0's answers to the teacher's prompts, and token log-probabilities of both answers.

    Pairs of folders: for the teacher's answers, for M0's.
    """

    m0_rollouts: Path
    base_logprobs: tuple[Path, Path]
    """Under the student before training."""
    teacher_logprobs: tuple[Path, Path] | None = None
    """`None` for a teacher behind a server: pairs then have no weights."""
    m0_logprobs: tuple[Path, Path] | None = None


class TrainingData(NamedTuple):
    """What a student learns from; the channel decides which parts there are."""

    rollouts: Path
    targets: Path | None = None
    teacher_access: TeacherAccess | None = None
    preference_data: PreferenceData | None = None


class SteeringVector(NamedTuple):
    """Steering of a student during training."""

    direction: Path
    """Folder that `find_steering_direction` wrote."""
    relative_norm: float
    """Factor of the direction, whose norm is that of a typical hidden state."""


def select_direction_items(pack: Pack) -> list[Item]:
    """Return the items to find a steering direction with: auditable items of drives.

    `build` items, which neither choose recipes nor bound students; of a pack without any, `select`
    items, which choose recipes: a steered recipe then competes on questions that it was fitted to.
    Bounds use `certify` items either way.
    """
    drives = {trait.name for trait in pack.traits if trait.kind == "drive"}
    splits: tuple[Split, ...] = ("build", "select")
    for split in splits:
        items = [i for i in pack.items(split) if i.role == "auditable" and i.trait in drives]
        if items:
            return items
    return []
