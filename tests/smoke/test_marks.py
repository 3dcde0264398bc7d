"""A study whose students are audited on the way: dose curves, and the same verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.tiny_study import write_study

import doublebind
from doublebind.pipeline.panel import freeze_panel
from doublebind.runs.seal import seal_run
from doublebind.schema.study import PanelSpec
from doublebind.schema.yaml_loader import load_yaml

STEPS = [1, 3, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with `plain/` and `marked/`, which share a store."""
    folder = write_study(tmp_path_factory.mktemp("marks") / "study").parent
    for name, marks in (("plain", []), ("marked", STEPS[:2])):
        study = doublebind.load_study(
            folder / "study.yaml", f"recipes.0.training.checkpoints={marks}"
        )
        doublebind.run(study, folder / name, folder=folder, store=folder / "store")
    return folder


def run_of(folder: Path, name: str) -> doublebind.Run:
    return doublebind.Run(folder / name)


def test_every_mark_is_audited_and_shown_and_nothing_that_decides_moves(folder: Path) -> None:
    plain, marked = run_of(folder, "plain"), run_of(folder, "marked")
    rows = marked.scores[marked.scores["model_kind"] == "student"]
    counts = rows.groupby(["teacher", "step"]).size().unstack("step")
    assert list(counts.columns) == STEPS
    assert len(set(counts.to_numpy().ravel())) == 1, "each student met every item"
    last = rows[rows["step"] == STEPS[-1]].reset_index(drop=True)
    before = plain.scores[plain.scores["model_kind"] == "student"].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, before)
    early = rows[rows["step"] == 1]["value"].to_numpy()
    assert not np.allclose(early, before["value"].to_numpy())
    one, other = (run.evidence.model_dump() for run in (plain, marked))
    one.pop("p_smoothed"), other.pop("p_smoothed")  # its random number is of the protocol's hash
    assert one == other
    assert plain.manifest.protocol_hash != marked.manifest.protocol_hash
    page = (folder / "marked" / "report.html").read_text()
    assert "against training steps" in page
    assert "No dose curve" not in page
    assert "Arrows bend at the audited steps (1, 3)." in page
    assert "No dose curve" in (folder / "plain" / "report.html").read_text()


def test_students_on_the_way_are_found_by_their_keys(folder: Path) -> None:
    run = run_of(folder, "marked")
    cell = run.students[0]
    assert list(cell["marks"]) == ["1", "3"]
    value = run.scores.query("teacher == @cell['label'] and model_kind == 'student'")
    for step, key in cell["marks"].items():
        told = [line["value"] for line in run.transcripts(key)]
        assert told == value[value["step"] == int(step)]["value"].tolist()
    there = [m.step for m in run.status().models if m.kind == "student"]
    assert there == [None, 1, 3] * 4
    assert all("marks" not in cell for cell in run_of(folder, "plain").students)


def test_an_altered_mark_is_named_with_its_step(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, "marked")
    assert doublebind.verify(run.path).problems == ()
    path = run.path / "scores.parquet"
    scores, seal = path.read_bytes(), (run.path / "seal.json").read_text()
    rows = pd.read_parquet(path)
    at = rows.index[rows["step"] == 3][0]
    rows.loc[at, "value"] = 0.123
    rows.to_parquet(path, index=False)
    try:
        seal_run(run.path)
        (problem,) = doublebind.verify(run.path).problems
        assert "seed 0, step 3; its transcript says" in problem
    finally:
        path.write_bytes(scores)
        (run.path / "seal.json").write_text(seal)


def test_a_panel_without_marks_serves_a_study_with_some(folder: Path) -> None:
    study = json.loads(run_of(folder, "plain").manifest.model_dump_json())["study"]
    fields = {k: v for k, v in study.items() if k in PanelSpec.model_fields}
    (folder / "panel.yaml").write_text(json.dumps(fields))
    measurement = load_yaml(PanelSpec, folder / "panel.yaml")
    freeze_panel(measurement, folder / "panel", folder=folder, store=folder / "store")
    asked: list[str] = ["references={panel: panel, n: 3}", "recipes.0.training.checkpoints=[1, 3]"]
    weighed: list[Any] = []
    for overrides in (asked[:1], asked):
        made = doublebind.load_study(folder / "study.yaml", *overrides)
        out = folder / f"of-panel-{len(overrides)}"
        run = doublebind.run(made, out, folder=folder, store=folder / "store")
        weighed.append(run.evidence.model_copy(update={"p_smoothed": None}))
        assert doublebind.verify(run.path).problems == ()
    assert weighed[0] == weighed[1]
    students = run_of(folder, "of-panel-2").scores.query("model_kind == 'student'")
    steps = students.groupby("teacher")["step"].unique().map(len).to_dict()
    assert steps.pop("suspect.yaml") == 3
    assert set(steps.values()) == {1}
