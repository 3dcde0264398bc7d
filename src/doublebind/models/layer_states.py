"""Reads hidden states after a decoder layer, and adds to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from doublebind.models.logits import unwrap_peft


@contextlib.contextmanager
def add_to_output(layer: Any, vector: Tensor) -> Iterator[None]:
    """Add `vector` to the hidden states that `layer` returns, within the context."""

    def add(module: Any, inputs: Any, out: Any) -> Any:
        states = get_states(out)
        steered = states + vector.to(states.dtype)
        return (steered, *out[1:]) if isinstance(out, tuple) else steered

    hook = layer.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def get_states(out: Any) -> Tensor:
    """Return the hidden states of a decoder layer's output, a tensor or a tuple's first entry."""
    return out[0] if isinstance(out, tuple) else out


def get_layers(model: Any) -> Any:
    """Return the decoder layers of a model, with or without an adapter."""
    return unwrap_peft(model).get_decoder().layers
