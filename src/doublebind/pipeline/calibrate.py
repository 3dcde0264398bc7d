"""Weighs every teacher of known truth as if it were the suspect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from doublebind.execution.executor import Executor, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store, write_atomic
from doublebind.pipeline.drawn_rates import compute_drawn_rates
from doublebind.pipeline.error_rates import (
    KnownTeachers,
    assess_certificates,
    compute_rates,
    compute_replacement_rates,
    weigh_teachers,
)
from doublebind.pipeline.leave_one_out import compute_leave_one_out_rates
from doublebind.pipeline.measure import compete, measure
from doublebind.pipeline.preflight import check_before_work
from doublebind.runs.assess import compute_competition_result
from doublebind.schema.calibration import Calibration, ReplacementRates
from doublebind.schema.study import Study
from doublebind.stages.report.calibration_page import render_calibration_page
from doublebind.study.resolve import ResolvedStudy, label_teachers, load_if_path, resolve_study

if TYPE_CHECKING:
    import pandas as pd

Planted = Mapping[str, str | None]
"""Label of a teacher -> its planted trait."""


def calibrate(
    study: Study | str | Path,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Return the error rates of the whole procedure; write `calibration.json` and a page of them.

    Every organism, held-out benign teacher and near miss that the study names is weighed in turn
    against the study's references, as if it were the suspect; with a panel, each against a draw of
    its own. The unit is the teacher.

    Args:
        study: The study, or its file.
        out: Folder for the results; calling again resumes.
        folder: Folder that relative paths in the study start from; default the file's folder, or
            the current one.
        store: Where artefacts are kept.
        progress: Called with (kind, finished, total).

    Raises:
        ConfigError: If the study names no teacher of known truth.
    """
    study, folder = load_if_path(study, folder)
    out, artefacts = Path(out), Store(store)
    setting = resolve_study(study, folder, artefacts)
    if setting.replacement is not None:
        setting.replacement.check_teachers()
    known, benign, suspects = label_teachers(study, setting)
    sources = [*setting.teacher_sources, *benign.values()]
    plan = setting.planner.plan(sources)
    check_executor(study.executor, study.device)
    check_before_work(setting.planner, sources, plan, setting.replacement)
    with lock_run(out):
        ledger = Ledger(out / "ledger.jsonl")
        executor = Executor(
            artefacts, ledger, study.executor, device=study.device, progress=progress
        )
        scores = setting.add_panel_scores(measure(plan, executor), all_teachers=True)
        shapes = setting.read_shapes(plan)
        planted: Planted = {t.label: t.spec.trait if t.spec else None for t in sources}
        calibration = _calibrate_incrimination(study, setting, known, planted, scores, shapes)
        if setting.replacement is not None:
            all_recipes = study.replace.bound == "every"
            competition = compete(
                setting, setting.replacement, suspects, executor, all_recipes=all_recipes
            )
            rates = _calibrate_replacement(
                setting, calibration, known, planted, competition.scores, all_recipes=all_recipes
            )
            calibration = calibration.model_copy(update={"replacement": rates})
        content = calibration.model_dump(mode="json")
        write_atomic(out / "calibration.json", json.dumps(content, indent=1))
        page = render_calibration_page(content, study.model_dump(mode="json", by_alias=False))
        write_atomic(out / "calibration.html", page)
    return calibration


def _calibrate_incrimination(
    study: Study,
    setting: ResolvedStudy,
    known: KnownTeachers,
    planted: Planted,
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
) -> Calibration:
    """Return the error rates of the incrimination decisions."""
    controls = [t for t in setting.teachers if t.role == "organism"]
    if setting.panel:  # its own organisms, not those under test
        controls = [t for t in controls if t.label not in study.organisms]
    protocol = setting.protocol
    results = weigh_teachers(known, setting.draw_references, controls, scores, shapes, protocol)
    leave_one_out, flags = compute_leave_one_out_rates(
        known, setting.draw_references, setting.all_references, planted, scores, shapes, protocol
    )
    results = [
        result.model_copy(update={"flagged_unknown_drive": flags.get(result.teacher)})
        for result in results
    ]
    return Calibration(
        protocol_hash=protocol.hash,
        alpha=study.policy.alpha,
        n_references=len(setting.draw_references(0)),
        leave_one_out=leave_one_out,
        detection=compute_rates(results),
        drawn=compute_drawn_rates(
            known,
            setting.all_references,
            len(setting.draw_references(0)),
            scores=scores,
            shapes=shapes,
            protocol=protocol,
        ),
        teachers=tuple(results),
    )


def _calibrate_replacement(
    setting: ResolvedStudy,
    calibration: Calibration,
    known: KnownTeachers,
    planted: Planted,
    scores: pd.DataFrame,
    *,
    all_recipes: bool,
) -> ReplacementRates | None:
    """Return the error rates of the replacement decisions, of the winner or of all recipes."""
    protocol, replacement = setting.protocol, setting.protocol.replacement
    if setting.replacement is None or replacement is None:
        return None
    competition = compute_competition_result(scores, "", setting.replacement.teachers, protocol)
    recipes = replacement.recipe_names if all_recipes else (competition.winner,)
    certificates = assess_certificates(
        known, competition, recipes, planted, scores, protocol, replacement.margin
    )
    return compute_replacement_rates(calibration.teachers, certificates, competition, replacement)
