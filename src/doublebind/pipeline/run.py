"""Runs a study from its suspect to a verdict: the method on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doublebind.execution.executor import Executor, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store
from doublebind.pipeline.measure import compete, measure
from doublebind.pipeline.preflight import check_before_work
from doublebind.runs.assess import assess
from doublebind.runs.manifest import freeze_manifest, record_run
from doublebind.runs.run import Run
from doublebind.runs.seal import read_seal, seal_run
from doublebind.runs.write import hash_weights, write_assessment, write_measurements, write_page
from doublebind.schema.study import Study
from doublebind.stages.audits.protocol import Audit
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
    """Run a study from its suspect to a verdict, in the run directory `out`.

    Args:
        study: The study, or its file.
        out: Run directory; calling again resumes it.
        folder: Folder that paths in the study are relative to; default the file's, or the
            current one.
        store: Store of artefacts; default `$DOUBLEBIND_STORE` or `~/.cache/doublebind`.
        audits: Audits besides the study's: module-level objects of the `Audit` protocol.
        progress: Called with (kind, finished, total).

    Returns:
        The finished run.

    Raises:
        DoublebindError: With one line per problem that the user can solve.
    """
    import pandas as pd

    study, folder = load_if_path(study, folder)
    resolved = resolve_study(study, folder, Store(store), audits)
    check_executor(study.executor, study.device)
    check_before_work(
        resolved.planner, resolved.teacher_sources, resolved.plan, resolved.replacement
    )
    out = Path(out)
    with lock_run(out):
        manifest = freeze_manifest(out, resolved)  # before the first audit
        ledger = Ledger(out / "ledger.jsonl")
        executor = Executor(
            resolved.store, ledger, study.executor, device=study.device, progress=progress
        )
        scores = resolved.add_panel_scores(measure(resolved.plan, executor))
        competition = None
        if resolved.replacement is not None:
            competition = compete(resolved, resolved.replacement, [resolved.suspect], executor)
            resolved.store.open_inputs([competition.delivered])
            scores = pd.concat([scores, competition.scores], ignore_index=True)
        shapes = write_measurements(out, resolved, competition.plans if competition else (), scores)
        assessment = assess(
            scores,
            resolved.teachers,
            resolved.selection_teachers,
            resolved.protocol,
            earlier_protocols=manifest.earlier_protocols,
            shapes=shapes,
            weights_sha256=hash_weights(competition.delivered) if competition else None,
        )
        write_assessment(out, assessment, competition)
        finished = Run(out)
        write_page(finished)
        seal_run(out)
        record_run(resolved.store, manifest, read_seal(out))
    return finished
