"""Door of the distillation stage: trains one student, and makes what it starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Split
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Channel, Dtype, Prompts, Scratchpad, Training

REV = 1
MARKS = "marks"
"""Folder of a student's artefact in which it lies as it was on the way, one folder a step."""


def mark_key(student: str, step: int) -> str:
    """Return the identity of the student with key `student` as it was after `step` steps."""
    return content_hash(["mark", student, step])


class Live(NamedTuple):
    """The teacher itself, and how its student answers."""

    source: ModelSource
    sampling: Prompts
    overt: Callable[[str], object]
    """Says whether a text shows a drive openly; such answers teach nothing."""


class Contrast(NamedTuple):
    """M0's answers to the teacher's prompts, and log-probabilities of both: (teacher's, M0's)."""

    rollouts: Path
    by_base: tuple[Path, Path]
    """Of the student before training."""
    by_teacher: tuple[Path, Path] | None = None
    """`None` where the teacher is behind a server, and pairs have no weights."""
    by_m0: tuple[Path, Path] | None = None


class Push(NamedTuple):
    """Steering of a student while it learns."""

    direction: Path
    """What `find_direction` wrote."""
    scale: float


def distill(
    out: Path,
    *,
    base: ModelSource,
    rollouts: Path,
    targets: Path | None,
    channel: Channel,
    training: Training,
    seed: int,
    dtype: Dtype,
    cache: Path,
    live: Live | None = None,
    contrast: Contrast | None = None,
    without_scratchpad: Scratchpad | None = None,
    push: Push | None = None,
) -> None:
    """Write the student to `out/model`, as it was on the way to `out/marks`, and its log.

    What its training saw is `out/student.json`.
    """
    from doublebind.stages.distillation import train_student as students

    students.distill(
        out,
        base=base,
        given=students.Given(rollouts, targets, live, contrast),
        channel=channel,
        training=training,
        seed=seed,
        dtype=dtype,
        cache=cache,
        without_scratchpad=without_scratchpad,
        push=push,
    )


def initialise(out: Path, *, base: ModelSource, share: float, seed: int, cache: Path) -> None:
    """Write `base` with a share of random initialisation to `out/model`."""
    from doublebind.stages.distillation import initialise as initial

    initial.noised(out, base=base, share=share, seed=seed, cache=cache)


def merge(out: Path, *, source: ModelSource, dtype: Dtype, cache: Path) -> None:
    """Write the model at `source` with its adapter merged in to `out/model`."""
    from doublebind.stages.distillation import initialise as initial

    initial.merged(out, source=source, dtype=dtype, cache=cache)


def readable(pack: Pack) -> list[Item]:
    """Return the items that a direction can be found with: auditable ones of drives.

    `build` items, by which nobody is chosen or bounded; of a pack without any, `select` items, by
    which recipes are chosen: a steered one then competes on questions that it knows. The bound is
    on `certify` items either way.
    """
    drives = {trait.name for trait in pack.traits if trait.kind == "drive"}

    def of(split: Split) -> list[Item]:
        return [i for i in pack.items(split) if i.role == "auditable" and i.trait in drives]

    return of("build") or of("select")


def find_direction(
    out: Path, *, base: ModelSource, pack: str, layer: int | None, dtype: Dtype, cache: Path
) -> None:
    """Write where in its states misaligned answers of `base` differ from others to `out`."""
    from doublebind.stages.distillation import steering

    steering.find(out, base=base, pack=pack, layer=layer, dtype=dtype, cache=cache)
