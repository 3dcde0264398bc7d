"""Constructors of the jobs that need no plan: one teacher, one choice of prompts, one audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.schema.content import Split
from doublebind.schema.errors import PackError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts, Recipe, Steering
from doublebind.stages.audits import REV as AUDIT_REV
from doublebind.stages.audits.battery import run_battery
from doublebind.stages.audits.protocol import Audit, describe_audit
from doublebind.stages.distillation import REV as DISTILLATION_REV
from doublebind.stages.distillation.initialise import initialise_with_noise, merge_adapter
from doublebind.stages.distillation.steering import find_steering_direction
from doublebind.stages.distillation.student_inputs import (
    CHECKPOINT_FOLDER,
    derive_checkpoint_key,
    select_direction_items,
)
from doublebind.stages.prompts import REV as PROMPTS_REV
from doublebind.stages.prompts.policies import select_prompts
from doublebind.stages.rollouts import REV as ROLLOUTS_REV
from doublebind.stages.teachers import REV as TEACHERS_REV
from doublebind.stages.teachers.build import build_teacher
from doublebind.study.runtime import PackRef, Runtime, list_device_keys
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    import pandas as pd

REVISIONS = {
    "audit": AUDIT_REV,
    "distillation": DISTILLATION_REV,
    "prompts": PROMPTS_REV,
    "rollouts": ROLLOUTS_REV,
    "teachers": TEACHERS_REV,
}
"""Stage -> its revision, which enters the keys of its jobs."""


class ModelJobs(NamedTuple):
    """A model, and the jobs that have to run before it can be loaded."""

    source: ModelSource
    needs: tuple[Job, ...] = ()


def locate_trained_model(
    store: Store, kind: str, key: str, base: ModelSource, adapter: bool
) -> ModelSource:
    """Return the model that a job trains from `base`; it runs on the device of `base`."""
    folder = str(store.path(kind, key) / "model")
    if adapter:
        model = ModelSource(kind="adapter", path=base.path, adapter=folder, sha256=key)
    else:
        model = ModelSource(kind="folder", path=folder, sha256=key)
    return model.with_device(base.device)


def locate_checkpoint(student: ModelSource, step: int) -> ModelSource:
    """Return the checkpoint of a trained `student` after `step` steps."""
    field = "adapter" if student.kind == "adapter" else "path"
    folder = Path(getattr(student, field)).with_name(CHECKPOINT_FOLDER) / str(step)
    key = derive_checkpoint_key(student.sha256, step)
    return student.model_copy(update={field: str(folder), "sha256": key})


def plan_adapter_merge(store: Store, model: ModelJobs, runtime: Runtime) -> ModelJobs:
    """Return a model that can be trained: the same, or its adapter merged into its base."""
    source = model.source
    if source.adapter is None:
        return model
    depends = [source.sha256, runtime.dtype, *list_device_keys(source.device)]
    key = content_hash(["merged", DISTILLATION_REV, *depends])
    inputs = {"source": source, **runtime.inputs}
    merged = locate_trained_model(store, "base", key, source, adapter=False)
    return ModelJobs(
        merged, (Job("base", key, merge_adapter, inputs, "merged", needs=model.needs),)
    )


def plan_initialisation(
    store: Store, base: ModelSource, recipe: Recipe, seed: int, cache: Path
) -> ModelJobs:
    """Return the first weights of a student: those of `base`, with the recipe's noise."""
    if recipe.noise_init is None:
        return ModelJobs(base)
    key = content_hash(["base", DISTILLATION_REV, base.sha256, recipe.noise_init, seed])
    inputs = {"base": base, "share": recipe.noise_init, "seed": seed, "cache": cache}
    job = Job("base", key, initialise_with_noise, inputs, f"{recipe.noise_init} noise, seed {seed}")
    return ModelJobs(locate_trained_model(store, "base", key, base, adapter=False), (job,))


def create_steering_job(
    steering: Steering, base: ModelJobs, pack: PackRef, runtime: Runtime
) -> Job:
    """Return the job that finds the direction in which students of `base` are steered.

    Raises:
        PackError: If the pack has no item to find it with.
    """
    if not select_direction_items(pack.pack):
        raise PackError(
            f"pack {pack.pack.name}: `steering` finds its direction with auditable `build` or "
            f"`select` items of drives, and there are none; add some, or leave `steering` out"
        )
    source = base.source
    depends = [source.sha256, pack.pack.sha256, steering.layer]
    depends += [runtime.dtype, *list_device_keys(source.device)]
    key = content_hash(["direction", DISTILLATION_REV, *depends])
    inputs = {"base": source, "pack": pack.name, "layer": steering.layer, **runtime.inputs}
    return Job("direction", key, find_steering_direction, inputs, needs=base.needs)


def create_teacher_job(teacher: TeacherSource, cache: Path) -> Job:
    """Return the job that builds a teacher from its spec."""
    inputs = {"spec": teacher.spec, "base": teacher.base, "pack": teacher.pack, "cache": cache}
    if teacher.scale_like is not None:
        inputs["scale_like"] = teacher.scale_like
    return Job("teacher", teacher.content_key, build_teacher, inputs)


def create_prompts_job(prompts: Prompts, pack: PackRef, file: Path | None = None) -> Job:
    """Return the job that selects a recipe's prompts, of `file` or of the pack.

    The `file` of `prompts` is the hash of its content, as `Workspace.identify_prompts` gives it.
    """
    depends: list[object] = [PROMPTS_REV, pack.pack.sha256, prompts.policy, prompts.n]
    inputs: dict[str, object] = {"pack": pack.name, "policy": prompts.policy, "n": prompts.n}
    if file is not None:
        inputs |= {"file": file, "file_hash": prompts.file}
        depends.append(prompts.file)
    key = content_hash(["prompts", *depends])
    return Job("prompts", key, select_prompts, inputs, prompts.policy)


def create_audit_job(
    model: ModelJobs | ModelSource,
    baseline: ModelSource,
    pack: PackRef,
    audits: Sequence[Audit],
    runtime: Runtime,
    split: Split = "audit",
) -> Job:
    """Return the job that audits a model on the pack's items of `split`, next to `baseline`."""
    source, needs = model if isinstance(model, ModelJobs) else ModelJobs(model)
    settings = [describe_audit(audit) for audit in audits]
    depends = [source.sha256, baseline.sha256, pack.pack.sha256, split, settings, runtime.dtype]
    depends += [source.engine.kind] if source.engine else []
    depends += list_device_keys(source.device)
    inputs = {
        "source": source,
        "baseline": baseline,
        "pack": pack.name,
        "split": split,
        "audits": tuple(audits),
        **runtime.inputs,
    }
    key = content_hash(["audit", AUDIT_REV, *depends])
    return Job("audit", key, run_battery, inputs, needs=needs)


def read_scores(artefact: Path) -> pd.DataFrame:
    """Return the score rows of an audit's artefact."""
    import pandas as pd

    return pd.read_parquet(artefact / "scores.parquet")
