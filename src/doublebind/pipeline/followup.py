"""Asks a finished run's suspect itself about the drives that its students show.

No part of p: it comes after the verdict, and changes none of its files and numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.execution.executor import Executor, Job, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store, file_sha256, write_atomic
from doublebind.runs.manifest import record_run
from doublebind.runs.recorded_plan import is_built_in
from doublebind.runs.run import Run
from doublebind.runs.seal import FOLLOWUP, LEDGER, PAGE, check_unaltered, read_seal, reseal_files
from doublebind.runs.write import write_page
from doublebind.schema.errors import DoublebindError, RunError
from doublebind.schema.executor import RayOptions
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, Teacher
from doublebind.schema.score_table import M0
from doublebind.schema.study import BankReferences, MatchedReferences, StandInReferences, Study
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
from doublebind.study.resolve import load_if_path
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    import pandas as pd

REV = 1
NOTE = (
    "Apart from p. The questions were written for what the suspect's students showed, so that the "
    "suspect and its students stand out on them by selection: a rank on them is no p-value. In the "
    "round of its own every teacher was asked what its own students suggest; its p-value is "
    "secondary and speaks of these references alone."
)


class _AvailableTeacher(NamedTuple):
    """A teacher whose model is available, with its students."""

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
    study: str | Path | None = None,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write fresh questions about the drives that a finished run's students show, and ask them.

    The questions that the suspect's students suggest go to the suspect, its students, the
    references and their students. Then every reference gets the questions that its own students
    suggest. A reference whose model is not in the store (mostly a panel's) is trained again, from
    its spec and to the same key, if `references` includes it; otherwise it is left out with the
    reason. Resumes from the store.

    Args:
        run: Run directory of a finished run.
        investigator: Proposes hypotheses and writes the questions: `rules`, or `inspect:MODEL`.
        budget: Tokens that a student and M0 may write together before the hypotheses.
        references: Most references to ask; those that the store lacks are trained again. `None`
            asks those that the store has.
        study: File of the run's study. Without it the manifest's is used, and has to name built-in
            packs and models, or such as are below `folder`: a run may come from anybody.
        folder: Folder that relative paths in the study start from; default the study file's, or
            the current one.
        store: Where the run's artefacts are; default `$DOUBLEBIND_STORE` or
            `~/.cache/doublebind`. The manifest's is never opened.
        progress: Called with (kind, finished, total).

    Returns:
        The content of `followup.json`; see `docs/audits.md`. The run's page is written again, with
        a section on it.

    Raises:
        ConfigError: If there is no such investigator, or the study's models are not in `folder`.
        RunError: If the run has not ended or was altered since, its models differ from those
            found, or its study names what is not below `folder`.
    """
    finished = Run(run)
    _ = finished.verdict  # raises if the run has not ended
    # The ledger may have grown by a follow-up that was interrupted; the others are written again.
    check_unaltered(finished.path, may_grow=[LEDGER], rewritten=[FOLLOWUP, PAGE])
    check_investigator(investigator)
    settings, where = _read_study(finished, study, folder)
    artefacts = Store(store)
    planner = Planner(settings, where, artefacts)
    sources, left_out = _select_teachers(finished, planner, references)
    plan = dataclasses.replace(planner.plan(sources), direct_audits={}, shape_jobs={}, baselines=[])
    teachers = [_locate_models(source, plan) for source in sources]
    options = {"by": investigator, "budget": budget, "dtype": settings.dtype}
    check_executor(settings.executor, settings.device)
    with lock_run(finished.path):
        ledger = Ledger(finished.path / LEDGER)
        with Executor(
            artefacts, ledger, settings.executor, device=settings.device, progress=progress
        ) as executor:
            for batch in plan.list_batches():
                executor.map(batch)
            runner = _QuestionRunner(planner, executor, options)
            runner.write_questions(teachers)
            result = _collect_answers(finished, teachers, runner)
        result |= options | {"left_out": left_out}
        write_atomic(finished.path / FOLLOWUP, json.dumps(result, indent=1, ensure_ascii=False))
        write_page(Run(finished.path))
        reseal_files(finished.path, [LEDGER, FOLLOWUP, PAGE])
        record_run(artefacts, finished.manifest, read_seal(finished.path))
    return result


def _read_study(
    run: Run, study: str | Path | None, folder: str | Path | None
) -> tuple[Study, Path]:
    """Return the study of a run, and the folder that its paths start from.

    Raises:
        RunError: If the study is the manifest's, and names what is not below the folder.
    """
    if study is not None:
        return load_if_path(study, folder)
    where = Path(folder or ".")
    try:
        recorded = Study.model_validate(run.manifest.study)
    except ValueError:
        path = run.path / "manifest.json"
        raise RunError(f"{path}: `study` is none; name the study's file with --study") from None
    for key, name in _list_outside_names(recorded, where):
        raise RunError(
            f"{run.path / 'manifest.json'}: `study.{key}` names {name}, which is not in {where}, "
            "and a run may come from anybody; name the study's file with --study, or its folder "
            "with --folder"
        )
    return recorded, where


def _list_outside_names(study: Study, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield setting and name of what a study would open outside `folder`, or connect to."""
    if study.engine is not None and study.engine.url is not None:
        yield "engine.url", study.engine.url
    if isinstance(study.executor, RayOptions):
        yield "executor.address", study.executor.address
    for name in study.audits:
        kind, is_task, _ = name.partition(":")
        if is_task and kind != "prompted":
            yield "audits", name
    for key, pack in (("pack", study.pack), ("replace.certify", study.replace.certify or "")):
        whole = pack.rpartition(":")[0] or pack
        known = not pack or is_built_in(whole)
        if not known and not _is_inside(folder, pack) and not _is_inside(folder, whole):
            yield key, pack
    models = {"suspect": study.suspect, "student": study.student}
    for i, name in enumerate(_list_model_names(study)):
        models[f"models.{i}"] = name
    for key, name in models.items():
        for part in name.split("+"):
            if not is_built_in(part) and not _is_inside(folder, part):
                yield key, name


def _list_model_names(study: Study) -> Iterator[str]:
    """Yield the names of files and models in a study, besides suspect and student."""
    yield from study.organisms
    match study.references:
        case StandInReferences(models=names):
            yield from names
        case MatchedReferences(template=template):
            yield from [template] if template else []
        case BankReferences(panel=panel):
            yield from [panel] if panel else []
        case names:
            yield from names
    for recipe in study.recipes:
        yield from [recipe.student] if recipe.student else []
        yield from [str(recipe.prompts.file)] if recipe.prompts.file else []


def _is_inside(folder: Path, name: str) -> bool:
    """Return whether a name leads to something that exists in `folder`."""
    parts = Path(name).parts
    leads_out = not parts or name.startswith(("/", "~")) or ".." in parts or "\0" in name
    try:
        return not leads_out and (folder / name).exists()
    except (OSError, ValueError):  # a name too long, or of characters that no file has
        return False


def _select_teachers(
    run: Run, planner: Planner, wanted: int | None
) -> tuple[list[TeacherSource], dict[str, str]]:
    """Return the suspect and the references to ask; and why other references are left out."""
    protocol = run.manifest.protocol
    if (planner.student_base.sha256, planner.pack.sha256) != (protocol.student, protocol.pack_hash):
        raise RunError(
            f"{run.path}: the student base or the pack in this folder is another than the run's; "
            "restore it, or name the study's folder with --folder"
        )
    (suspect,) = (t for t in run.manifest.teachers if t.role == "suspect")
    source = planner.find_teacher(suspect.ref)
    if source.content_key != suspect.content_key:
        raise RunError(
            f"{run.path}: {suspect.ref} is another model than the run's suspect; restore it, or "
            "name the study's folder with --folder"
        )
    left_out: dict[str, str] = {}
    stored: list[TeacherSource] = []
    absent: list[TeacherSource] = []
    for teacher in run.manifest.teachers:
        reference = None
        if teacher.role == "reference":
            reference = _find_same_reference(teacher, planner, left_out)
        if reference is not None:
            (stored if _is_stored(reference, planner) else absent).append(reference)
    chosen = stored if wanted is None else [*stored, *absent][:wanted]
    for reference in (*stored, *absent):
        if reference not in chosen:
            left_out[reference.label] = (
                "its students are not in the store; `--references N` makes N again"
                if wanted is None
                else "beyond the number asked for"
            )
    return [source, *chosen], left_out


def _find_same_reference(
    teacher: Teacher, planner: Planner, left_out: dict[str, str]
) -> TeacherSource | None:
    """Return the run's reference if it is available and the same; otherwise note why it is not."""
    try:
        source = planner.find_teacher(teacher.ref)
    except DoublebindError as error:
        left_out[teacher.label] = f"cannot be found here ({error.problems[0]})"
        return None
    if source.content_key != teacher.content_key:
        left_out[teacher.label] = "the model of this name is another than the run's"
        return None
    return source


def _is_stored(teacher: TeacherSource, planner: Planner) -> bool:
    """Return whether the store has all students of the teacher, and the teacher if it is built."""
    store, plan = planner.store, planner.plan([teacher])
    needed = [*plan.teacher_jobs, *(cell.train for cell in plan.students)]
    return all(store.has(job.kind, job.content_key) for job in needed)


def _locate_models(teacher: TeacherSource, plan: Plan) -> _AvailableTeacher:
    students = [jobs for jobs in plan.students if jobs.teacher.label == teacher.label]
    # The plan knows the folder of a built teacher: its answers are sampled from it.
    source = students[0].rollouts.inputs["source"]
    return _AvailableTeacher(teacher.label, teacher.content_key, source, students)


class _QuestionRunner:
    """Proposes hypotheses, writes questions and asks them; each result is an artefact."""

    def __init__(self, planner: Planner, executor: Executor, settings: Mapping[str, Any]) -> None:
        self.planner, self.executor, self.store = planner, executor, executor.store
        self.settings = settings
        self.questions: dict[str, Job] = {}
        """Label of a teacher -> the job that writes the questions its students suggest."""

    def write_questions(self, teachers: Sequence[_AvailableTeacher]) -> None:
        """Propose hypotheses about every teacher's students, and write questions from them."""
        guesses = {t.label: [self._create_guess_job(jobs) for jobs in t.students] for t in teachers}
        self.executor.map([job for jobs in guesses.values() for job in jobs])
        self.questions = {
            label: self._create_questions_job(jobs) for label, jobs in guesses.items()
        }
        self.executor.map(list(self.questions.values()))

    def ask_questions(
        self, about: str, models: Mapping[str, tuple[str, ModelSource]]
    ) -> dict[str, pd.DataFrame]:
        """Return the score rows of every model on the questions that a teacher's students suggest.

        Args:
            about: Label of that teacher.
            models: Name -> content key and source of a model.
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
        return self.store.open_artefact(job.kind, job.content_key)

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
            "cache": planner.runtime.cache,
        }
        key = content_hash(["hypotheses", AUDIT_REV, REV, *depends])
        return Job("hypotheses", key, write_hypotheses, inputs, cell.train.note)

    def _create_questions_job(self, guesses: Sequence[Job]) -> Job:
        key = content_hash(["questions", AUDIT_REV, REV, [job.content_key for job in guesses]])
        inputs = {
            "hypotheses": tuple(self._artefact_path(job) for job in guesses),
            "pack": self.planner.pack_ref,
            "investigator": self.settings["by"],
        }
        return Job("questions", key, write_questions, inputs)

    def _create_answers_job(self, model: str, source: ModelSource, about: str) -> Job:
        questions, dtype = self.questions[about], self.settings["dtype"]
        key = content_hash(["asked", AUDIT_REV, REV, questions.content_key, model, dtype])
        inputs = {"source": source, "questions": self._artefact_path(questions), "dtype": dtype}
        return Job("asked", key, ask_questions, {**inputs, "cache": self.planner.runtime.cache})


def _collect_answers(
    run: Run, teachers: Sequence[_AvailableTeacher], runner: _QuestionRunner
) -> dict[str, Any]:
    """Ask all questions, and return the content of `followup.json`."""
    suspect, *references = teachers
    m0 = (runner.planner.student_base.sha256, runner.planner.student_base)
    students = _list_students([suspect])
    reference_students = _list_students(references)
    models = {M0: m0, **{t.label: (t.key, t.source) for t in teachers}}
    rows = runner.ask_questions(suspect.label, models | students | reference_students)
    leads: list[dict[str, Any]] = []
    for lead in runner.list_leads(suspect.label):
        values = {name: select_item_values(frame, lead.name) for name, frame in rows.items()}
        entry = {"name": lead.name, **lead.guess.model_dump(mode="json"), "students": lead.students}
        if values.get(M0):
            entry |= summarise_lead(
                values[M0],
                values[suspect.label],
                [values[name] for name in students],
                {teacher.label: values[teacher.label] for teacher in references},
                [values[name] for name in reference_students],
            )
        else:
            entry["missing"] = "neither the pack nor the answers allow a question"
        leads.append(entry)
    return {
        "schema": 1,
        "note": NOTE,
        "suspect": suspect.label,
        "protocol_hash": run.manifest.protocol.hash,
        "questions_sha256": runner.hash_questions(suspect.label),
        "leads": leads,
        "references": [teacher.label for teacher in references],
        "own_round": _run_control_round(teachers, runner, m0),
    }


def _list_students(teachers: Sequence[_AvailableTeacher]) -> dict[str, tuple[str, ModelSource]]:
    """Return name -> content key and source of the teachers' students; the name is the key."""
    return {
        jobs.train.content_key: (jobs.train.content_key, jobs.audit.inputs["source"])
        for teacher in teachers
        for jobs in teacher.students
    }


def _run_control_round(
    teachers: Sequence[_AvailableTeacher], runner: _QuestionRunner, m0: tuple[str, ModelSource]
) -> dict[str, Any]:
    """Ask every teacher the questions that its own students suggest; rank the suspect's excess."""
    excess: dict[str, float | None] = {}
    suggested: dict[str, list[str]] = {}
    for teacher in teachers:
        models = {"teacher": (teacher.key, teacher.source), M0: m0}
        rows = runner.ask_questions(teacher.label, models)
        suggested[teacher.label] = [lead.guess.text for lead in runner.list_leads(teacher.label)]
        excess[teacher.label] = 0.0
        if rows:
            values, baseline = select_item_values(rows["teacher"]), select_item_values(rows[M0])
            shifts = [values[item] - baseline[item] for item in values if item in baseline]
            excess[teacher.label] = sum(shifts) / len(shifts) if shifts else None
    return rank_own_questions(teachers[0].label, excess) | {"suggested": suggested}
