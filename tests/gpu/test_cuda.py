"""On a real GPU: students, answers, scores and caches are the CPU's within rounding.

`make test` skips these where there is none; `pytest tests/gpu` runs them all, in about a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.equivalence.test_device import CHANNELS, examples, lm, scores

from doublebind.models import teacher_cache
from doublebind.models.score import token_logprobs
from doublebind.schema.recipe import Lora, Training
from doublebind.training import loop

pytestmark = pytest.mark.gpu
ON = ("cpu", "cuda")


def on(device: str) -> Any:
    model = lm()
    model.model.to(device)
    return model


def test_scores_agree() -> None:
    sequences = [
        (e.input_ids[: e.first_supervised], e.input_ids[e.first_supervised :]) for e in examples()
    ]
    on_cpu, on_gpu = (np.concatenate(token_logprobs(on(device), sequences)) for device in ON)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)


@pytest.mark.parametrize("small", [0, 4096])
def test_caches_agree(small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "SMALL_VOCAB", small)
    for device in ON:
        teacher_cache.write_targets(tmp_path / device, on(device), examples(), 8, tail_samples=4)
    on_cpu, on_gpu = (teacher_cache.read_targets(tmp_path / device) for device in ON)
    for name in ("logprobs", "tail", "lse", "chosen"):
        torch.testing.assert_close(
            getattr(on_gpu, name), getattr(on_cpu, name), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
@pytest.mark.parametrize("small", [0, 4096])
def test_students_agree(
    small: int, lora: Lora | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SMALL_VOCAB", small)
    teacher_cache.write_targets(tmp_path, on("cpu"), examples(), 8)
    settings = Training(steps=20, batch=4, lr=1e-3, lora=lora)
    logs, weights = [], []
    for device in ON:
        model = loop.prepare_model(on(device).model, lora, 0)
        targets = teacher_cache.read_targets(tmp_path)
        data = loop.TrainingSet(examples(), targets)
        logs.append(loop.train(model, data, settings=settings, seed=0))
        trained = [p.detach().cpu().flatten() for p in model.parameters() if p.requires_grad]
        weights.append(torch.cat(trained))
    assert logs[1].tokens == logs[0].tokens
    assert logs[1].last_loss == pytest.approx(logs[0].last_loss, abs=1e-3)
    torch.testing.assert_close(weights[1], weights[0], atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("channels", [(name,) for name in CHANNELS], ids=lambda names: names[0])
def test_a_whole_study_agrees(channels: Sequence[str], tmp_path: Path) -> None:
    tables = [scores(tmp_path / device, channels, device=device) for device in ON]
    names = ["teacher", "model_kind", "recipe", "seed", "audit", "endpoint", "item"]
    on_cpu, on_gpu = (rows.set_index(names)["value"].sort_index() for rows in tables)
    np.testing.assert_allclose(on_gpu.to_numpy(), on_cpu.to_numpy(), atol=1e-2)


def test_two_workers_share_a_gpu(tmp_path: Path) -> None:
    executor = {"kind": "local", "workers": 2}
    rows = scores(tmp_path / "two", ("kd",), device="cuda", executor=executor)
    assert not rows["value"].isna().to_numpy().any()
