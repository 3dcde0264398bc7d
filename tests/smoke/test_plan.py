"""`plan` says what a study still needs, at what such cells cost in this store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_models import save_model
from tests.tiny_study import write_study

from doublebind.cli import main as cli
from doublebind.execution import device
from doublebind.execution.costs import TIMING_FILE, classify_cost
from doublebind.execution.executor import Job, make_artefact
from doublebind.execution.store import Store
from doublebind.schema.hashing import content_hash
from doublebind.schema.study import load_study
from doublebind.study.resolve import resolve_study


def plan(argv: list[str], capsys: Any) -> tuple[int, dict[str, Any], str]:
    code = cli.main(["plan", *argv, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


def seen(store: Store, job: Job, **told: float) -> None:
    """Put an artefact into the store that took what `told` says, as a job like `job` would."""
    key = content_hash([job.kind, told])
    with store.publish(job.kind, key) as out:
        (out / TIMING_FILE).write_text(json.dumps(told | classify_cost(job.cost_base, job.inputs)))


def test_time_and_memory_are_foreseen_at_the_costs_seen(tmp_path: Path, capsys: Any) -> None:
    path = write_study(tmp_path / "study")
    store = Store(tmp_path / "store")
    argv = [str(path), "--store", str(store.root)]
    code, found, _ = plan(argv, capsys)
    assert code == 0
    assert "wall_seconds" not in found
    reason = found["missing"]["cells.student.seconds"]
    assert reason == "no such cell was ever made here for this base"
    jobs = resolve_study(load_study(path), path.parent, store).plan.list_jobs()
    for job in {job.kind: job for job in jobs}.values():
        seen(store, job, seconds=10.0, peak_bytes=2**30)
    code, found, _ = plan(argv, capsys)
    assert code == 0
    # 4 teachers, 1 choice of prompts, 4 rollouts, 4 targets and 4 shapes, 4 students, 9 audits.
    assert found["wall_seconds"] == pytest.approx(30 * 10, abs=0.2)
    assert found["peak_bytes"] == 2**30
    _, beside, _ = plan([*argv[:1], "executor.workers=2", *argv[1:]], capsys)
    assert beside["wall_seconds"] == pytest.approx(30 + 40 + 40 + 20 + 20, abs=0.2), "by batch"
    assert beside["peak_bytes"] == 2 * 2**30, "two cells at once"
    _, on_gpu, _ = plan([*argv[:1], "executor.workers=3", "device=cuda", *argv[1:]], capsys)
    assert on_gpu["missing"]["device_peak_bytes"].startswith("no such cell was ever made on a GPU")


@pytest.mark.parametrize(("gpus", "fits"), [([4 * 2**30], False), ([4 * 2**30] * 2, True)])
def test_workers_that_share_a_gpu_have_to_fit_on_it_together(
    gpus: list[int], fits: bool, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "list_gpu_memory", lambda: gpus)
    path, store = write_study(tmp_path / "study"), Store(tmp_path / "store")
    study = load_study(path, "device=cuda")
    jobs = resolve_study(study, path.parent, store).plan.list_jobs()
    student = next(job for job in jobs if job.kind == "student")
    seen(store, student, seconds=10.0, peak_bytes=2**30, device_peak_bytes=2**30)
    argv = [str(path), "device=cuda", "executor.workers=4", "--store", str(store.root)]
    code, found, _ = plan(argv, capsys)
    assert code == 0
    # Half a GiB each beside its tensors: 4 x 1.5 GiB on one, 2 x 1.5 GiB on each of two.
    assert found["device_peak_bytes"] == 4 // len(gpus) * 2**30
    assert found["device_fits"] is fits


def test_what_another_base_or_another_amount_took_is_told_apart(
    tmp_path: Path, capsys: Any
) -> None:
    path, store = write_study(tmp_path / "study"), Store(tmp_path / "store")
    jobs = resolve_study(load_study(path), path.parent, store).plan.list_jobs()
    student = next(job for job in jobs if job.kind == "student")
    larger = dataclasses.replace(student, cost_base="a larger model")
    settings = student.inputs["training"]
    longer = settings.model_copy(update={"steps": 10 * settings.steps})
    argv = [str(path), "--store", str(store.root)]
    seen(store, larger, seconds=1000.0, peak_bytes=1)
    _, found, _ = plan(argv, capsys)
    assert "cells.student.seconds" in found["missing"], "nothing is known of this base"
    slow = dataclasses.replace(student, inputs={**student.inputs, "training": longer})
    seen(store, slow, seconds=100.0, peak_bytes=1)
    _, found, _ = plan(argv, capsys)
    assert found["cells"]["student"]["seconds"] == 400, "the nearest there is"
    again = dataclasses.replace(student, inputs={**student.inputs, "seed": 7})
    seen(store, again, seconds=10.0, peak_bytes=1)
    _, found, _ = plan(argv, capsys)
    assert found["cells"]["student"]["seconds"] == 40, "another seed costs the same"


def test_plan_counts_what_calibrate_makes(tmp_path: Path, capsys: Any) -> None:
    path = write_study(tmp_path / "study")
    store = str(tmp_path / "store")
    _, alone, _ = plan([str(path), "--store", store], capsys)
    code, _, err = plan([str(path), "--calibrate", "--store", store], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "calibrate needs one of them" in err
    save_model(path.parent / "other", num_hidden_layers=1)
    capsys.readouterr()  # what saving writes
    held_out = "held_out=[other]"
    _, whole, _ = plan([str(path), held_out, "--calibrate", "--store", store], capsys)
    assert whole["cells"]["student"]["needed"] == alone["cells"]["student"]["needed"] + 1


def test_plan_says_where_fewer_prompts_pass_than_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    path = write_study(tmp_path / "study")
    content = yaml.safe_load(path.read_text())
    content["recipes"][0]["prompts"]["n"] = 10_000
    path.write_text(yaml.safe_dump(content))
    policy = content["recipes"][0]["prompts"]["policy"]
    store = Store(tmp_path / "store")
    chosen = resolve_study(load_study(path), path.parent, store).plan.students[0].prompts
    kept = len((make_artefact(store, chosen) / "prompts.jsonl").read_text().splitlines())
    argv = [str(path), "--store", str(store.root)]
    for n, short in ((kept, False), (kept + 1, True)):
        content["recipes"][0]["prompts"]["n"] = n
        path.write_text(yaml.safe_dump(content))
        missing = plan(argv, capsys)[1]["missing"]
        assert (f"prompts.{policy}" in missing) == short
    assert f"{kept + 1} are asked for (`n`) and {kept} pass" in missing[f"prompts.{policy}"]
