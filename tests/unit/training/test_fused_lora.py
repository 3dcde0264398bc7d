"""Fused layers give PEFT's and PyTorch's outputs and gradients, and leave the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import build_tiny_model

from doublebind.models import matmul as linear
from doublebind.schema.recipe import Lora
from doublebind.training import loop
from doublebind.training.fused_lora import fuse_lora_layers

IDS = torch.tensor([[7, 8, 9, 10, 11], [12, 13, 14, 15, 16]])


def adapted(kind: str, dtype: torch.dtype) -> Any:
    model = loop.prepare_model(build_tiny_model(kind, 61).to(dtype), Lora(rank=4, alpha=8), 0)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide half of the gradients
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    out = model(input_ids=IDS).logits.float()
    out.log_softmax(-1)[..., 3].sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["llama", "gemma3", "granite"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_outputs_and_gradients_are_pefts(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(kind, dtype)
    want, wanted = step(model)
    with fuse_lora_layers(model) as layers:
        assert layers == 14
        got, gradients = step(model)
    again, _ = step(model)
    assert torch.equal(again, want)  # PEFT's own way is back
    assert float((got - want).norm() / want.norm()) < tolerance
    assert wanted
    for name, grad in wanted.items():
        assert gradients[name].dtype == torch.float32
        assert float((gradients[name] - grad).norm() / grad.norm()) < tolerance, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_linear_layers_give_the_model_s_outputs(dtype: torch.dtype) -> None:
    """With biases and without; the 40 tokens are enough rows for the other library."""
    model, ids = build_tiny_model("llama", 61, attention_bias=True).to(dtype), IDS.repeat(4, 1)
    assert ids.numel() >= linear.MIN_ROWS
    with torch.no_grad():
        want = model(input_ids=ids).logits.float()
        with linear.use_fast_linear(model):
            got = model(input_ids=ids).logits.float()
        assert torch.equal(model(input_ids=ids).logits.float(), want)
    assert float((got - want).norm() / want.norm()) < (1e-5 if dtype == torch.float32 else 0.02)


def test_other_layers_are_left_to_peft() -> None:
    model = adapted("llama", torch.float32)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    layer.lora_dropout["default"] = torch.nn.Dropout(0.5)
    model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.requires_grad_(True)
    with fuse_lora_layers(model) as layers:
        assert layers == 12
        assert "forward" not in vars(layer)
    with fuse_lora_layers(build_tiny_model("llama", 61)) as layers:
        assert layers == 0
