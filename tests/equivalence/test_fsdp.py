"""A student trained in shards over two processes learns what one process would teach it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import save_model

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.recipe import Lora, Training
from doublebind.training import loop
from doublebind.training.batch import Example

ROOT = Path(__file__).parents[2]
STEPS = 6
EXAMPLES = [Example(tuple(5 + (3 * i + j) % 40 for j in range(4 + i % 7)), 2) for i in range(20)]

WORKER = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, {root!r})
from tests.equivalence.test_fsdp import EXAMPLES, attached, settings
from doublebind.training import fsdp
from doublebind.training.loop import TrainingSet

torch.set_num_threads(1)
rank, meeting = int(sys.argv[1]), "file://" + {meeting!r}
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
model, pad = attached(Path({model!r}), {lora})
if {die_at}:
    save_state = fsdp.save_state
    def save_and_die(file, state):
        save_state(file, state)
        if state.steps_done == {die_at}:
            import os
            os._exit(9)
    fsdp.save_state = save_and_die
data = TrainingSet(EXAMPLES, pad_id=pad)
log = fsdp.train_sharded(model, data, settings=settings({lora}), seed=1,
                         state_file=fsdp.StateFile(Path({state_file!r}), 2))
trained = [p for p in model.parameters() if p.requires_grad]
whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trained]
if dist.get_rank() == 0:
    total = sum(float(w.detach().double().abs().sum()) for w in whole)
    Path({out!r}).write_text(json.dumps([*log[:3], log.tokens, total]))
dist.destroy_process_group()
"""


def settings(lora: bool) -> Training:
    shape = Lora(rank=4, alpha=8) if lora else None
    return Training(steps=STEPS, batch=5, lr=0.01, max_length=64, lora=shape)


def attached(folder: Path, lora: bool) -> tuple[Any, int]:
    lm = load_model(resolve_model(str(folder), relative_to=Path()))
    pad = lm.pad_id
    return loop.prepare_model(lm.model, settings(lora).lora, 1), pad


def spread(folder: Path, *, lora: bool, die_at: int = 0) -> int:
    """Train over two processes; return the exit code."""
    code = WORKER.format(
        meeting=str(folder / f"meeting-{die_at}"),  # as studies do; a free port may be taken
        root=str(ROOT),
        model=str(folder / "model"),
        lora=lora,
        die_at=die_at,
        state_file=str(folder / "state.safetensors"),
        out=str(folder / "out.json"),
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(rank)]) for rank in range(2)]
    return max(process.wait(200) for process in processes)


@pytest.mark.parametrize(
    "lora",
    [pytest.param(False, id="all weights", marks=pytest.mark.slow), pytest.param(True, id="lora")],
)
def test_two_processes_lose_what_one_loses_and_go_on_after_dying(
    tmp_path: Path, lora: bool
) -> None:
    save_model(tmp_path / "model")
    model, pad = attached(tmp_path / "model", lora)
    one = loop.train(model, loop.TrainingSet(EXAMPLES, pad_id=pad), settings=settings(lora), seed=1)
    total = sum(
        float(p.detach().double().abs().sum()) for p in model.parameters() if p.requires_grad
    )
    assert spread(tmp_path, lora=lora, die_at=4) == 9
    assert not (tmp_path / "out.json").exists()
    assert spread(tmp_path, lora=lora) == 0
    first, last, mean, tokens, sharded = json.loads((tmp_path / "out.json").read_text())
    assert (first, last, mean) == pytest.approx(
        (one.first_loss, one.last_loss, one.mean_loss), abs=1e-4
    )
    assert tokens == one.tokens
    assert sharded == pytest.approx(total, rel=1e-4)
    assert one.last_loss < one.first_loss - 0.1, "it learned something"
