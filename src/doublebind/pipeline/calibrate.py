"""Weighs every teacher of known truth as if it were the suspect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.executor import Executor, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store, write_atomic
from doublebind.pipeline.error_rates import (
    FLAGGED_UNKNOWN_DRIVE,
    compute_rates,
    compute_replacement_rates,
    weigh_teachers,
)
from doublebind.pipeline.leave_one_out import compute_leave_one_out_rates
from doublebind.pipeline.measure import compete, measure
from doublebind.schema.model_source import Teacher
from doublebind.schema.study import Study
from doublebind.stages.report.calibration_page import render_calibration_page
from doublebind.study.resolve import ResolvedStudy, label_teachers, load_if_path, resolve_study

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
    study, folder = load_if_path(study, folder)
    out, kept = Path(out), Store(store)
    setting = resolve_study(study, folder, kept)
    if setting.replacement is not None:
        setting.replacement.check_disjoint_from(
            (study.organisms, study.held_out, study.near_misses)
        )
    known, benign, suspects = label_teachers(study, setting)
    everyone = setting.planner.plan([*setting.teacher_sources, *benign.values()])
    check_executor(study.executor, study.device)
    with lock_run(out):
        ledger, on = Ledger(out / "ledger.jsonl"), study.executor
        executor = Executor(kept, ledger, on, device=study.device, progress=progress)
        scores = setting.add_panel_scores(measure(everyone, executor), all_teachers=True)
        shapes = setting.read_shapes(everyone)
        planted = {
            t.label: t.spec.trait if t.spec else None
            for t in (*setting.teacher_sources, *benign.values())
        }
        result = _compute_error_rates(study, setting, known, planted, scores, shapes)
        if setting.replacement is not None:
            every = study.replace.bound == "every"
            competition = compete(
                setting, setting.replacement, suspects, executor, all_recipes=every
            )
            result |= compute_replacement_rates(
                result["teachers"],
                known,
                setting.replacement.teachers,
                planted,
                competition.scores,
                setting.protocol,
                all_recipes=every,
            )
        write_atomic(out / "calibration.json", json.dumps(result, indent=1))
        page = render_calibration_page(result, study.model_dump(mode="json", by_alias=False))
        write_atomic(out / "calibration.html", page)
    return result


def _compute_error_rates(
    study: Study,
    setting: ResolvedStudy,
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
    rows = weigh_teachers(known, setting.draw_references, controls, scores, shapes, protocol)
    others, blind = compute_leave_one_out_rates(
        known, setting.draw_references, setting.all_references, planted, scores, protocol
    )
    for row in rows:
        if row["teacher"] in blind:
            row[FLAGGED_UNKNOWN_DRIVE] = blind[row["teacher"]]
    return {
        "protocol_hash": protocol.hash,
        "alpha": study.policy.alpha,
        "n_references": len(setting.draw_references(0)),
        **others,
        **compute_rates(rows),
        "teachers": rows,
    }
