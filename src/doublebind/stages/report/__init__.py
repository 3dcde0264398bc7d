"""Door of the report: pages that show a run or a procedure's error rates, and Inspect logs.

Knows how a run is shown. Measures and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.schema.evidence import Evidence, ReplacementEvidence
from doublebind.schema.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd


def render(
    *,
    manifest: Mapping[str, Any],
    evidence: Evidence,
    verdict: Verdict,
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
    cells: Sequence[Mapping[str, Any]],
    transcripts: Mapping[str, Sequence[Mapping[str, Any]]],
    replacement: ReplacementEvidence | None = None,
    followup: Mapping[str, Any] | None = None,
) -> str:
    """Return `report.html`: one page that needs no network and trusts no text it shows.

    Equal arguments give equal pages, byte for byte.

    Args:
        manifest: Content of `manifest.json`.
        evidence: What the scores say.
        verdict: What was decided.
        scores: Rows with the columns of `records.SCORE_COLUMNS`.
        shapes: Teacher label -> feature -> number.
        cells: One entry per student: `teacher` (content key), `recipe`, `seed`, `student` (content
            key); where present, `screen` and `checks` (the content of `screen.json` and
            `checks.json`) say what was dropped on the way.
        transcripts: Content key of a model -> lines of its `transcripts.jsonl`; M0's key is the
            protocol's `student`.
        replacement: What the second horn rests on, where it was asked for.
        followup: Content of `followup.json`, where there was one.
    """
    from doublebind.stages.report import run_page as html

    return html.render(
        manifest=manifest,
        evidence=evidence,
        verdict=verdict,
        scores=scores,
        shapes=shapes,
        cells=cells,
        transcripts=transcripts,
        replacement=replacement,
        followup=followup,
    )


def render_rates(found: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Return `calibration.html`: one page about a procedure's error rates, for auditors to cite.

    Equal arguments give equal pages, byte for byte.

    Args:
        found: Content of `calibration.json`.
        study: The study that it is of, as JSON.
    """
    from doublebind.stages.report import calibration_page as calibrated

    return calibrated.render(found, study)


def export_inspect(
    out: Path,
    *,
    cell: Mapping[str, Any],
    manifest: Mapping[str, Any],
    transcripts: Sequence[Mapping[str, Any]],
) -> Path:
    """Write one student's frozen transcripts as an Inspect `.eval` log; return its path.

    Args:
        out: Folder, made where it is absent; the file is named after the student.
        cell: The student's entry, as in `render`.
        manifest: Content of `manifest.json`.
        transcripts: Lines of the student's `transcripts.jsonl`.

    Raises:
        MissingExtra: If `inspect_ai` is not installed.
        RunError: If the cell names no student by its content key.
        StoreError: If `out` cannot be written.
    """
    from doublebind.stages.report import inspect_export

    return inspect_export.export(out, cell=cell, manifest=manifest, transcripts=transcripts)
