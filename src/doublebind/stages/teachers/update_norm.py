"""Makes references like a suspect in all but what is planted, and says what that assumes.

Knows specs, traits and a model's size of update. Does not know scores: no reference is chosen or
left out for one.
"""

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

    ours, theirs = merge_adapter_weights(model), merge_adapter_weights(base)
    if {n: w.shape for n, w in ours.items()} != {n: w.shape for n, w in theirs.items()}:
        return None
    with torch.no_grad():
        squares = (float((w.float() - theirs[n].float()).square().sum()) for n, w in ours.items())
        return math.sqrt(math.fsum(squares))


def scale_update(model: Any, base: Any, target: Any, target_name: str) -> float:
    """Scale the update of `model` against `base` to the norm of that of `like`; return the factor.

    The direction of the update stays; a low-rank one is scaled in its second factor.

    Args:
        model: The trained teacher; changed in place.
        base: What it was trained from.
        like: The model whose size of update it takes.
        what: Name of `like` in errors.

    Raises:
        ModelError: If a norm is not defined or zero, or the factor lies beyond `MOST`.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    from doublebind.models.load import merge_adapter_weights
    from doublebind.models.logits import unwrap_peft

    wanted, have = measure_update_norm(target, base), measure_update_norm(model, base)
    if wanted is None:
        raise ModelError(
            f"{target_name}: its weights differ in shape from the references' base, so no update norm is "
            f"defined; use `references: {{kind: equal_kl_surrogates, models: [...]}}`"
        )
    factor = wanted / have if have else math.inf
    if not 1 / MAX_SCALE_FACTOR <= factor <= MAX_SCALE_FACTOR:
        raise ModelError(
            f"{target_name}: its update norm is {wanted:.3g}, the template's {have:.3g}; change the "
            f"template's steps or lr until they are within a factor of {MAX_SCALE_FACTOR:g}"
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
