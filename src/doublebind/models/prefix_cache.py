"""Prepends a PEFT prefix to every run of a model's body.

PEFT adds its keys and values in the wrapper's `forward`, but this package runs bodies without
their heads, with its own masks, positions and caches.
"""

from __future__ import annotations

from typing import Any

import torch

from doublebind.models.logits import unwrap_peft


def has_prefix(model: Any) -> bool:
    """Return whether `model` is a PEFT model with a prefix of keys and values."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and str(config.peft_type.value) == "PREFIX_TUNING"


def install_prefix_hook(model: Any) -> None:
    """Prepend the prefix of `model` to every run of its body, at positions 0 to n - 1.

    As in PEFT's own `forward`, the tokens start at position n and attend to the whole prefix.
    Callers pass masks and positions as if there were no prefix; a cache contains it.
    """
    n = int(model.active_peft_config.num_virtual_tokens)

    def before(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        rows, width = ids.shape
        past, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        positions = kwargs.get("position_ids")
        if past is None:
            kwargs["past_key_values"] = model.get_prompt(rows)
            if positions is None:
                positions = torch.arange(width, device=ids.device).expand(rows, width)
        elif positions is None:
            n_cached = past.get_seq_length() - n
            positions = n_cached + torch.arange(width, device=ids.device).expand(rows, width)
        kwargs["position_ids"] = positions + n
        if mask is not None:
            kwargs["attention_mask"] = torch.cat([mask.new_ones(rows, n), mask], dim=1)
        return args, kwargs

    unwrap_peft(model).get_decoder().register_forward_pre_hook(before, with_kwargs=True)
