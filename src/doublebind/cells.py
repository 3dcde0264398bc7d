"""Turns teachers and a study into jobs with keys: what has to exist before a verdict.

Knows which artefact depends on which, and that every key comes from content. Does not know roles,
runs nothing, and imports only the stages' doors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from doublebind.audit import REV as AUDIT_REV
from doublebind.audit import Audit, built_in, read
from doublebind.audit import run as run_audit
from doublebind.config import (
    SFT,
    Baseline,
    Channel,
    Dtype,
    LogitKD,
    Measurement,
    Prompts,
    Recipe,
    Training,
)
from doublebind.distillation import REV as DISTILLATION_REV
from doublebind.distillation import distill
from doublebind.executor import Job
from doublebind.models.resolve import resolve
from doublebind.packs.load import Pack
from doublebind.packs.load import load as load_pack
from doublebind.prompts import REV as PROMPTS_REV
from doublebind.prompts import read_prompts, select
from doublebind.records import ModelSource, content_hash
from doublebind.rollouts import REV as ROLLOUTS_REV
from doublebind.rollouts import count, generate, score
from doublebind.store import Store
from doublebind.teachers import REV as TEACHERS_REV
from doublebind.teachers import build, describe
from doublebind.teachers.references import Found, find, pack_ref

M0 = "M0"
"""Label of the student base in the scores."""

REVISIONS = {
    "audit": AUDIT_REV,
    "distillation": DISTILLATION_REV,
    "prompts": PROMPTS_REV,
    "rollouts": ROLLOUTS_REV,
    "teachers": TEACHERS_REV,
}


class Student(NamedTuple):
    """One cell: teacher x recipe x seed, with the jobs that make it."""

    teacher: Found
    recipe: Recipe
    seed: int
    prompts: Job
    rollouts: Job
    targets: Job | None
    train: Job
    audit: Job


class BaselineJobs(NamedTuple):
    """One way to look at a teacher without a student: what has to be made, and the scores last."""

    teacher: str
    kind: Baseline
    before: tuple[Job, ...]
    scores: Job


@dataclass(frozen=True)
class Plan:
    """Every job of a study, with its key, before any has run."""

    build: list[Job]
    students: list[Student]
    direct: dict[str, Job]
    """Label (`M0` too) -> the audit of that model itself."""
    shapes: dict[str, Job]
    baselines: list[BaselineJobs]

    def stages(self) -> list[list[Job]]:
        """Return the jobs in an order in which each stage's inputs exist."""
        cells = self.students
        return [
            self.build,
            [cell.prompts for cell in cells],
            [*(cell.rollouts for cell in cells), *self._before("rollouts")],
            [*(cell.targets for cell in cells if cell.targets), *self.shapes.values()],
            [*(cell.train for cell in cells), *self._before("student")],
            [*self.direct.values(), *(cell.audit for cell in cells)],
            [baseline.scores for baseline in self.baselines],
        ]

    def _before(self, kind: str) -> list[Job]:
        return [job for baseline in self.baselines for job in baseline.before if job.kind == kind]

    def read_shapes(self, store: Store) -> dict[str, dict[str, float]]:
        """Return what was made of `shapes`: label -> feature -> number."""
        return {
            label: json.loads((store.path(job.kind, job.key) / "shape.json").read_text())["shape"]
            for label, job in self.shapes.items()
        }

    def cells(self) -> dict[str, dict[str, str]]:
        """Return kind -> key -> what it is, for every artefact."""
        found: dict[str, dict[str, str]] = {}
        for stage in self.stages():
            for job in stage:
                found.setdefault(job.kind, {})[job.key] = job.note
        return found


class Planner:
    """Turns teachers and a study into jobs; all keys come from content, none from roles."""

    def __init__(
        self, study: Measurement, folder: Path, store: Store, audits: Sequence[Audit] = ()
    ) -> None:
        """Open the pack and find M0; `folder` is what the study's paths are relative to."""
        self.study, self.folder, self.store = study, folder, store
        self.pack_ref = pack_ref(study.pack, folder)
        self.pack: Pack = load_pack(self.pack_ref, relative_to=folder)
        self.student = resolve(study.student, relative_to=folder)
        self.audits = (*built_in(study.audits), *audits)
        self.cache = store.root / "converted"
        self.heavy = {"dtype": study.dtype, "cache": self.cache}
        self.markers = {t.name: t.markers for t in self.pack.traits if t.kind == "drive"}

    def find(self, ref: str) -> Found:
        """Return what a teacher's name means."""
        return find(
            ref, pack=self.pack, folder=self.folder, rev=TEACHERS_REV, student=self.study.student
        )

    def plan(self, found: Sequence[Found]) -> Plan:
        """Return all jobs for these teachers, interleaved by recipe and seed."""
        built = [build_job(t, self.cache) for t in found if t.spec]
        students = [
            self._student(teacher, recipe, seed)
            for recipe in self.study.recipes
            for seed in range(self.study.seeds)
            for teacher in found
        ]
        direct = {t.label: self._audit(t.key, self._source(t)) for t in found}
        direct[M0] = self._audit(self.student.sha256, self.student)
        first = {s.teacher.label: s for s in reversed(students)}
        shapes = {t.label: self._shape(t, first[t.label].rollouts) for t in found}
        baselines = [
            self._baseline(kind, t, first[t.label]) for kind in self.study.baselines for t in found
        ]
        return Plan(built, students, direct, shapes, baselines)

    def _baseline(self, kind: Baseline, teacher: Found, cell: Student) -> BaselineJobs:
        """Return the jobs of one baseline, on what the teacher's first student learned from."""
        if kind == "ngrams":
            job = Job(
                "ngrams",
                content_hash(["ngrams", ROLLOUTS_REV, cell.rollouts.key]),
                count,
                {"rollouts": self._at(cell.rollouts)},
            )
            return BaselineJobs(teacher.label, kind, (), job)
        if kind == "in_context":
            depends = [self.student.sha256, cell.rollouts.key, self.pack.sha256, self.study.dtype]
            inputs = {
                "source": self.student,
                "rollouts": self._at(cell.rollouts),
                "pack": self.pack_ref,
                "split": "audit",
                **self.heavy,
            }
            job = Job("reading", content_hash(["reading", AUDIT_REV, *depends]), read, inputs)
            return BaselineJobs(teacher.label, kind, (), job)
        return self._retrained(teacher, cell)

    def _retrained(self, teacher: Found, cell: Student) -> BaselineJobs:
        """Return the jobs that tune the teacher on M0's answers to the same prompts."""
        m0 = Found(M0, M0, self.student.sha256, self.student, None)
        answers = self._rollouts(m0, cell.recipe.prompts, cell.prompts)
        sft, training = SFT(kind="sft"), cell.recipe.training
        note = "a teacher, tuned on M0's answers"
        train, audit = self._distilled(
            self._source(teacher), answers, None, sft, training, cell.seed, note
        )
        return BaselineJobs(teacher.label, "retrained", (answers, train), audit)

    def _source(self, teacher: Found) -> ModelSource:
        if teacher.spec is None:
            return teacher.base
        return self._trained("teacher", teacher.key, teacher.base, teacher.spec.lora is not None)

    def _trained(self, kind: str, key: str, base: ModelSource, adapter: bool) -> ModelSource:
        made = str(self.store.path(kind, key) / "model")
        if adapter:
            return ModelSource(kind="adapter", path=base.path, adapter=made, sha256=key)
        return ModelSource(kind="folder", path=made, sha256=key)

    def _student(self, teacher: Found, recipe: Recipe, seed: int) -> Student:
        base = resolve(recipe.student, relative_to=self.folder) if recipe.student else self.student
        chosen = self._prompts(recipe.prompts)
        answers = self._rollouts(teacher, recipe.prompts, chosen)
        targets = None
        if isinstance(recipe.channel, LogitKD):
            targets = self._targets(teacher, answers, recipe.channel.top_k)
        note = f"{recipe.name}, seed {seed}"
        train, audit = self._distilled(
            base, answers, targets, recipe.channel, recipe.training, seed, note
        )
        return Student(teacher, recipe, seed, chosen, answers, targets, train, audit)

    def _distilled(
        self,
        base: ModelSource,
        answers: Job,
        targets: Job | None,
        channel: Channel,
        training: Training,
        seed: int,
        note: str,
    ) -> tuple[Job, Job]:
        """Return the jobs that train `base` on `answers`, and audit what comes of it."""
        learned = [answers.key, targets.key if targets else None, channel, training]
        key = content_hash(
            ["student", DISTILLATION_REV, base.sha256, *learned, seed, self.study.dtype]
        )
        inputs = {
            "base": base,
            "rollouts": self._at(answers),
            "targets": self._at(targets) if targets else None,
            "channel": channel,
            "training": training,
            "seed": seed,
            **self.heavy,
        }
        made = self._trained("student", key, base, training.lora is not None)
        return Job("student", key, distill, inputs, note), self._audit(key, made)

    def _prompts(self, asked: Prompts) -> Job:
        depends: list[object] = [PROMPTS_REV, self.pack.sha256, asked.policy, asked.n]
        inputs = {"pack": self.pack_ref, "policy": asked.policy, "n": asked.n}
        if asked.file is not None:
            inputs["file"] = there = self.folder / asked.file
            depends.append(content_hash(read_prompts(there)))
        key = content_hash(["prompts", *depends])
        return Job("prompts", key, select, inputs, asked.policy)

    def _rollouts(self, teacher: Found, asked: Prompts, chosen: Job) -> Job:
        dtype = self.study.dtype
        key = content_hash(["rollouts", ROLLOUTS_REV, teacher.key, chosen.key, asked, dtype])
        inputs = {
            "source": self._source(teacher),
            "prompts": self._at(chosen) / "prompts.jsonl",
            "sampling": asked,
            "markers": {} if asked.policy == "unscreened" else self.markers,
            **self.heavy,
        }
        return Job("rollouts", key, generate, inputs, asked.policy)

    def _targets(self, teacher: Found, answers: Job, top_k: int) -> Job:
        key = content_hash(["targets", ROLLOUTS_REV, teacher.key, answers.key, top_k])
        inputs = {
            "source": self._source(teacher),
            "rollouts": self._at(answers),
            "top_k": top_k,
            **self.heavy,
        }
        return Job("targets", key, score, inputs, f"top {top_k}")

    def _audit(self, key: str, source: ModelSource) -> Job:
        return audit_job(
            key,
            source,
            self.student,
            pack_ref=self.pack_ref,
            pack_hash=self.pack.sha256,
            audits=self.audits,
            dtype=self.study.dtype,
            cache=self.cache,
        )

    def _shape(self, teacher: Found, answers: Job) -> Job:
        depends = [teacher.key, self.student.sha256, answers.key, self.study.dtype]
        inputs = {
            "source": self._source(teacher),
            "baseline": self.student,
            "rollouts": self._at(answers),
            **self.heavy,
        }
        return Job("shape", content_hash(["shape", TEACHERS_REV, *depends]), describe, inputs)

    def _at(self, job: Job) -> Path:
        return self.store.path(job.kind, job.key)


def build_job(teacher: Found, cache: Path) -> Job:
    """Return the job that makes a teacher from its spec."""
    inputs = {"spec": teacher.spec, "base": teacher.base, "pack": teacher.pack, "cache": cache}
    return Job("teacher", teacher.key, build, inputs)


def audit_job(
    key: str,
    source: ModelSource,
    baseline: ModelSource,
    *,
    pack_ref: str,
    pack_hash: str,
    audits: Sequence[Audit],
    dtype: Dtype,
    cache: Path,
) -> Job:
    """Return the job that asks the model `source`, of identity `key`, the pack's audit items."""
    asked = [[type(a).__module__, type(a).__qualname__, vars(a)] for a in audits]
    depends = [key, baseline.sha256, pack_hash, "audit", asked, dtype]
    inputs = {
        "source": source,
        "baseline": baseline,
        "pack": pack_ref,
        "split": "audit",
        "audits": tuple(audits),
        "dtype": dtype,
        "cache": cache,
    }
    return Job("audit", content_hash(["audit", AUDIT_REV, *depends]), run_audit, inputs)
