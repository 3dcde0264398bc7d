"""Measures the norm of a weight update, and scales an update to the norm of another."""

from __future__ import annotations

import math
from typing import Any

from doublebind.schema.errors import ModelError

MAX_SCALE_FACTOR = 4.0
"""Largest factor by which an update is scaled, up or down."""


def measure_update_norm(model: Any, base: Any) -> float:
    """Return the Frobenius norm of the difference of the weights, adapters of any kind merged.

    Tensors are compared by name, one at a time; a tied one counts once.

    Raises:
        ModelError: If a tensor is in one model only, has another shape or cannot be merged; names
            the first.
    """
    import torch

    from doublebind.models.effective_weights import list_effective_weights

    after, before = list_effective_weights(model), list_effective_weights(base)
    if alone := sorted(after.keys() ^ before.keys()):
        raise ModelError(f"{alone[0]} is in one of the two models only")
    pairs = {(after[name].identity, before[name].identity): name for name in reversed(after)}
    squares: list[float] = []
    with torch.no_grad():
        for name in reversed(pairs.values()):
            ours, theirs = after[name].read(), before[name].read()
            if ours.shape != theirs.shape:
                raise ModelError(
                    f"{name} has the shape {tuple(ours.shape)} against {tuple(theirs.shape)}"
                )
            # Experts are one tensor of three dimensions: a part at a time saves memory.
            parts = zip(ours, theirs, strict=True) if ours.ndim > 2 else [(ours, theirs)]
            squares += [float((w.float() - v.float()).square().sum()) for w, v in parts]
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

    try:
        target_norm = measure_update_norm(target, base)
    except ModelError as error:
        raise ModelError(
            f"{target_name}: its weights differ in shape from the references' base ({error}), so "
            f"no update norm is defined; use `references: {{kind: equal_kl_surrogates, models: "
            f"[...]}}`"
        ) from None
    norm = measure_update_norm(model, base)
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
