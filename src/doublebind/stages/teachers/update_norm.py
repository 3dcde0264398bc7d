"""Measures the norm of a weight update, and scales an update to the norm of another."""

from __future__ import annotations

import math
from typing import Any

from doublebind.schema.errors import ModelError

MAX_SCALE_FACTOR = 4.0
"""Largest factor by which an update is scaled, up or down."""


def measure_update_norm(model: Any, base: Any) -> float | None:
    """Return the Frobenius norm of the weight difference, or `None` where shapes differ."""
    import torch

    from doublebind.models.load import merge_adapter_weights

    after = merge_adapter_weights(model)
    before = merge_adapter_weights(base)
    if {n: w.shape for n, w in after.items()} != {n: w.shape for n, w in before.items()}:
        return None
    with torch.no_grad():
        squares = (float((w.float() - before[n].float()).square().sum()) for n, w in after.items())
        return math.sqrt(math.fsum(squares))


def scale_update(model: Any, base: Any, target: Any, target_name: str) -> float:
    """Scale the update of `model` from `base` to the norm of `target`'s; return the factor.

    The direction of the update stays; of a low-rank update the second factor is scaled.

    Args:
        model: The trained teacher; changed in place.
        base: The model that it was trained from.
        target: The model whose update norm it takes.
        target_name: Name of `target` in errors.

    Raises:
        ModelError: If a norm is undefined or zero, or the factor is beyond `MAX_SCALE_FACTOR`.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    from doublebind.models.load import merge_adapter_weights
    from doublebind.models.logits import unwrap_peft

    target_norm = measure_update_norm(target, base)
    norm = measure_update_norm(model, base)
    if target_norm is None:
        raise ModelError(
            f"{target_name}: its weights differ in shape from the references' base, so no update "
            f"norm is defined; use `references: {{kind: equal_kl_surrogates, models: [...]}}`"
        )
    factor = target_norm / norm if norm else math.inf
    if not 1 / MAX_SCALE_FACTOR <= factor <= MAX_SCALE_FACTOR:
        raise ModelError(
            f"{target_name}: its update norm is {target_norm:.3g}, the template's {norm:.3g}; "
            f"change the template's steps or lr until they are within a factor of "
            f"{MAX_SCALE_FACTOR:g}"
        )
    inner = unwrap_peft(model)
    layers: list[Any] = [module for module in inner.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        for layer in layers:
            for name in layer.active_adapters:
                layer.lora_B[name].weight.mul_(factor)
        if not layers:
            start = merge_adapter_weights(base)
            for name, weight in inner.named_parameters():
                weight.copy_(start[name] + factor * (weight - start[name]))
    return factor
