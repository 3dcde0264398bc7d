"""From indirect evidence to direct: asks the suspect itself what its students gave away.

Knows the order of the steps, and which teachers of a finished run can be asked. Apart from p: it
comes after the verdict, changes none of its files and enters none of its numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.execution.executor import Executor, Job, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store, file_sha256, write_atomic
from doublebind.runs.run import Run
from doublebind.schema.errors import DoublebindError, RunError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, Teacher
from doublebind.schema.score_table import M0
from doublebind.schema.study import Study
from doublebind.stages.audits import REV as AUDIT_REV
from doublebind.stages.audits.followup.steps import (
    ITEMS_FILE,
    RULES_INVESTIGATOR,
    ask_questions,
    check_investigator,
    read_leads,
    write_hypotheses,
    write_questions,
)
from doublebind.stages.evidence.followup import (
    rank_own_questions,
    select_item_values,
    summarise_lead,
)
from doublebind.study.plan import Plan, StudentJobs
from doublebind.study.planner import Planner
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    import pandas as pd

FOLLOWUP_FILE = "followup.json"
REV = 1
NOTE = (
    "Apart from p. The questions were written for what the suspect's students showed, so that the "
    "suspect and its students stand out on them by selection: a rank on them is no p-value. In the "
    "round of its own every teacher was asked what its own students suggest; its p-value is "
    "secondary and speaks of these references alone."
)


class _AvailableTeacher(NamedTuple):
    """A teacher that can be asked, with its students."""

    label: str
    key: str
    source: ModelSource
    students: list[StudentJobs]


def run_followup(
    run: str | Path,
    *,
    investigator: str = RULES_INVESTIGATOR,
    budget: int = 9600,
    references: int | None = None,
    folder: str | Path = ".",
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turn what a finished run's students gave away into fresh questions, and ask them.

    The suspect itself, its students, references and their students get the questions that its own
    students suggest; then every reference gets those that its own students suggest. A reference
    that is not at hand (a panel's, mostly) is made again if `references` asks for it, from its
    spec and to the same key, or left out with the reason. Resumes from the store.

    Args:
        run: Run directory of a finished run.
        by: Who guesses and writes the questions: `rules`, or `inspect:MODEL`.
        budget: Tokens that a student and M0 may write together before the guesses.
        references: References to ask at most; those the store lacks are made again. `None` asks
            those that the store has.
        folder: What relative paths in the study are relative to: the study's folder.
        store: Where the run's artefacts are; default as in its manifest.
        progress: Called with (kind, finished, total).

    Returns:
        The content of `followup.json`; see `docs/audits.md`.

    Raises:
        ConfigError: If nobody is called `by`, or the study's models are not where `folder` says.
        RunError: If the run has not ended, or was made of other models than those found.
    """
    done = Run(run)
    _ = done.verdict  # or it has not ended
    check_investigator(investigator)
    kept = Store(store or done.manifest.store)
    study = Study.model_validate(done.manifest.study)
    planner = Planner(study, Path(folder), kept)
    found, left_out = _select_teachers(done, planner, references)
    plan = dataclasses.replace(planner.plan(found), direct_audits={}, shape_jobs={}, baselines=[])
    teachers = [_locate_models(each, plan) for each in found]
    settings = {"by": investigator, "budget": budget, "dtype": study.dtype}
    check_executor(study.executor, study.device)
    with lock_run(done.path):
        ledger, on = Ledger(done.path / "ledger.jsonl"), study.executor
        with Executor(kept, ledger, on, device=study.device, progress=progress) as executor:
            for stage in plan.list_stages():
                executor.map(stage)
            asking = _QuestionRunner(planner, executor, settings)
            asking.write_questions(teachers)
            result = _collect_answers(done, teachers, asking)
        result |= settings | {"left_out": left_out}
        write_atomic(done.path / FOLLOWUP_FILE, json.dumps(result, indent=1, ensure_ascii=False))
    return result


# --- whom to ask ---------------------------------------------------------------------------------


def _select_teachers(
    run: Run, planner: Planner, wanted: int | None
) -> tuple[list[TeacherSource], dict[str, str]]:
    """Return the suspect, then the references to be asked, and why others are left out."""
    protocol = run.manifest.protocol
    if (planner.student_base.sha256, planner.pack.sha256) != (protocol.student, protocol.pack_hash):
        raise RunError(
            f"{run.path}: the student base or the pack found here is another than the run's; "
            "restore it, or name the study's folder with --folder"
        )
    (suspect,) = (t for t in run.manifest.teachers if t.role == "suspect")
    own = planner.find_teacher(suspect.ref)
    if own.content_key != suspect.content_key:
        raise RunError(
            f"{run.path}: {suspect.ref} is another model than the run's suspect; restore it, or "
            "name the study's folder with --folder"
        )
    here, elsewhere, left_out = [], [], dict[str, str]()
    for teacher in run.manifest.teachers:
        if teacher.role != "reference":
            continue
        found = _find_same_reference(teacher, planner, left_out)
        if found is not None:
            (here if _is_stored(found, planner) else elsewhere).append(found)
    chosen = here if wanted is None else [*here, *elsewhere][:wanted]
    for found in (*here, *elsewhere):
        if found not in chosen:
            left_out[found.label] = (
                "beyond the number asked for"
                if found in here or wanted is not None
                else "its students are not in the store; `--references N` makes N again"
            )
    return [own, *chosen], left_out


def _find_same_reference(
    teacher: Teacher, planner: Planner, left_out: dict[str, str]
) -> TeacherSource | None:
    """Return the run's reference if it can be named here and is the same, or say why not."""
    try:
        found = planner.find_teacher(teacher.ref)
    except DoublebindError as error:
        left_out[teacher.label] = f"cannot be found here ({error.problems[0]})"
        return None
    if found.content_key != teacher.content_key:
        left_out[teacher.label] = "what is called so here is another model than the run's"
        return None
    return found


def _is_stored(found: TeacherSource, planner: Planner) -> bool:
    """Return whether the store has the teacher, where it was built, and all its students."""
    store, plan = planner.store, planner.plan([found])
    needed = [*plan.teacher_jobs, *(cell.train for cell in plan.students)]
    return all(store.has(job.kind, job.content_key) for job in needed)


def _locate_models(found: TeacherSource, plan: Plan) -> _AvailableTeacher:
    students = [cell for cell in plan.students if cell.teacher.label == found.label]
    # The plan says where a built teacher lies: its answers were drawn from there.
    source = students[0].rollouts.inputs["source"]
    return _AvailableTeacher(found.label, found.content_key, source, students)


# --- asking --------------------------------------------------------------------------------------


class _QuestionRunner:
    """Guesses, writes questions and asks them, one artefact each."""

    def __init__(self, planner: Planner, executor: Executor, settings: Mapping[str, Any]) -> None:
        self.planner, self.executor, self.store = planner, executor, executor.store
        self.settings = settings
        self.questions: dict[str, Job] = {}
        """Label -> the questions that a teacher's own students suggest."""

    def write_questions(self, teachers: Sequence[_AvailableTeacher]) -> None:
        """Guess about every teacher's students, and write the questions that follow."""
        guessed = {t.label: [self._create_guess_job(cell) for cell in t.students] for t in teachers}
        self.executor.map([job for jobs in guessed.values() for job in jobs])
        self.questions = {
            label: self._create_questions_job(jobs) for label, jobs in guessed.items()
        }
        self.executor.map(list(self.questions.values()))

    def ask_questions(
        self, about: str, models: Mapping[str, tuple[str, ModelSource]]
    ) -> dict[str, pd.DataFrame]:
        """Return the rows of every model that was asked what the teacher `about` suggests.

        Args:
            about: Label of the teacher whose students suggested it.
            models: Name -> content key and place of a model.
        """
        import pandas as pd

        questions = self._artefact_path(self.questions[about])
        if not (questions / ITEMS_FILE).stat().st_size:
            return {}
        jobs = {
            name: self._create_answers_job(key, source, about)
            for name, (key, source) in models.items()
        }
        self.executor.map(list(jobs.values()))
        return {
            name: pd.read_parquet(self._artefact_path(job) / "scores.parquet")
            for name, job in jobs.items()
        }

    def list_leads(self, about: str) -> list[Any]:
        """Return the leads that a teacher's students suggest."""
        return read_leads(self._artefact_path(self.questions[about]))

    def hash_questions(self, about: str) -> str:
        """Return the hash of a teacher's questions."""
        return file_sha256(self._artefact_path(self.questions[about]) / ITEMS_FILE)

    def _artefact_path(self, job: Job) -> Path:
        return self.store.path(job.kind, job.content_key)

    def _create_guess_job(self, cell: StudentJobs) -> Job:
        planner = self.planner
        depends = [
            cell.train.content_key,
            planner.student_base.sha256,
            planner.pack.sha256,
            self.settings,
        ]
        inputs = {
            "investigator": self.settings["by"],
            "source": cell.audit.inputs["source"],
            "baseline": planner.student_base,
            "pack": planner.pack_ref,
            "budget": self.settings["budget"],
            "dtype": self.settings["dtype"],
            "cache": planner.cache,
        }
        key = content_hash(["hypotheses", AUDIT_REV, REV, *depends])
        return Job("hypotheses", key, write_hypotheses, inputs, cell.train.note)

    def _create_questions_job(self, guessed: Sequence[Job]) -> Job:
        key = content_hash(["questions", AUDIT_REV, REV, [job.content_key for job in guessed]])
        inputs = {
            "hypotheses": tuple(self._artefact_path(job) for job in guessed),
            "pack": self.planner.pack_ref,
            "investigator": self.settings["by"],
        }
        return Job("questions", key, write_questions, inputs)

    def _create_answers_job(self, model: str, source: ModelSource, about: str) -> Job:
        asked = self.questions[about]
        dtype = self.settings["dtype"]
        key = content_hash(["asked", AUDIT_REV, REV, asked.content_key, model, dtype])
        inputs = {"source": source, "questions": self._artefact_path(asked), "dtype": dtype}
        return Job("asked", key, ask_questions, {**inputs, "cache": self.planner.cache})


def _collect_answers(
    run: Run, teachers: Sequence[_AvailableTeacher], asking: _QuestionRunner
) -> dict[str, Any]:
    """Ask, and return what came of it."""
    suspect, *references = teachers
    m0 = (asking.planner.student_base.sha256, asking.planner.student_base)

    def students(of: _AvailableTeacher) -> dict[str, tuple[str, ModelSource]]:
        return {
            cell.train.content_key: (cell.train.content_key, cell.audit.inputs["source"])
            for cell in of.students
        }

    own = students(suspect)
    theirs = {name: at for each in references for name, at in students(each).items()}
    themselves = {each.label: (each.key, each.source) for each in teachers}
    rows = asking.ask_questions(suspect.label, {M0: m0} | themselves | own | theirs)
    leads = []
    for lead in asking.list_leads(suspect.label):
        asked = {name: select_item_values(frame, lead.name) for name, frame in rows.items()}
        found = {"name": lead.name, **lead.guess.model_dump(mode="json"), "students": lead.students}
        if asked.get(M0):
            found |= summarise_lead(
                asked[M0],
                asked[suspect.label],
                [asked[name] for name in own],
                {each.label: asked[each.label] for each in references},
                [asked[name] for name in theirs],
            )
        else:
            found["missing"] = "neither the pack nor what was heard allows a question"
        leads.append(found)
    return {
        "schema": 1,
        "note": NOTE,
        "suspect": suspect.label,
        "protocol_hash": run.manifest.protocol.hash,
        "questions_sha256": asking.hash_questions(suspect.label),
        "leads": leads,
        "references": [each.label for each in references],
        "own_round": _run_control_round(teachers, asking, m0),
    }


def _run_control_round(
    teachers: Sequence[_AvailableTeacher], asking: _QuestionRunner, m0: tuple[str, ModelSource]
) -> dict[str, Any]:
    excess: dict[str, float | None] = {}
    named: dict[str, list[str]] = {}
    for each in teachers:
        rows = asking.ask_questions(each.label, {"own": (each.key, each.source), M0: m0})
        named[each.label] = [lead.guess.text for lead in asking.list_leads(each.label)]
        if not rows:
            excess[each.label] = 0.0
            continue
        own, plain = select_item_values(rows["own"]), select_item_values(rows[M0])
        moved = [own[item] - plain[item] for item in own if item in plain]
        excess[each.label] = sum(moved) / len(moved) if moved else None
    return rank_own_questions(teachers[0].label, excess) | {"suggested": named}
