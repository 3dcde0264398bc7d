"""Fused layers give a model's own hidden states and gradients, or are left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import build_tiny_model
from transformers import (
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from doublebind.models.logits import unwrap_peft
from doublebind.schema.recipe import Lora
from doublebind.training import fused_body, loop
from doublebind.training.batch import Example, collate
from doublebind.training.fused_body import compute_states, fuse_body

VOCAB = 61
LENGTHS = (9, 21, 16, 3, 30)
QWEN = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "smollm3": SmolLM3Config}


def build(kind: str, **changes: Any) -> Any:
    if kind not in QWEN:
        return build_tiny_model(kind, VOCAB, **changes)
    config = QWEN[kind](
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.3,
        pad_token_id=0, bos_token_id=None, eos_token_id=2, **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def adapt(model: Any) -> Any:
    model = loop.prepare_model(model, Lora(rank=4, alpha=8), 0)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half of the gradients
            torch.nn.init.normal_(weight, std=0.1)
        elif "norm" in name or name.endswith("bias"):  # ones at first, likewise
            weight.data += 0.3 * torch.randn_like(weight)
    return model


def examples() -> list[Example]:
    draw = torch.Generator().manual_seed(3)
    return [
        Example(tuple(torch.randint(3, VOCAB, (n,), generator=draw).tolist()), n // 3 or 1)
        for n in LENGTHS
    ]


def run(model: Any, *, pack: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """States of supervised tokens in the order of the examples, and gradients."""
    model.zero_grad()
    states = compute_states(model, collate(examples(), 0, pack=pack))
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(4))
    (states.float() * weights).sum().backward()
    return states.detach().float(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


def is_fused(model: Any) -> bool:
    return getattr(unwrap_peft(model).get_decoder(), "_takes_segments", False)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "num_key_value_heads": 4}),
        ("gemma3", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("qwen3", {}),
    ],
)
def test_states_and_gradients_are_those_of_plain_layers(
    kind: str, changes: dict[str, Any], pack: bool
) -> None:
    """Windows are shorter than the examples; norms inside and outside of attention, biases."""
    model = adapt(build(kind, **changes))
    want, wanted = run(model)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    with fuse_body(model):
        assert is_fused(model)
        got, gradients = run(model, pack=pack)
        again = run(model)[0]
    assert torch.equal(run(model)[0], want)  # the layers are as they were
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name])
        assert weight.is_contiguous()
    assert distance(want, got) < 1e-5
    assert distance(want, again) < 1e-5
    for name, grad in wanted.items():
        assert gradients[name].dtype == torch.float32
        assert distance(grad, gradients[name]) < 1e-5, name


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3"])
def test_bfloat16_is_as_near_to_float32_as_plain_layers_are(kind: str) -> None:
    model = adapt(build(kind).to(torch.bfloat16))
    plain, plain_gradients = run(model)
    with fuse_body(model):
        assert is_fused(model)
        fused, gradients = run(model)
    exact, exact_gradients = run(model.float())
    assert distance(exact, fused) < 1.1 * distance(exact, plain)
    flat, flat_plain, flat_exact = (
        torch.cat([each[name].flatten() for name in exact_gradients])
        for each in (gradients, plain_gradients, exact_gradients)
    )
    assert distance(flat_exact, flat) < 1.1 * distance(flat_exact, flat_plain)


def test_factors_that_an_optimiser_changed_are_used() -> None:
    model = adapt(build("llama"))
    with fuse_body(model):
        before, _ = run(model)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 0.1, fused=True
        )
        optimizer.step()
        got, _ = run(model)
    want, _ = run(model)
    assert distance(before, want) > 0.01
    assert distance(want, got) < 1e-5


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),  # another attention, layer norms
        ("smollm3", {}),  # one layer in four has no positions
    ],
)
def test_other_formulas_are_left_alone(kind: str, changes: dict[str, Any]) -> None:
    model = adapt(build(kind, **changes))
    want, wanted = run(model)
    with fuse_body(model):
        assert not is_fused(model)
        got, gradients = run(model)
    assert distance(want, got) < 1e-5
    assert all(distance(grad, gradients[name]) < 1e-5 for name, grad in wanted.items())


def test_a_body_that_drops_its_arguments_is_left_alone() -> None:
    model = adapt(build("llama"))
    body = unwrap_peft(model).get_decoder()
    own = type(body).forward
    body.forward = lambda *args, segments=None, **kwargs: own(body, *args, **kwargs)
    with fuse_body(model):
        assert not is_fused(model)


def test_long_examples_take_the_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt(build("llama"))
    want, wanted = run(model)
    monkeypatch.setitem(fused_body.MAX_LENGTHS, torch.float32, 20)
    with fuse_body(model):
        monkeypatch.setattr(fused_body, "Segments", None)  # would be called otherwise
        got, gradients = run(model)
    assert distance(want, got) < 1e-5
    assert all(distance(grad, gradients[name]) < 1e-5 for name, grad in wanted.items())
