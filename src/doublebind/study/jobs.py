"""Jobs that no plan is needed for: one teacher, one choice of prompts, one audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.packs.pack import Pack
from doublebind.schema.content import Split
from doublebind.schema.errors import PackError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import Device, ModelSource
from doublebind.schema.recipe import Dtype, Prompts, Recipe, Steering
from doublebind.stages.audits import REV as AUDIT_REV
from doublebind.stages.audits.battery import run_battery
from doublebind.stages.audits.protocol import Audit, identify_audit
from doublebind.stages.distillation import REV as DISTILLATION_REV
from doublebind.stages.distillation.initialise import initialise_with_noise, merge_adapter
from doublebind.stages.distillation.steering import find_steering_direction
from doublebind.stages.distillation.student_inputs import (
    CHECKPOINT_FOLDER,
    derive_checkpoint_key,
    select_direction_items,
)
from doublebind.stages.prompts import REV as PROMPTS_REV
from doublebind.stages.prompts.policies import read_prompts, select_prompts
from doublebind.stages.teachers.build import build_teacher
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    import pandas as pd


def locate_trained_model(
    store: Store, kind: str, key: str, base: ModelSource, adapter: bool
) -> ModelSource:
    """Return where the model that a job trains from `base` lies, or will lie, and its device."""
    made = str(store.path(kind, key) / "model")
    if adapter:
        found = ModelSource(kind="adapter", path=base.path, adapter=made, sha256=key)
    else:
        found = ModelSource(kind="folder", path=made, sha256=key)
    return found.with_device(base.device)


def list_device_keys(device: Device) -> list[str]:
    """Return what keys depend on beside the precision; nothing on the CPU, so that none moves."""
    return [] if device == "cpu" else [device]


def locate_checkpoint(made: ModelSource, step: int) -> ModelSource:
    """Return where the student `made` lies as it was after `step` steps, with its own identity."""
    which = "adapter" if made.kind == "adapter" else "path"
    there = Path(getattr(made, which)).with_name(CHECKPOINT_FOLDER) / str(step)
    key = derive_checkpoint_key(made.sha256, step)
    return made.model_copy(update={which: str(there), "sha256": key})


def plan_adapter_merge(
    store: Store, source: ModelSource, *, dtype: Dtype, cache: Path
) -> tuple[tuple[Job, ...], ModelSource]:
    """Return a model that can be trained, and the job that merges an adapter into its base."""
    if source.adapter is None:
        return (), source
    depends = [source.sha256, dtype, *list_device_keys(source.device)]
    key = content_hash(["merged", DISTILLATION_REV, *depends])
    inputs = {"source": source, "dtype": dtype, "cache": cache}
    made = locate_trained_model(store, "base", key, source, adapter=False)
    return (Job("base", key, merge_adapter, inputs, "merged"),), made


def plan_initialisation(
    store: Store, base: ModelSource, recipe: Recipe, seed: int, cache: Path
) -> tuple[ModelSource, tuple[Job, ...]]:
    """Return what a student starts from, and the job that makes it of `base`, if one does."""
    if recipe.noise_init is None:
        return base, ()
    key = content_hash(["base", DISTILLATION_REV, base.sha256, recipe.noise_init, seed])
    inputs = {"base": base, "share": recipe.noise_init, "seed": seed, "cache": cache}
    job = Job("base", key, initialise_with_noise, inputs, f"{recipe.noise_init} noise, seed {seed}")
    return locate_trained_model(store, "base", key, base, adapter=False), (job,)


def create_steering_job(
    steer: Steering, base: ModelSource, pack: Pack, pack_ref: str, dtype: Dtype, cache: Path
) -> Job:
    """Return the job that finds the direction along which students of `base` are pushed.

    Raises:
        PackError: If no drive has an item to find it with.
    """
    if not select_direction_items(pack):
        raise PackError(
            f"pack {pack.name}: `steer` finds its direction with auditable `build` or `select` "
            f"items of drives, and there are none; add some, or leave `steer` out"
        )
    depends = [base.sha256, pack.sha256, steer.layer, dtype, *list_device_keys(base.device)]
    key = content_hash(["direction", DISTILLATION_REV, *depends])
    inputs = {"base": base, "pack": pack_ref, "layer": steer.layer, "dtype": dtype, "cache": cache}
    return Job("direction", key, find_steering_direction, inputs)


def create_teacher_job(teacher: TeacherSource, cache: Path) -> Job:
    """Return the job that makes a teacher from its spec."""
    inputs = {"spec": teacher.spec, "base": teacher.base, "pack": teacher.pack, "cache": cache}
    if teacher.scale_like is not None:
        inputs["scale_like"] = teacher.scale_like
    return Job("teacher", teacher.content_key, build_teacher, inputs)


def create_prompts_job(asked: Prompts, pack: Pack, pack_ref: str, folder: Path) -> Job:
    """Return the job that chooses the prompts of a recipe; `folder` is the study's."""
    depends: list[object] = [PROMPTS_REV, pack.sha256, asked.policy, asked.n]
    inputs = {"pack": pack_ref, "policy": asked.policy, "n": asked.n}
    if asked.file is not None:
        inputs["file"] = there = folder / asked.file
        depends.append(content_hash(read_prompts(there)))
    key = content_hash(["prompts", *depends])
    return Job("prompts", key, select_prompts, inputs, asked.policy)


def create_audit_job(
    key: str,
    source: ModelSource,
    baseline: ModelSource,
    *,
    split: Split = "audit",
    pack_ref: str,
    pack_hash: str,
    audits: Sequence[Audit],
    dtype: Dtype,
    cache: Path,
) -> Job:
    """Return the job that asks the model `source`, of identity `key`, the pack's items."""
    asked = [[*identify_audit(audit), vars(audit)] for audit in audits]
    depends = [key, baseline.sha256, pack_hash, split, asked, dtype]
    depends += [source.engine.kind] if source.engine else []
    depends += list_device_keys(source.device)
    inputs = {
        "source": source,
        "baseline": baseline,
        "pack": pack_ref,
        "split": split,
        "audits": tuple(audits),
        "dtype": dtype,
        "cache": cache,
    }
    return Job("audit", content_hash(["audit", AUDIT_REV, *depends]), run_battery, inputs)


def read_scores(artefact: Path) -> pd.DataFrame:
    """Return the score rows of an audit's artefact."""
    import pandas as pd

    return pd.read_parquet(artefact / "scores.parquet")
