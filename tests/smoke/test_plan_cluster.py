"""`plan --cluster` schedules what a study still needs, at what such cells cost in this store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_study import write_study

from doublebind import cli
from doublebind.config import load_study
from doublebind.models import device
from doublebind.setting import prepare
from doublebind.store import Store

SPEC = {
    "nodes": [{"count": 2, "cpus": 1, "memory_gib": 4, "price_per_hour": 1.8}],
    "store_mib_per_second": 100,
    "driver_seconds": 0.0,
}


def plan(argv: list[str], capsys: Any) -> tuple[int, dict[str, Any], str]:
    code = cli._code(["plan", *argv, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, said.err


@pytest.fixture
def cluster(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return str(path)


def test_a_study_is_scheduled_at_the_costs_seen(tmp_path: Path, cluster: str, capsys: Any) -> None:
    path = write_study(tmp_path / "study")
    store = Store(tmp_path / "store")
    argv = [str(path), "--store", str(store.root), "--cluster", cluster]
    code, found, _ = plan(argv, capsys)
    assert code == 0
    assert "cluster" not in found
    assert found["missing"]["cluster"] == "cells of some kind were never made in this store"
    stages = prepare(load_study(path), path.parent, store).plan.stages()
    for kind in {job.kind for stage in stages for job in stage}:
        with store.publish(kind, "ffff") as out:
            told = {"seconds": 10.0, "peak_bytes": 2**30}
            (out / "timing.json").write_text(json.dumps(told))
    code, found, _ = plan(argv, capsys)
    assert code == 0
    scheduled = found["cluster"]
    # 4 teachers, 1 choice of prompts, 4 rollouts, 4 targets and 4 shapes, 4 students, 9 audits.
    assert [row["cells"] for row in scheduled["stages"]] == [4, 1, 4, 8, 4, 9]
    assert scheduled["seconds"] == pytest.approx(20 + 10 + 20 + 40 + 20 + 50, abs=0.1)
    assert scheduled["cost"] == pytest.approx(2 * 1.8 * 160 / 3600, rel=1e-2)
    assert scheduled["bottleneck"] == "cells"
    assert found["wall_seconds"] == pytest.approx(30 * 10, abs=0.2)
    assert found["peak_bytes"] == 2**30
    _, beside, _ = plan([*argv[:1], "executor.workers=2", *argv[1:]], capsys)
    assert beside["wall_seconds"] == pytest.approx(160, abs=0.2)
    assert beside["peak_bytes"] == 2 * 2**30, "two cells at once"
    _, on_gpu, _ = plan([*argv[:1], "executor.workers=3", "device=cuda", *argv[1:]], capsys)
    assert on_gpu["missing"]["device_peak_bytes"].startswith("no such cell was ever made on a GPU")
    code, _, err = plan([*argv[:1], "executor={kind: ray, cpus: 2}", *argv[1:]], capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert "none has 2 CPUs" in err


@pytest.mark.parametrize(("gpus", "fits"), [([4 * 2**30], False), ([4 * 2**30] * 2, True)])
def test_workers_that_share_a_gpu_have_to_fit_on_it_together(
    gpus: list[int], fits: bool, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "gpu_bytes", lambda: gpus)
    path, store = write_study(tmp_path / "study"), Store(tmp_path / "store")
    with store.publish("student", "ffff") as out:
        told = {"seconds": 10.0, "peak_bytes": 2**30, "device_peak_bytes": 2**30}
        (out / "timing.json").write_text(json.dumps(told))
    argv = [str(path), "device=cuda", "executor.workers=4", "--store", str(store.root)]
    code, found, _ = plan(argv, capsys)
    assert code == 0
    # Half a GiB each beside its tensors: 4 x 1.5 GiB on one, 2 x 1.5 GiB on each of two.
    assert found["device_peak_bytes"] == 4 // len(gpus) * 2**30
    assert found["device_fits"] is fits
