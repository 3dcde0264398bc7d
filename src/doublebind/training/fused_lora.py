"""Fused LoRA layers for training: base and adapter in one autograd operation.

PEFT computes an adapter as six operations, in float32 whatever the base's precision, and saves a
float32 copy of every input for the backward pass. Here base and adapter are one operation in the
base's precision with float32 sums, and only the input itself is saved.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from doublebind.models.matmul import multiply


@contextlib.contextmanager
def fuse_lora_layers(model: Any) -> Iterator[int]:
    """Fuse every plain LoRA layer of `model` within the context; yield their number.

    Other layers (dropout, several adapters, DoRA, a trainable base) are left to PEFT.
    """
    layers = [layer for layer in model.modules() if can_fuse_lora(layer)]
    for layer in layers:
        layer.forward = functools.partial(_fused_forward, layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward  # the method of the class is visible again


def can_fuse_lora(layer: Any) -> bool:
    """Return whether `layer` is one plain LoRA adapter around a frozen linear layer."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.disable_adapters or layer.merged:
        return False
    base, names = layer.base_layer, layer.active_adapters
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and names[0] not in layer.lora_variant
        and type(base) is torch.nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
    )


def _fused_forward(layer: Any, x: Tensor) -> Tensor:
    name, base = layer.active_adapters[0], layer.base_layer
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    out: Any = _FusedLoraFunction.apply(x, base.weight, base.bias, down, up, layer.scaling[name])
    return out


class _FusedLoraFunction(torch.autograd.Function):
    """Compute x W' + bias + s (x A') B', with gradients for x, A and B only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
    ) -> Tensor:
        """Compute the base's output and add the adapter in place."""
        low, high = down.to(x.dtype), up.to(x.dtype)
        rows = x.flatten(0, -2)
        within = multiply(rows, low)
        out = multiply(rows, weight)
        if bias is not None:
            out.add_(bias)
        out.addmm_(within, high.t(), alpha=scaling)
        ctx.save_for_backward(rows, weight, low, high, within)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, down.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Return the gradients of x, A and B; that of the frozen weight is never formed."""
        rows, weight, low, high, within = ctx.saved_tensors
        grad = grad_outputs[0].reshape(len(rows), -1)
        through = multiply(grad, high.t()).mul_(ctx.scaling)
        # The transposed product, grad' within, takes up to fifty times as long on some CPUs.
        of_up = (within.t() @ grad).t().to(ctx.dtype).mul_(ctx.scaling)
        of_down = (through.t() @ rows).to(ctx.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = multiply(grad, weight.t()).addmm_(through, low).view(ctx.shape)
        return of_x, None, None, of_down, of_up, None
