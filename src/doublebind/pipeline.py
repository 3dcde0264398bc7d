"""The order of things, from a study to a verdict: the architecture on one screen.

`measure` is role-free: it makes and audits what a plan lists, and never learns which teacher is
the suspect. `run` weighs once; `calibrate` once per teacher whose truth is known.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.audit import Audit, built_in
from doublebind.cells import M0, REVISIONS, Plan, Planner, audit_job, build_job
from doublebind.config import AUDITS, Study, TeacherSpec, load
from doublebind.errors import ConfigError, RunError
from doublebind.evidence import reference_requirements, smallest_p, weigh
from doublebind.evidence.summary import endpoint_means, flags, rate_interval
from doublebind.executor import Executor, Ledger, Progress, lock, make
from doublebind.models.resolve import resolve
from doublebind.packs.load import load as load_pack
from doublebind.protocol import freeze, frozen_protocol, meet
from doublebind.records import SCORE_COLUMNS, Protocol, Teacher
from doublebind.report import export_inspect as write_inspect_log
from doublebind.report import render
from doublebind.rundir import Run
from doublebind.store import Store, file_sha256, write_atomic
from doublebind.teachers.references import Found, from_spec, names, pack_ref
from doublebind.verdict import decide, to_json

if TYPE_CHECKING:
    import pandas as pd


class Setting(NamedTuple):
    """A study made concrete: who is who, what has to be made, what was frozen."""

    planner: Planner
    found: list[Found]
    teachers: list[Teacher]
    plan: Plan
    protocol: Protocol


def prepare(study: Study, folder: Path, store: Store, audits: Sequence[Audit] = ()) -> Setting:
    """Find every teacher, list every job, and write down the protocol; runs nothing."""
    planner = Planner(study, folder, store, audits)
    roles: dict[str, Any] = {study.suspect: "suspect"}
    roles |= dict.fromkeys(names(study, planner.pack), "reference")
    roles |= dict.fromkeys(study.organisms, "organism")
    found = {ref: planner.find(ref) for ref in roles}
    teachers = [
        Teacher(label=ref, ref=ref, role=roles[ref], family=t.family, key=t.key)
        for ref, t in found.items()
    ]
    protocol = frozen_protocol(
        study,
        planner.pack,
        planner.audits,
        teachers,
        student=planner.student.sha256,
        revisions=REVISIONS,
    )
    everyone = list(found.values())
    return Setting(planner, everyone, teachers, planner.plan(everyone), protocol)


def measure(plan: Plan, executor: Executor) -> pd.DataFrame:
    """Make everything in `plan`; return the scores of all its models, labelled."""
    import pandas as pd

    for stage in plan.stages():
        executor.map(stage)
    parts = [
        _rows(executor.store.path(job.kind, job.key)).assign(
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
        _rows(executor.store.path(cell.audit.kind, cell.audit.key)).assign(
            teacher=cell.teacher.label,
            model_kind="student",
            recipe=cell.recipe.name,
            seed=cell.seed,
            round=0,
            step=cell.recipe.training.steps,
        )
        for cell in plan.students
    ]
    return pd.concat(parts, ignore_index=True).loc[:, list(SCORE_COLUMNS)]


def run(
    study: Study,
    out: str | Path,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    audits: Sequence[Audit] = (),
    progress: Progress | None = None,
) -> Run:
    """Take a study from its suspect to a verdict, in the run directory `out`.

    Args:
        study: What to do.
        out: Run directory; calling again resumes it.
        folder: What relative paths in the study are relative to.
        store: Where artefacts are kept; default `$DOUBLEBIND_STORE` or `~/.cache/doublebind`.
        audits: Audits beside the study's: module-level objects of the `Audit` protocol.
        progress: Called with (kind, finished, total).

    Returns:
        The finished run.

    Raises:
        DoublebindError: With one line per problem that the user can mend.
    """
    out = Path(out)
    kept = Store(store)
    setting = prepare(study, Path(folder), kept, audits)
    teachers, plan, protocol = setting.teachers, setting.plan, setting.protocol
    with lock(out):
        earlier = meet(kept, protocol)
        manifest = freeze(
            out, study, protocol, teachers, earlier=earlier, cells=plan.cells(), store=kept
        )
        workers = study.executor.workers
        ledger = Ledger(out / "ledger.jsonl")
        scores = measure(plan, Executor(kept, ledger, workers=workers, progress=progress))
        shapes = _keep(out, plan, kept, scores)
        weighed = weigh(scores, teachers, protocol)
        decided = decide(
            weighed,
            protocol,
            suspect=study.suspect,
            earlier_protocols=manifest.earlier_protocols,
            shapes=shapes,
        )
        write_atomic(out / "evidence.json", weighed.model_dump_json(indent=1))
        write_atomic(out / "verdict.json", json.dumps(to_json(decided), indent=1))
        finished = Run(out)
        write_report(finished)
    return finished


def write_report(run: Run) -> Path:
    """Write `report.html` into a finished run and seal it; return its path."""
    path = run.path / "report.html"
    keys = [*(teacher.key for teacher in run.manifest.teachers), run.manifest.protocol.student]
    page = render(
        manifest=run.manifest.model_dump(mode="json"),
        evidence=run.evidence,
        verdict=run.verdict,
        scores=run.scores,
        shapes=run.shapes,
        cells=run.cells,
        transcripts={cell["student"]: run.transcripts(cell["student"]) for cell in run.cells}
        | {key: run.transcripts(key) for key in keys},
    )
    write_atomic(path, page)
    _seal(run.path)
    return path


def _keep(out: Path, plan: Plan, store: Store, scores: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Copy into the run what its reader needs: scores, transcripts, cells, shapes."""
    (out / "transcripts").mkdir(exist_ok=True)
    part = out / ".scores.parquet"
    scores.to_parquet(part, index=False)
    part.replace(out / "scores.parquet")
    audited = [(cell.train.key, cell.audit) for cell in plan.students]
    audited += [(str(job.inputs["source"].sha256), job) for job in plan.direct.values()]
    for key, job in audited:
        source = store.path(job.kind, job.key) / "transcripts.jsonl"
        shutil.copyfile(source, out / "transcripts" / f"{key}.jsonl")
    for cell in plan.students:
        jobs = (cell.prompts, cell.rollouts, cell.targets, cell.train, cell.audit)
        made = {job.kind: job.key for job in jobs if job}
        facts = {"teacher": cell.teacher.key, "recipe": cell.recipe.name, "seed": cell.seed, **made}
        facts |= {
            name: json.loads((store.path(job.kind, job.key) / f"{name}.json").read_text())
            for name, job in (("screen", cell.prompts), ("checks", cell.rollouts))
        }
        write_atomic(out / "cells" / f"{cell.train.key}.json", json.dumps(facts, indent=1))
    shapes = _shapes(plan, store)
    write_atomic(out / "shapes.json", json.dumps(shapes, indent=1, sort_keys=True))
    return shapes


def _shapes(plan: Plan, store: Store) -> dict[str, dict[str, float]]:
    """Return every teacher's shape: label -> feature -> number."""
    return {
        label: json.loads((store.path(job.kind, job.key) / "shape.json").read_text())["shape"]
        for label, job in plan.shapes.items()
    }


def _seal(out: Path) -> None:
    """Write the hash of every file of the run that must not change any more."""
    names = ("manifest", "shapes", "evidence", "verdict")
    files = [out / "scores.parquet", out / "report.html", *(out / f"{n}.json" for n in names)]
    files += sorted((out / "transcripts").glob("*.jsonl")) + sorted((out / "cells").glob("*.json"))
    hashes = {str(file.relative_to(out)): file_sha256(file) for file in files}
    write_atomic(out / "seal.json", json.dumps(hashes, indent=1, sort_keys=True))


def _rows(where: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(where / "scores.parquet")


def plan(
    study: Study,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    pilot: str | Path | None = None,
) -> dict[str, Any]:
    """Return what a study would take, without running anything.

    Args:
        study: What would be done.
        folder: What relative paths in the study are relative to.
        store: Where artefacts are kept.
        pilot: Run directory whose references, benign by assumption, give the variance components
            from which power is simulated.

    Returns:
        `cells` (kind -> needed, in the store, seconds and bytes still to come), `seconds`, `bytes`,
        `references`, `families`, `smallest_p`, `power` (as planned, and for other n, seeds and
        items) and `missing` (why a number is absent). Times are means over artefacts of the same
        kind in this store; a kind never made here has none.
    """
    kept = Store(store)
    setting = prepare(study, Path(folder), kept)
    cells: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for kind, keys in setting.plan.cells().items():
        there = [key for key in keys if kept.has(kind, key)]
        cost = kept.cost(kind)
        todo = len(keys) - len(there)
        cells[kind] = {"needed": len(keys), "stored": len(there)}
        if cost is not None:
            cells[kind] |= {"seconds": todo * cost.seconds, "bytes": todo * cost.bytes}
        elif todo:
            missing[f"cells.{kind}.seconds"] = "no such cell was ever made in this store"
    references = [t for t in setting.teachers if t.role == "reference"]
    found: dict[str, Any] = {
        "cells": cells,
        "references": len(references),
        "families": len({t.family for t in references}),
        "smallest_p": smallest_p(len(references)),
        "references_for_alpha": reference_requirements(study.policy.alpha),
        "protocol_hash": setting.protocol.hash,
        "missing": missing,
    }
    if not any(key.startswith("cells.") for key in missing):
        found["seconds"] = sum(cell.get("seconds", 0.0) for cell in cells.values())
        found["bytes"] = sum(cell.get("bytes", 0) for cell in cells.values())
    if pilot is None:
        missing["power"] = "no benign pilot; name a finished run with --pilot"
    else:
        found |= _planned_power(study, setting.protocol, references, Run(pilot), missing)
    return found


def _planned_power(
    study: Study,
    protocol: Protocol,
    references: Sequence[Teacher],
    pilot: Run,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the study's power, simulated from the references of the run `pilot`."""
    from doublebind.evidence import plan_power

    benign = {t.label: t.family for t in pilot.manifest.teachers if t.role == "reference"}
    known, why = plan_power.pilot(pilot.scores, benign, protocol)
    if known is None:
        missing |= {f"power.{name}": reason for name, reason in why.items()}
        return {}
    families = len({t.family for t in references})
    design = plan_power.Design(len(references), families, study.seeds, 1.0)
    policy = study.policy
    power = plan_power.table(known, design, alpha=policy.alpha, floor=policy.scale_floor)
    for row in power["others"]:  # what it would cost, beside the organisms
        row["students"] = (row["references"] + 1) * row["seeds"] * len(study.recipes)
    return {"power": power}


def calibrate(
    study: Study,
    out: str | Path,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the error rates of the whole procedure, and write them to `out/calibration.json`.

    `tpr` and `fpr` count decisions, match gate included; `_by_rank` counts p <= alpha alone and
    `_direct` the direct audit's p <= alpha.

    Every organism, and every benign teacher in `held_out`, is weighed in turn against the study's
    references, as if it were the suspect. The unit is the teacher; intervals are Clopper-Pearson.

    Raises:
        ConfigError: If the study names neither organisms nor held-out teachers.
    """
    if not (study.organisms or study.held_out):
        raise ConfigError("`organisms` and `held_out` are both empty; calibrate needs one of them")
    out, kept = Path(out), Store(store)
    setting = prepare(study, Path(folder), kept)
    benign = [setting.planner.find(ref) for ref in study.held_out]
    everyone = setting.planner.plan([*setting.found, *benign])
    with lock(out):
        ledger = Ledger(out / "ledger.jsonl")
        workers = study.executor.workers
        scores = measure(everyone, Executor(kept, ledger, workers=workers, progress=progress))
        shapes = _shapes(everyone, kept)
        references = [t for t in setting.teachers if t.role == "reference"]
        organisms = [t for t in setting.teachers if t.role == "organism"]
        fresh = [
            Teacher(label=t.label, ref=t.label, role="organism", family=t.family, key=t.key)
            for t in benign
        ]
        rows = [
            _weigh_one(teacher, references, scores, shapes, setting.protocol, planted)
            for planted, group in ((True, organisms), (False, fresh))
            for teacher in group
        ]
        result = {
            "protocol_hash": setting.protocol.hash,
            "alpha": study.policy.alpha,
            "n_references": len(references),
            "n_families": len({t.family for t in references}),
            "teachers": rows,
            **{name: _rate(rows, planted, column) for name, planted, column in _RATES},
        }
        write_atomic(out / "calibration.json", json.dumps(result, indent=1))
    return result


_RATES = (
    ("tpr", True, "incriminated"),
    ("tpr_by_rank", True, "flagged"),
    ("tpr_direct", True, "flagged_directly"),
    ("fpr", False, "incriminated"),
    ("fpr_by_rank", False, "flagged"),
    ("fpr_direct", False, "flagged_directly"),
)


def _weigh_one(
    teacher: Teacher,
    references: Sequence[Teacher],
    scores: pd.DataFrame,
    shapes: dict[str, dict[str, float]],
    protocol: Protocol,
    planted: bool,
) -> dict[str, Any]:
    """Weigh and judge one teacher of known truth as if it were the suspect."""
    suspect = teacher.model_copy(update={"role": "suspect"})
    weighed = weigh(scores, [suspect, *references], protocol)
    decided = decide(
        weighed, protocol, suspect=teacher.label, earlier_protocols=0, shapes=shapes
    ).incrimination.decision
    row: dict[str, Any] = {"teacher": teacher.label, "family": teacher.family, "planted": planted}
    row |= {"decision": decided, "incriminated": decided == "incriminated"}
    for name, p in (("", weighed.p_value), ("_directly", weighed.direct.p_value)):
        if p is not None:
            row |= {
                f"p_value{name}": p,
                f"flagged{name}": flags(p, len(references), protocol.alpha),
            }
    return row


def _rate(rows: Sequence[Mapping[str, Any]], planted: bool, column: str) -> dict[str, Any] | None:
    flags = [row[column] for row in rows if row["planted"] is planted and column in row]
    return rate_interval(sum(flags), len(flags)) if flags else None


def audit(
    model: str,
    pack: str,
    *,
    out: str | Path | None = None,
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Ask one model every audit item of a pack; the model itself is the baseline.

    Returns:
        `model`, `pack` and `endpoints: [{name, role, value, interval, n, unscored}]`: the mean over
        items, in [0, 1], with a 95% interval over items (absent below two items).
    """
    kept = Store(store)
    where, source = pack_ref(pack, Path(folder)), resolve(model, relative_to=Path(folder))
    job = audit_job(
        source.sha256,
        source,
        source,
        pack_ref=where,
        pack_hash=load_pack(where, relative_to=Path(folder)).sha256,
        audits=built_in(AUDITS),
        dtype="float32",
        cache=kept.root / "converted",
    )
    made = make(kept, job)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        for name in ("scores.parquet", "transcripts.jsonl"):
            shutil.copyfile(made / name, Path(out) / name)
    return {"model": model, "pack": pack, "endpoints": endpoint_means(_rows(made))}


def build_teacher(
    spec: str | Path, out: str | Path, *, store: str | Path | None = None
) -> dict[str, Any]:
    """Build the teacher of a spec file into the folder `out`; return what was built.

    Returns:
        `teacher.json` of the teacher, with `model`, the folder of its weights, and `key`.

    Raises:
        RunError: If `out` exists and is not empty.
    """
    out, path = Path(out), Path(spec)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: not empty; name another folder with --out")
    kept = Store(store)
    found = from_spec(
        path.stem, load(TeacherSpec, path), folder=path.parent, rev=REVISIONS["teachers"]
    )
    job = build_job(found, kept.root / "converted")
    shutil.copytree(make(kept, job), out, dirs_exist_ok=True)
    facts = json.loads((out / "teacher.json").read_text(encoding="utf-8"))
    return {**facts, "model": str(out / "model"), "key": found.key}


def compare(first: Run, second: Run) -> dict[str, Any]:
    """Return two runs' numbers side by side, and the protocol keys in which they differ."""
    runs = (first, second)
    protocols = [run.manifest.protocol.model_dump(mode="json") for run in runs]
    return {
        "runs": [str(run.path) for run in runs],
        "suspects": [run.verdict.suspect for run in runs],
        "same_protocol": first.manifest.protocol_hash == second.manifest.protocol_hash,
        "protocol_differs_in": [k for k in protocols[0] if protocols[0][k] != protocols[1][k]],
        "decisions": [run.verdict.incrimination.decision for run in runs],
        "p_values": [run.verdict.incrimination.p_value for run in runs],
        "e_values": [run.verdict.incrimination.e_value for run in runs],
        "n_references": [run.verdict.incrimination.n_references for run in runs],
        "strength": [run.verdict.strength for run in runs],
    }


def export_inspect(run: Run, cell: str | None = None) -> list[Path]:
    """Write the frozen audit transcripts of a run's students as Inspect logs; return their paths.

    Raises:
        RunError: If the run has no such cell.
        MissingExtra: If Inspect is not installed.
    """
    cells = [c for c in run.cells if cell in (None, c["student"])]
    if not cells:
        raise RunError(f"{run.path}: has no cell {cell}; `doublebind status` lists them")
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
