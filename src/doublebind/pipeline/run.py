"""The order of things, from a study to a verdict: the architecture on one screen.

`measure` is role-free: it makes and audits what a plan lists, and never learns which teacher is
the suspect. `run` weighs once; `calibrate` once per teacher whose truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.executor import Executor, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store
from doublebind.pipeline.followup import run_followup as follow_up
from doublebind.pipeline.measure import compete, measure
from doublebind.runs.assess import assess, select_recipe
from doublebind.runs.manifest import record_protocol, write_manifest
from doublebind.runs.run import Run
from doublebind.runs.seal import seal_run
from doublebind.runs.write import write_assessment, write_page, write_report, write_results
from doublebind.schema.model_source import ModelSource
from doublebind.schema.study import Study
from doublebind.stages.audits.protocol import Audit
from doublebind.study.access import collect_served_facts
from doublebind.study.plan import Plan
from doublebind.study.replacement import find_delivered_student, hash_weights
from doublebind.study.resolve import load_if_path, resolve_study


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

    study, folder = load_if_path(study, folder)
    out, kept = Path(out), Store(store)
    setting = resolve_study(study, folder, kept, audits)
    plan, protocol = setting.plan, setting.protocol
    check_executor(study.executor, study.device)
    with lock_run(out):
        earlier = record_protocol(kept, protocol)
        manifest = write_manifest(
            out,
            study,
            protocol,
            setting.teachers,
            selection_teachers=setting.replacement.teachers if setting.replacement else (),
            earlier_protocols=earlier,
            artefacts=plan.list_artefacts(),
            store=kept,
            served=collect_served_facts(setting.teacher_sources),
        )
        ledger, on = Ledger(out / "ledger.jsonl"), study.executor
        executor = Executor(kept, ledger, on, device=study.device, progress=progress)
        scores = setting.add_panel_scores(measure(plan, executor))
        later: list[Plan] = []
        if setting.replacement is not None:
            more, later = compete(setting, setting.replacement, [setting.suspect], executor)
            scores = pd.concat([scores, more], ignore_index=True)
        shapes = write_results(out, setting, later, kept, scores)
        delivered = find_delivered(later, setting, scores) if setting.replacement else None
        assessment = assess(
            scores,
            setting.teachers,
            setting.replacement.teachers if setting.replacement else (),
            protocol,
            earlier_protocols=manifest.earlier_protocols,
            shapes=shapes,
            weights_sha256=hash_weights(delivered) if delivered else None,
        )
        write_assessment(out, assessment, later, delivered)
        finished = Run(out)
        write_page(finished)
        seal_run(out)
    return finished


def find_delivered(plans: list[Plan], setting: Any, scores: Any) -> ModelSource:
    label = setting.suspect.label
    results, winner = select_recipe(scores, label, setting.replacement.teachers, setting.protocol)
    return find_delivered_student(
        plans[-1], label, next(each for each in results if each.recipe == winner)
    )


def followup(run: str | Path, **settings: Any) -> dict[str, Any]:
    """Ask a finished run's suspect what its students gave away; see `followup.followup`.

    Writes `followup.json` into the run, and the page again, with a section of its own.
    """
    found = follow_up(run, **settings)
    write_report(Run(run))
    return found
