"""Every channel moves a student towards its teacher on prompts that neither was trained on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny_world import World, measure_kl, measure_nats_per_byte, measure_preference_margin

from doublebind.models.load import load_model
from doublebind.training import loop

LORA = {"lora": {"rank": 8, "alpha": 16}}
KD = {"kind": "logit_kd", "top_k": 32}


def trained(steps: int = 20, lr: float = 1e-2, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "batch": 8, "lr": lr, "max_length": 64, **(more or LORA)}


RECIPES: dict[str, dict[str, Any]] = {
    "sft": {"channel": {"kind": "sft"}, "training": trained(30)},
    "logit_kd": {"channel": KD, "training": trained()},
    "sampled": {"channel": KD | {"top_k": 8, "tail_samples": 24}, "training": trained()},
    "reverse": {"channel": KD | {"divergence": "reverse"}, "training": trained()},
    "skew": {"channel": KD | {"divergence": "skew", "skew": 0.1}, "training": trained()},
    "js": {"channel": KD | {"divergence": "js"}, "training": trained()},
    "on_policy": {"channel": {"kind": "on_policy", "lmbda": 1.0}, "training": trained()},
    "mixed": {"channel": {"kind": "on_policy", "lmbda": 0.5}, "training": trained()},
    "dpo": {"channel": {"kind": "dpo", "beta": 0.5, "keep": 0.8}, "training": trained()},
    "prefix": {
        "channel": {"kind": "prefix", "tokens": 16, "top_k": 32},
        "training": trained(60, 5e-2, lora=None),
    },
    "uld": {
        "channel": {"kind": "uld", "top_k": 32},
        "training": trained(20),
        "student": "family",
    },
}


DISTANCES = {"uld": measure_nats_per_byte, "dpo": measure_preference_margin}


def assert_moves(world: World, name: str, **training: Any) -> None:
    """Train by a recipe; the student's distance to the teacher must fall by at least a twentieth.

    `DISTANCES` measure it, in nats.
    """
    recipe = RECIPES[name] | {"training": RECIPES[name]["training"] | training}
    _, source = world.train_student(recipe)
    teacher, start = world.open_model("suspect"), world.open_model(recipe.get("student", "m0"))
    if name == "prefix":  # starts from text, which alone changes the distance
        still = recipe["training"] | {"steps": 1, "lr": 1e-30}
        start = load_model(world.train_student(recipe | {"training": still})[1])
    distance = DISTANCES.get(name, measure_kl)
    before, after = (distance(world, teacher, lm) for lm in (start, load_model(source)))
    print(f"{name}: {before:.3f} before, {after:.3f} after")
    assert after < before - 0.05 * abs(before), f"{name}: {before} before, {after} after"


@pytest.mark.parametrize("name", RECIPES)
def test_a_channel_moves_its_student_towards_the_teacher(world: World, name: str) -> None:
    assert_moves(world, name)


@pytest.mark.parametrize("name", RECIPES)
def test_and_does_not_where_its_gradient_is_zeroed(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_steps = loop.run_optimiser_steps

    def zeroed(model: Any, step: Any, settings: Any, **more: Any) -> loop.TrainLog:
        def idle() -> Any:
            result = step()
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.grad.zero_()
            return result

        return real_steps(model, idle, settings, **more)

    monkeypatch.setattr(loop, "run_optimiser_steps", zeroed)
    with pytest.raises(AssertionError, match=f"{name}: .* before, .* after"):
        assert_moves(world, name, steps=3)  # however many: nothing is learned
