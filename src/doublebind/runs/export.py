"""Writes frozen transcripts as Inspect logs."""

from __future__ import annotations

from pathlib import Path

from doublebind.runs.files import check_file, check_folder, list_files
from doublebind.runs.run import Run, explain_contradictions
from doublebind.schema.errors import RunError
from doublebind.stages.report.inspect_export import export_inspect_log


def export_inspect(run: Run, student: str | None = None) -> list[Path]:
    """Write the frozen audit transcripts of a run's students as Inspect logs; return their paths.

    Raises:
        RunError: If the run has no such student.
        MissingExtra: If Inspect is not installed.
    """
    key = run.find_model(student) if student else None
    students = [s for s in run.students if key in (None, s["student"])]
    if not students:
        raise RunError(f"{run.path}: {student} is no student; `doublebind status` lists them")
    check_folder(run.path, "inspect")
    for name in list_files(run.path, "inspect"):
        check_file(run.path, name)  # a log would be written through a link
    folder = run.path / "inspect"
    with explain_contradictions(run.path):
        return [
            export_inspect_log(
                folder,
                student=each,
                manifest=run.manifest,
                transcripts=run.transcripts(each["student"]),
            )
            for each in students
        ]
