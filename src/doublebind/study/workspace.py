"""What all jobs of a study share: store, packs, M0, audits, and how models are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.models.resolve import resolve_model
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts, Recipe
from doublebind.schema.score_table import M0
from doublebind.stages.audits.protocol import Audit
from doublebind.stages.prompts.policies import hash_prompts
from doublebind.study.jobs import ModelJobs, create_teacher_job, locate_trained_model
from doublebind.study.runtime import PackRef, Runtime
from doublebind.study.teachers import TeacherSource


@dataclass(frozen=True)
class Workspace:
    """Store, packs, M0, audits and runtime of one study."""

    store: Store
    folder: Path
    """What relative paths in the study are relative to."""
    runtime: Runtime
    pack: PackRef
    certify_pack: PackRef
    """The pack whose `certify` items are asked."""
    student_base: ModelSource
    audits: tuple[Audit, ...]
    other_bases: dict[str, ModelSource] = field(default_factory=dict[str, ModelSource])
    """Student bases other than M0 that recipes name, each resolved once."""
    prompt_files: dict[str, str] = field(default_factory=dict[str, str])
    """Prompt file that recipes name -> hash of its prompts, each read once."""

    @property
    def m0(self) -> TeacherSource:
        """M0 as the author of answers."""
        return TeacherSource(M0, M0, self.student_base.sha256, self.student_base, None)

    def path(self, job: Job) -> Path:
        """Return the folder of a job's artefact."""
        return self.store.path(job.kind, job.content_key)

    def resolve_student_base(self, ref: str | None) -> ModelSource:
        """Return the base of a recipe's students: the model `ref`, or M0 where it names none."""
        if ref is None:
            return self.student_base
        if ref not in self.other_bases:
            base = resolve_model(ref, relative_to=self.folder)
            self.other_bases[ref] = base.with_device(self.runtime.device)
        return self.other_bases[ref]

    def identify_prompts(self, prompts: Prompts) -> Prompts:
        """Return prompts with the hash of their file's content in place of its name.

        Raises:
            ConfigError: If the file cannot be read.
        """
        name = prompts.file
        if name is None:
            return prompts
        if name not in self.prompt_files:
            self.prompt_files[name] = hash_prompts(self.folder / name)
        return prompts.model_copy(update={"file": self.prompt_files[name]})

    def identify_recipe(self, recipe: Recipe) -> Recipe:
        """Return a recipe with content hashes in place of names: what it says wherever files are.

        The prompt file is its content's hash; the student base its content key, or `None` for M0.
        """
        base = self.resolve_student_base(recipe.student).sha256
        content = {
            "prompts": self.identify_prompts(recipe.prompts),
            "student": None if base == self.student_base.sha256 else base,
        }
        return recipe.model_copy(update=content)

    def find_model(self, teacher: TeacherSource) -> ModelJobs:
        """Return a teacher's model on the study's device, and the job that builds it."""
        if teacher.spec is None:
            return ModelJobs(teacher.base)
        job = create_teacher_job(teacher, self.runtime.cache)
        adapter = teacher.spec.lora is not None
        model = locate_trained_model(self.store, job.kind, job.content_key, teacher.base, adapter)
        return ModelJobs(model.with_device(self.runtime.device), (job,))

    def list_drive_markers(self) -> dict[str, tuple[str, ...]]:
        """Return drive -> phrases that show it openly in an answer."""
        return {t.name: t.markers for t in self.pack.pack.traits if t.kind == "drive"}
