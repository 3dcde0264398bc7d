"""A study on a GPU does what it does on a CPU, and nothing of it stays behind on the CPU.

Without a GPU the device is `tests.pretend`'s, which computes on the CPU and refuses what a GPU
would refuse. `tests/gpu` asks a real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.pretend import DEVICE, FakeGpuMode, fake_gpu
from tests.tiny_models import build_tiny_model, build_word_tokenizer
from tests.tiny_study import write_study

from doublebind.execution import device as devices
from doublebind.models import load as loading
from doublebind.models import teacher_cache
from doublebind.models.load import LM
from doublebind.models.sample import CHECK_EVERY, sample
from doublebind.pipeline import run as pipeline
from doublebind.schema.content import Message
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Lora, Training
from doublebind.training import batch, loop
from doublebind.training.batch import Example

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)
PROMPTS = {"policy": "auditability_preserving", "n": 4, "max_tokens": 4}
TRAINING = {"steps": 2, "batch": 2, "lr": 0.01, "lora": {"rank": 4, "alpha": 8}}
WHOLE = TRAINING | {"lora": None}
KD = {"kind": "logit_kd", "top_k": 8}
CHANNELS: dict[str, dict[str, Any]] = {
    "sft": {"channel": {"kind": "sft"}, "training": WHOLE},
    "kd": {"channel": KD | {"tail_samples": 4}},
    "js": {"channel": KD | {"divergence": "js"}},
    "own": {"channel": {"kind": "on_policy", "lmbda": 0.5}},
    "dpo": {"channel": {"kind": "dpo"}},
    "prefix": {"channel": {"kind": "prefix", "tokens": 4}, "training": WHOLE},
    "uld": {"channel": {"kind": "uld", "top_k": 8}},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpuMode]:
    """A GPU that pretends to be one."""
    with fake_gpu() as device:
        here = torch.device("cpu")
        monkeypatch.setattr(loading, "select_device", lambda on: DEVICE if on == "cuda" else here)
        monkeypatch.setattr(devices, "check_gpus_available", lambda *_: None)
        monkeypatch.setattr(loop, "save_model", _saved_from_the_cpu(loop.save_model))
        yield device


def _saved_from_the_cpu(honest: Any) -> Any:
    """Writing files asks for a tensor's memory, of which this device has none."""

    def save(model: Any, *rest: Any, **more: Any) -> None:
        device = model.device
        honest(model.to("cpu"), *rest, **more)
        model.to(device)

    return save


def lm() -> LM:
    tokenizer = build_word_tokenizer()
    return LM(build_tiny_model("llama", len(tokenizer)), tokenizer, SOURCE)


def examples(n: int = 8) -> list[Example]:
    rng = np.random.default_rng(0)
    sequences = (tuple(rng.integers(5, 60, size=length).tolist()) for length in range(6, 6 + n))
    return [Example(ids, 3) for ids in sequences]


# --- a whole study -------------------------------------------------------------------------------


def scores(folder: Path, channels: Sequence[str], **changes: Any) -> pd.DataFrame:
    """Return the scores of a tiny study in which every one of `channels` has a student."""
    folder.mkdir()
    recipes = [
        {"name": name, "prompts": PROMPTS, "training": TRAINING} | CHANNELS[name]
        for name in channels
    ]
    settings = {"recipes": recipes, "audits": ["behaviour", "goals"]}
    study = write_study(folder, references=1, **settings, **changes)
    run = pipeline.run(study, folder / "run", store=folder / "store")
    return pd.read_parquet(run.path / "scores.parquet")


@pytest.mark.parametrize(
    "channels",
    [
        pytest.param(("kd",), id="one"),
        pytest.param((*CHANNELS,), id="every", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(900)
def test_a_whole_study_gives_on_a_gpu_what_it_gives_on_a_cpu(
    channels: Sequence[str], tmp_path: Path, gpu: FakeGpuMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a vocabulary of a real size: the loss head, not autograd, forms gradients.
    monkeypatch.setattr(loop, "SMALL_VOCAB", 0)
    monkeypatch.setattr(teacher_cache, "SMALL_VOCAB", 0)
    tables = [scores(tmp_path / on, channels, device=on) for on in ("cpu", "cuda")]
    names = ["teacher", "model_kind", "recipe", "seed", "audit", "endpoint", "item"]
    on_cpu, on_gpu = (rows.set_index(names)["value"].sort_index() for rows in tables)
    assert gpu.reads.total() > 0
    assert len(on_cpu) == len(on_gpu) > 30
    np.testing.assert_allclose(on_gpu.to_numpy(), on_cpu.to_numpy(), atol=1e-3)


# --- what stays behind ---------------------------------------------------------------------------


def test_noise_left_on_the_cpu_is_found(
    tmp_path: Path, gpu: FakeGpuMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = lm()
    on_gpu.model.to(DEVICE)
    teacher_cache.write_targets(tmp_path / "whole", on_gpu, examples(), 4, tail_samples=3)
    move_to_device = teacher_cache.move_to_device
    monkeypatch.setattr(  # the bug that was there: all is moved but what the tail is drawn by
        teacher_cache,
        "move_to_device",
        lambda host, device: host if host.dtype == torch.float64 else move_to_device(host, device),
    )
    with pytest.raises(RuntimeError, match="a tensor of the CPU"):
        teacher_cache.write_targets(tmp_path / "broken", on_gpu, examples(), 4, tail_samples=3)


def test_a_batch_left_on_the_cpu_is_found(
    gpu: FakeGpuMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "move_to_device", lambda host, device: host)
    with pytest.raises(RuntimeError, match="a tensor of the CPU"):
        fitted(steps=1)


# --- how often the host waits --------------------------------------------------------------------


def fitted(steps: int) -> None:
    """Train adapters on the device for a while."""
    on_gpu = lm()
    model = loop.prepare_model(on_gpu.model.to(DEVICE), Lora(rank=4, alpha=8), 0)
    settings = Training(steps=steps, batch=4, lr=1e-3)
    loop.train(model, loop.TrainingSet(examples()), settings=settings, seed=0)


def reads(gpu: FakeGpuMode, work: Callable[[], object]) -> Counter[str]:
    """Return who read how often from the device meanwhile."""
    before = gpu.reads.copy()
    work()
    return gpu.reads - before


@pytest.mark.parametrize("small", [0, 4096])
def test_training_does_not_wait_for_the_device_at_every_step(
    small: int, gpu: FakeGpuMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SMALL_VOCAB", small)
    few, many = (reads(gpu, lambda n=n: fitted(n)) for n in (2, 12))
    assert few["doublebind"] == many["doublebind"]
    assert many["transformers"] - few["transformers"] <= 10  # its look for packed rows


def test_sampling_looks_at_the_device_once_in_a_while(gpu: FakeGpuMode) -> None:
    on_gpu = lm()
    on_gpu.model.to(DEVICE)
    on_gpu.model.generation_config.suppress_tokens = sorted(on_gpu.end_ids)  # never ends
    prompts = [(Message(role="user", content="the fox went"),)] * 3

    def sample_tokens(tokens: int) -> None:
        keys = [str(i) for i in range(3)]
        answers = sample(on_gpu, prompts, keys=keys, seed=0, max_tokens=tokens, temperature=1.0)
        assert all(len(answer.tokens) == tokens for answer in answers)

    few, many = (reads(gpu, lambda n=n: sample_tokens(n)) for n in (CHECK_EVERY, 3 * CHECK_EVERY))
    assert many["doublebind"] - few["doublebind"] == 2
