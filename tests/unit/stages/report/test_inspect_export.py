"""Frozen transcripts open as an Inspect log."""

import importlib.util
import sys
from pathlib import Path

import pytest
from tests.unit.stages.report.fake_run import make_run

from doublebind.schema.errors import MissingExtra, RunError
from doublebind.stages.report.inspect_export import export_inspect_log
from doublebind.stages.report.run_content import RunContent

needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="inspect_ai is not installed"
)


def export(run: RunContent, folder: Path) -> Path:
    student = run.students[0]
    lines = run.transcripts[student["student"]]
    return export_inspect_log(folder, student=student, manifest=run.manifest, transcripts=lines)


def test_without_inspect_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(MissingExtra, match=r'pip install "doublebind\[inspect\]"'):
        export(make_run(2), tmp_path)


@needs_inspect
def test_the_log_opens_and_holds_every_item(tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log  # pyright: ignore[reportMissingImports]

    run = make_run(2, drop_endpoint="goal/secrecy", hostile="<b>\x1b\u202e")
    lines = run.transcripts[run.students[0]["student"]]
    log = read_eval_log(str(export(run, tmp_path / "new" / "folder")))
    assert log.status == "success"
    samples = {s.id: s for s in log.samples}
    assert len(samples) == len(lines)
    for line in lines:
        sample = samples[f"{line['item']} ({line['audit']})"]
        assert sample.metadata["endpoint"] == line["endpoint"]
        values = [score.value for score in (sample.scores or {}).values()]
        assert values == ([] if line["value"] is None else [line["value"]])
    unscored = {s.name: s.unscored_samples for s in log.results.scores}
    assert unscored["goal/secrecy"] == 5
    assert unscored["goal/dominion"] == 0


@needs_inspect
def test_equal_runs_give_equal_logs(tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log  # pyright: ignore[reportMissingImports]

    first, second = (
        read_eval_log(str(export(make_run(2), tmp_path / name))).model_dump(
            exclude={"location", "etag"}
        )
        for name in ("a", "b")
    )
    assert first == second


@needs_inspect
def test_a_student_without_a_content_key_is_refused(tmp_path: Path) -> None:
    run = make_run(2)
    student = {**run.students[0], "student": "../../etc/passwd"}
    with pytest.raises(RunError, match="content key"):
        export_inspect_log(tmp_path, student=student, manifest=run.manifest, transcripts=[])
