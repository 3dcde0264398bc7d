"""Students kept on the way: the finished one is the same, and each is a model of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_world import World

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model

TRAINING: dict[str, Any] = {
    "steps": 4,
    "batch": 4,
    "lr": 1e-2,
    "max_length": 64,
    "lora": {"rank": 2, "alpha": 4},
}
FULL = TRAINING | {"lora": None}
KD = {"kind": "logit_kd", "top_k": 8}
RECIPES: dict[str, dict[str, Any]] = {
    "sft": {"channel": {"kind": "sft"}},
    "logit_kd": {"channel": KD},
    "all weights": {"channel": KD | {"divergence": "js"}, "training": FULL},
    "on_policy": {"channel": {"kind": "on_policy", "lmbda": 0.5}},
    "dpo": {"channel": {"kind": "dpo"}},
    "prefix": {"channel": {"kind": "prefix", "tokens": 4, "top_k": 8}, "training": FULL},
    "uld": {"channel": {"kind": "uld", "top_k": 8}, "student": "family"},
    "terse": {"channel": KD, "without_scratchpad": {"opens": "went", "closes": "then"}},
}


@pytest.mark.parametrize("name", RECIPES)
def test_marks_leave_the_finished_student_as_it_was(fresh: Callable[[], World], name: str) -> None:
    world = fresh()
    recipe = {"training": TRAINING} | RECIPES[name]
    plain, _ = world.train_student(recipe)
    marked, _ = world.train_student(
        recipe | {"training": recipe["training"] | {"checkpoints": [1, 3]}}
    )
    assert plain.train.content_key != marked.train.content_key
    one, other = (world.store.path("student", cell.train.content_key) for cell in (plain, marked))
    files = sorted(path.name for path in (one / "model").iterdir())
    (weights,) = (file for file in files if file.endswith(".safetensors"))
    assert (one / "model" / weights).read_bytes() == (other / "model" / weights).read_bytes()
    assert not (one / "marks").exists()
    assert sorted(path.name for path in (other / "marks").iterdir()) == ["1", "3"]
    seen = [load_file(other / "marks" / step / weights) for step in ("1", "3")]
    seen.append(load_file(other / "model" / weights))
    for early, late in itertools.pairwise(seen):
        assert early.keys() == late.keys()
        assert any(not torch.equal(early[name], late[name]) for name in early)
    for step, job in marked.checkpoint_audits:
        checkpoint = resolve_model(str(step), relative_to=other / "marks")
        source = job.inputs["source"]
        assert (source.adapter or source.path) == (checkpoint.adapter or checkpoint.path)
        assert sorted(p.name for p in (other / "marks" / str(step)).iterdir()) == files
        load_model(source)
    keys = [job.inputs["source"].sha256 for _, job in marked.checkpoint_audits]
    assert len({*keys, marked.train.content_key, plain.train.content_key}) == 4
