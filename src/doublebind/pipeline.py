"""The order of things, from a study to a verdict: the architecture on one screen.

`measure` is role-free: it makes and audits what a plan lists, and never learns which teacher is
the suspect. `run` weighs once; `calibrate` once per teacher whose truth is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind import panels
from doublebind.audit import Audit
from doublebind.auditing import audit as audit
from doublebind.auditing import investigate as investigate
from doublebind.auditing import judge as judge
from doublebind.auditing import whitebox as whitebox
from doublebind.blackbox import declared
from doublebind.building import build_teacher as build_teacher
from doublebind.calibration import UNKNOWN, rates, second_horn, weigh_each
from doublebind.cells import REVISIONS, Planner
from doublebind.config import Bank, Measurement, Study
from doublebind.contest import Contest, competition, delivered, fresh, merged, weights
from doublebind.errors import ConfigError, RunError
from doublebind.evidence import weigh
from doublebind.executor import Executor, Ledger, Progress, lock, ready
from doublebind.followup import followup as follow_up
from doublebind.grid import Plan
from doublebind.jobs import read_scores
from doublebind.keeping import keep
from doublebind.leaving_out import robustness
from doublebind.planning import plan as plan
from doublebind.protocol import audit_names, freeze, meet
from doublebind.records import M0, SCORE_COLUMNS, Teacher, Verdict
from doublebind.replacing import Done, Made, decided, joined, settled, won
from doublebind.report import export_inspect as write_inspect_log
from doublebind.report import render, render_rates
from doublebind.rundir import Run, hardware, versions
from doublebind.setting import Setting, opened, prepare, roles, tested
from doublebind.store import Store, weights_sha256, write_atomic
from doublebind.teachers.references import Found
from doublebind.verdict import decide, to_json
from doublebind.verification import reseal, seal

if TYPE_CHECKING:
    import pandas as pd


def measure(plan: Plan, executor: Executor) -> pd.DataFrame:
    """Make everything in `plan`; return the scores of all its models, labelled."""
    import pandas as pd

    with executor:
        for stage in plan.stages():
            executor.map(stage)
    parts = [
        read_scores(executor.store.path(job.kind, job.key)).assign(
            teacher=label,
            model_kind="m0" if label == M0 else "teacher",
            recipe="",
            seed=-1,
            round=0,
            step=-1,
        )
        for label, job in plan.direct.items()
    ]
    parts += [
        read_scores(executor.store.path(job.kind, job.key)).assign(
            teacher=cell.teacher.label,
            model_kind="student",
            recipe=cell.recipe.name,
            seed=cell.seed,
            round=cell.round,
            step=step,
        )
        for cell in plan.students
        for step, job in cell.audits
    ]
    parts += [
        read_scores(executor.store.path(baseline.scores.kind, baseline.scores.key)).assign(
            teacher=baseline.teacher, model_kind=baseline.kind, recipe="", seed=-1, round=0, step=-1
        )
        for baseline in plan.baselines
    ]
    parts += [
        read_scores(executor.store.path(each.audit.kind, each.audit.key)).assign(
            teacher=each.teacher,
            model_kind=each.model_kind,
            recipe=each.recipe,
            seed=each.seed,
            round=0,
            step=each.step,
        )
        for each in plan.further
    ]
    return pd.concat(parts, ignore_index=True).loc[:, list(SCORE_COLUMNS)]


def run(
    study: Study | str | Path,
    out: str | Path = "runs/run",
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    audits: Sequence[Audit] = (),
    progress: Progress | None = None,
) -> Run:
    """Take a study from its suspect to a verdict, in the run directory `out`.

    Args:
        study: What to do, or the file that says it.
        out: Run directory; calling again resumes it.
        folder: What relative paths in the study are relative to; default the file's folder, or
            the current one.
        store: Where artefacts are kept; default `$DOUBLEBIND_STORE` or `~/.cache/doublebind`.
        audits: Audits beside the study's: module-level objects of the `Audit` protocol.
        progress: Called with (kind, finished, total).

    Returns:
        The finished run.

    Raises:
        DoublebindError: With one line per problem that the user can mend.
    """
    import pandas as pd

    study, folder = opened(study, folder)
    out, kept = Path(out), Store(store)
    setting = prepare(study, folder, kept, audits)
    plan, protocol = setting.plan, setting.protocol
    ready(study.executor, study.device)
    with lock(out):
        earlier = meet(kept, protocol)
        manifest = freeze(
            out,
            study,
            protocol,
            setting.teachers,
            competitors=setting.contest.teachers if setting.contest else (),
            earlier=earlier,
            cells=plan.cells(),
            store=kept,
            served=declared(setting.found),
        )
        ledger, on = Ledger(out / "ledger.jsonl"), study.executor
        executor = Executor(kept, ledger, on, device=study.device, progress=progress)
        scores = setting.with_panel(measure(plan, executor))
        later: list[Plan] = []
        if setting.contest is not None:
            more, later = compete(setting, setting.contest, [setting.suspect], executor)
            scores = pd.concat([scores, more], ignore_index=True)
        shapes = keep(out, setting, later, kept, scores)
        weighed = weigh(scores, setting.teachers, protocol)
        verdict = decide(
            weighed,
            protocol,
            suspect=study.suspect,
            earlier_protocols=manifest.earlier_protocols,
            shapes=shapes,
        )
        if setting.contest is not None:
            verdict = _decide_second(out, setting, later, scores, verdict)
        write_atomic(out / "evidence.json", weighed.model_dump_json(indent=1))
        write_atomic(out / "verdict.json", json.dumps(to_json(verdict), indent=1))
        finished = Run(out)
        _write_page(finished)
        seal(out)
    return finished


def compete(
    setting: Setting,
    contest: Contest,
    suspects: Sequence[Found],
    executor: Executor,
    *,
    every: bool = False,
) -> tuple[pd.DataFrame, list[Plan]]:
    """Let recipes compete on `select` items, then make fresh students of the winner for `certify`.

    Args:
        setting: The study made concrete.
        contest: Its second horn.
        suspects: Teachers to be replaced; where no others compete, the first one's students do.
        executor: Where cells are made.
        every: Make fresh students by every recipe, not by the winner alone.

    Returns:
        The scores of both phases, and their plans.
    """
    import pandas as pd

    first = competition(contest, setting.planner, suspects[0], setting.protocol)
    scores = measure(first, executor)
    competed, winner = won(scores, suspects[0].label, contest.teachers, setting.protocol)
    names = setting.protocol.second.names if every and setting.protocol.second else [winner]
    steps = {each.recipe: each.step for each in competed}
    last = fresh(contest, setting.planner, suspects, names, setting.protocol, steps)
    return pd.concat([scores, measure(last, executor)], ignore_index=True), [first, last]


def _decide_second(
    out: Path,
    setting: Setting,
    plans: Sequence[Plan],
    scores: pd.DataFrame,
    verdict: Verdict,
) -> Verdict:
    """Decide the second horn, keep what it rests on, and return the verdict on both."""
    assert setting.contest is not None
    label, competitors = setting.suspect.label, setting.contest.teachers
    contest = settled(scores, label, competitors, setting.protocol)
    student = delivered(
        plans[-1], label, next(c for c in contest.competed if c.recipe == contest.winner)
    )
    evidence, replacement = decided(
        scores, label, contest, setting.protocol, weights_sha256=weights(student)
    )
    made = Done(
        evidence=evidence,
        cells=merged(plans),
        student=student.sha256,
        further=tuple(
            Made(e.model_kind, e.recipe, e.seed, e.step, e.train.key) for e in plans[-1].further
        ),
    )
    write_atomic(out / "replacement.json", made.model_dump_json(indent=1))
    return joined(verdict, evidence, replacement, setting.protocol)


def write_report(run: Run) -> Path:
    """Write `report.html` into a finished run again; return its path.

    Only the page is sealed anew: what else was altered since the run ended stays an alteration.
    """
    path = _write_page(run)
    reseal(run.path, path.name)
    return path


def followup(run: str | Path, **settings: Any) -> dict[str, Any]:
    """Ask a finished run's suspect what its students gave away; see `followup.followup`.

    Writes `followup.json` into the run, and the page again, with a section of its own.
    """
    found = follow_up(run, **settings)
    write_report(Run(run))
    return found


def _write_page(run: Run) -> Path:
    path = run.path / "report.html"
    keys = [*(teacher.key for teacher in run.manifest.teachers), run.manifest.protocol.student]
    keys = [key for key in keys if run.has_transcripts(key)]  # a panel's teachers have none
    page = render(
        manifest=run.manifest.model_dump(mode="json"),
        evidence=run.evidence,
        verdict=run.verdict,
        scores=run.scores,
        shapes=run.shapes,
        cells=run.cells,
        transcripts={cell["student"]: run.transcripts(cell["student"]) for cell in run.cells}
        | {key: run.transcripts(key) for key in keys},
        replacement=run.replacement,
        followup=run.followup,
    )
    write_atomic(path, page)
    return path


def freeze_panel(
    measurement: Measurement,
    out: str | Path,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make and audit references and organisms, and keep their scores in the folder `out`.

    Returns:
        `panel` (its hash), `references`, `families`, `organisms`, `students`.

    Raises:
        ConfigError: If the references are a panel's already.
    """
    out, kept = Path(out), Store(store)
    planner = Planner(measurement, Path(folder), kept)
    if isinstance(measurement.references, Bank) and measurement.references.panel:
        raise ConfigError("`references.panel`: a panel is made of references; leave it out")
    role = roles(measurement, planner.pack)
    found = {ref: planner.find(ref) for ref in role}
    plan = planner.plan(list(found.values()))
    ready(measurement.executor, measurement.device)
    with lock(out):
        ledger = Ledger(out / "ledger.jsonl")
        on = measurement.executor
        executor = Executor(kept, ledger, on, device=measurement.device, progress=progress)
        scores = measure(plan, executor)
        shapes = plan.read_shapes(kept)
        panel = panels.Panel(
            conditions=panels.Conditions(
                pack_hash=planner.pack.sha256,
                recipes=tuple(r.model_dump(mode="json") for r in measurement.recipes),
                audits=audit_names(planner.audits),
                seeds=measurement.seeds,
                dtype=measurement.dtype,
                device=measurement.device,
                student=planner.student.sha256,
                revisions=REVISIONS,
            ),
            baselines=measurement.baselines,
            teachers=tuple(
                _kept(t, role[ref], shapes[ref], plan, kept) for ref, t in found.items()
            ),
            scores_sha256="",
            versions=versions(),
            hardware=hardware(),
        )
        panel = panels.write(out, panel, scores.loc[scores["teacher"] != M0, :])
    return {
        "panel": panel.hash,
        "references": len(panel.of("reference")),
        "families": len({t.family for t in panel.of("reference")}),
        "organisms": len(panel.of("organism")),
        "students": sum(len(t.students) for t in panel.teachers),
    }


def _kept(
    teacher: Found, role: Any, shape: dict[str, float], plan: Plan, store: Store
) -> panels.KeptTeacher:
    """Return what a panel keeps of a teacher."""

    def weights(kind: str, key: str) -> str:
        return weights_sha256(store.path(kind, key) / "model")

    return panels.KeptTeacher(
        label=teacher.label,
        role=role,
        family=teacher.family,
        key=teacher.key,
        spec=teacher.spec.model_dump(mode="json") if teacher.spec else None,
        weights_sha256=weights("teacher", teacher.key) if teacher.spec else teacher.base.sha256,
        shape=shape,
        students=tuple(
            panels.KeptStudent(
                recipe=cell.recipe.name,
                seed=cell.seed,
                key=cell.train.key,
                weights_sha256=weights("student", cell.train.key),
            )
            for cell in plan.students
            if cell.teacher.label == teacher.label
        ),
    )


def calibrate(
    study: Study | str | Path,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the error rates of the whole procedure; write `calibration.json` and a page of them.

    Every organism, held-out benign teacher and near miss that the study names is weighed in turn
    against the study's references, as if it were the suspect; with a panel, each against a draw of
    its own. The unit is the teacher.

    Returns:
        What `calibration.rates` returns, and `teachers`: one row each.

    Raises:
        ConfigError: If the study names nobody to weigh.
    """
    study, folder = opened(study, folder)
    out, kept = Path(out), Store(store)
    setting = prepare(study, folder, kept)
    if setting.contest is not None:
        setting.contest.refuse((study.organisms, study.held_out, study.near_misses))
    known, benign, suspects = tested(study, setting)
    everyone = setting.planner.plan([*setting.found, *benign.values()])
    ready(study.executor, study.device)
    with lock(out):
        ledger, on = Ledger(out / "ledger.jsonl"), study.executor
        executor = Executor(kept, ledger, on, device=study.device, progress=progress)
        scores = setting.with_panel(measure(everyone, executor), whole=True)
        shapes = setting.shapes(kept, everyone)
        planted = {
            t.label: t.spec.trait if t.spec else None for t in (*setting.found, *benign.values())
        }
        result = _error_rates(study, setting, known, planted, scores, shapes)
        if setting.contest is not None:
            every = study.replace.bound == "every"
            more, _ = compete(setting, setting.contest, suspects, executor, every=every)
            result |= second_horn(
                result["teachers"],
                known,
                setting.contest.teachers,
                planted,
                more,
                setting.protocol,
                every=every,
            )
        write_atomic(out / "calibration.json", json.dumps(result, indent=1))
        page = render_rates(result, study.model_dump(mode="json"))
        write_atomic(out / "calibration.html", page)
    return result


def _error_rates(
    study: Study,
    setting: Setting,
    known: Sequence[tuple[str, Teacher]],
    planted: Mapping[str, str | None],
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return what the first horn says of teachers whose class is known."""
    controls = [t for t in setting.teachers if t.role == "organism"]
    if setting.panel:  # its own organisms, not those under test
        controls = [t for t in controls if t.label not in study.organisms]
    protocol = setting.protocol
    rows = weigh_each(known, setting.references, controls, scores, shapes, protocol)
    others, blind = robustness(known, setting.references, setting.bank, planted, scores, protocol)
    for row in rows:
        if row["teacher"] in blind:
            row[UNKNOWN] = blind[row["teacher"]]
    return {
        "protocol_hash": protocol.hash,
        "alpha": study.policy.alpha,
        "n_references": len(setting.references(0)),
        **others,
        **rates(rows),
        "teachers": rows,
    }


def export_inspect(run: Run, cell: str | None = None) -> list[Path]:
    """Write the frozen audit transcripts of a run's students as Inspect logs; return their paths.

    Raises:
        RunError: If the run has no such cell.
        MissingExtra: If Inspect is not installed.
    """
    key = run.find(cell) if cell else None
    cells = [c for c in run.cells if key in (None, c["student"])]
    if not cells:
        raise RunError(f"{run.path}: {cell} is no student; `doublebind status` lists them")
    folder = run.path / "inspect"
    folder.mkdir(exist_ok=True)
    return [
        write_inspect_log(
            folder,
            cell=c,
            manifest=run.manifest.model_dump(mode="json"),
            transcripts=run.transcripts(c["student"]),
        )
        for c in cells
    ]
