"""Weighs every teacher of known truth as if it were the suspect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.executor import Executor, Progress, ready
from doublebind.execution.ledger import Ledger, lock
from doublebind.execution.store import Store, write_atomic
from doublebind.pipeline.error_rates import UNKNOWN, rates, second_horn, weigh_each
from doublebind.pipeline.leave_one_out import robustness
from doublebind.pipeline.measure import compete, measure
from doublebind.schema.model_source import Teacher
from doublebind.schema.study import Study
from doublebind.stages.report import render_rates
from doublebind.study.resolve import Setting, opened, prepare, tested

if TYPE_CHECKING:
    import pandas as pd


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
