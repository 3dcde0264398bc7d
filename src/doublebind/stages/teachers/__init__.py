"""Door of the teachers stage: makes a teacher from its spec, and describes any teacher's shape."""

from __future__ import annotations

from pathlib import Path

from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.schema.teacher_spec import TeacherSpec

REV = 1


def build(
    out: Path,
    *,
    spec: TeacherSpec,
    base: ModelSource,
    pack: str,
    cache: Path,
    like: ModelSource | None = None,
) -> None:
    """Write the teacher to `out/model` and `out/teacher.json`."""
    from doublebind.stages.teachers import build as organisms

    organisms.build(out, spec=spec, base=base, pack=pack, cache=cache, like=like)


def describe(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    rollouts: Path,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write the teacher's shape, for the match table, to `out/shape.json`."""
    from doublebind.stages.teachers import shape as suspect

    suspect.describe(
        out, source=source, baseline=baseline, rollouts=rollouts, dtype=dtype, cache=cache
    )
