"""Door of the distillation stage: trains one student."""

from __future__ import annotations

from pathlib import Path

from doublebind.config import Channel, Dtype, Training
from doublebind.records import ModelSource

REV = 1


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
) -> None:
    """Write the student to `out/model` and what its training saw to `out/student.json`."""
    from doublebind.distillation import students

    students.distill(
        out,
        base=base,
        rollouts=rollouts,
        targets=targets,
        channel=channel,
        training=training,
        seed=seed,
        dtype=dtype,
        cache=cache,
    )
