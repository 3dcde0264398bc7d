"""The order of things, from a study to a verdict: the architecture on one screen.

`measure` is role-free: it makes and audits what a plan lists, and never learns which teacher is
the suspect. `run` weighs once; `calibrate` once per teacher whose truth is known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.executor import Executor, Progress, ready
from doublebind.execution.ledger import Ledger, lock
from doublebind.execution.store import Store, write_atomic
from doublebind.pipeline.audit_model import audit as audit
from doublebind.pipeline.audit_model import investigate as investigate
from doublebind.pipeline.audit_model import judge as judge
from doublebind.pipeline.audit_model import whitebox as whitebox
from doublebind.pipeline.build_teacher import build_teacher as build_teacher
from doublebind.pipeline.followup import followup as follow_up
from doublebind.pipeline.measure import compete, measure
from doublebind.pipeline.plan import plan as plan
from doublebind.runs.assess import _decide_second
from doublebind.runs.manifest import freeze, meet
from doublebind.runs.run import Run
from doublebind.runs.seal import seal
from doublebind.runs.write import _write_page, keep, write_report
from doublebind.schema.study import Study
from doublebind.stages.audits.protocol import Audit
from doublebind.stages.evidence import weigh
from doublebind.stages.verdict import decide, to_json
from doublebind.study.access import declared
from doublebind.study.plan import Plan
from doublebind.study.resolve import opened, prepare

if TYPE_CHECKING:
    pass


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


def followup(run: str | Path, **settings: Any) -> dict[str, Any]:
    """Ask a finished run's suspect what its students gave away; see `followup.followup`.

    Writes `followup.json` into the run, and the page again, with a section of its own.
    """
    found = follow_up(run, **settings)
    write_report(Run(run))
    return found
