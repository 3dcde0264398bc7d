"""Runs the decoder layers of a model with adapters as few fused operations while it trains.

Examples stand one behind the other in a row, without padding. A layer is fused if it computes the
formula of Llama's, Qwen's or Gemma's layers, which is probed; others are left as they are.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from doublebind.models.logits import run_body, unwrap_peft
from doublebind.training.batch import Batch, Example, collate
from doublebind.training.elementwise import ACTIVATIONS
from doublebind.training.fused_attention import AttentionLayer, Heads, read_heads
from doublebind.training.fused_lora import can_fuse_lora
from doublebind.training.fused_mlp import GatedLayer
from doublebind.training.fused_norm import NormFunction, read_norm
from doublebind.training.segments import Segments

MAX_LENGTHS = {torch.bfloat16: 384, torch.float32: 128}
"""Longest example whose attention is fused: beyond it PyTorch's kernel is as fast
(`bench/attention.py`), and does not hold scores of [examples, heads, length, length]."""
_PROBE_TOLERANCE = 1e-4
_MARK = "_takes_segments"


@contextlib.contextmanager
def fuse_body(model: Any) -> Iterator[None]:
    """Fuse the layers of `model` within the context, where that is probed to change nothing."""
    inner = unwrap_peft(model)
    body, layers = inner.get_decoder(), []
    restores: list[Callable[[], object]] = []
    try:
        for module in body.modules():
            if (norm := _probe_norm(module)) is not None:
                _replace(module, functools.partial(_run_norm, *norm), restores)
            elif (activation := _probe_gated(module)) is not None:
                layers.append(GatedLayer(module, activation))
                _replace(module, functools.partial(_run_gated, module, layers[-1]), restores)
        attentions = [(m, _probe_attention(m)) for m in body.modules() if hasattr(m, "q_proj")]
        fitting = [(module, heads) for module, heads in attentions if heads is not None]
        if attentions and len(fitting) == len(attentions):
            for module, heads in fitting:
                layers.append(AttentionLayer(module, heads))
                run = functools.partial(_run_attention, module, layers[-1])
                _replace(module, run, restores)
            setattr(body, _MARK, True)
            restores.append(lambda: vars(body).pop(_MARK, None))
            if not _probe_body(model):
                delattr(body, _MARK)
        yield
    finally:
        for restore in restores:
            restore()
        for layer in layers:
            layer.release()


def compute_states(model: Any, batch: Batch) -> Tensor:
    """Return the hidden states [supervised, width] that predict the supervised tokens."""
    body = unwrap_peft(model).get_decoder()
    longest = MAX_LENGTHS.get(unwrap_peft(model).dtype, 0)
    if not getattr(body, _MARK, False) or max(batch.lengths) > longest:
        states = run_body(model, batch.ids, position_ids=batch.positions, use_cache=False)
        return states.last_hidden_state.flatten(0, 1).index_select(0, batch.prediction_positions)
    segments = Segments(batch)
    states = run_body(
        model,
        segments.ids,
        position_ids=segments.positions,
        # Not read, but models make no mask of their own where one is given.
        attention_mask=batch.ids.new_ones(1, 1, 1, 1),
        use_cache=False,
        segments=segments,
    ).last_hidden_state[0]
    return states.index_select(0, segments.prediction_positions)


def _replace(module: Any, forward: Any, restores: list[Callable[[], object]]) -> None:
    module.forward = forward
    restores.append(lambda: vars(module).pop("forward"))


def _run_norm(weight: Tensor, eps: float, x: Tensor) -> Tensor:
    out: Any = NormFunction.apply(x, weight, eps)
    return out


def _run_gated(module: Any, layer: GatedLayer, x: Tensor) -> Tensor:
    """Run the fused layer where gradients are wanted: it copies the adapter's factors each time."""
    return layer(x) if torch.is_grad_enabled() else type(module).forward(module, x)


def _run_attention(
    module: Any,
    layer: AttentionLayer,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    *args: Any,
    segments: Segments | None = None,
    **kwargs: Any,
) -> Any:
    """Run the fused layer on segments, and the module's own way on anything else."""
    if segments is None:
        own = type(module).forward
        return own(module, hidden_states, position_embeddings, *args, **kwargs)
    cos, sin = position_embeddings
    return layer(hidden_states, cos, sin, segments), None


# --- probes --------------------------------------------------------------------------------------


def _probe_norm(module: Any) -> tuple[Tensor, float] | None:
    found = read_norm(module)
    if found is None:
        return None
    x = _draw(3, len(found[0]))
    weight, eps = found
    with torch.no_grad():
        same = _is_close(_as_float(module)(x), _run_norm(weight, eps, x))
    return found if same else None


def _probe_gated(module: Any) -> str | None:
    """Return the activation of a gated layer that can be fused, else `None`."""
    names = ("gate_proj", "up_proj", "down_proj")
    if not all(_is_product(getattr(module, name, None)) for name in names):
        return None
    plain = _as_float(module)
    x = _draw(3, module.gate_proj.in_features)
    with torch.no_grad():
        wanted = plain(x)
        for activation in ACTIVATIONS:
            if _is_close(wanted, GatedLayer(copy.deepcopy(plain), activation)(x)):
                return activation
    return None


def _probe_attention(module: Any) -> Heads | None:
    """Return the settings of an attention layer that can be fused, else `None`."""
    heads = read_heads(module)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if heads is None or not all(_is_product(getattr(module, name)) for name in names):
        return None
    segments = Segments(collate([Example((0,) * 7, 1), Example((0,) * 5, 1)], 0, pack=False))
    tokens = segments.n_tokens
    x = _draw(1, tokens, module.q_proj.in_features)
    half = _draw(1, tokens, heads.width // 2)
    angles = torch.cat([half, half], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    plain = _as_float(module)
    with torch.no_grad():
        try:
            alone = plain(x[:, 7:12], (cos[:, 7:12], sin[:, 7:12]), _causal(5, heads.window))[0]
            layer = AttentionLayer(plain, heads)
            together = layer(x, cos, sin, segments)[:, 7:12]
        except (TypeError, RuntimeError, ValueError):
            return None
    return heads if _is_close(alone, together) else None


def _causal(n: int, window: int | None) -> Tensor:
    place = torch.arange(n)
    seen = place[:, None] >= place
    if window is not None:
        seen &= place[:, None] - place < window
    return torch.zeros(1, 1, n, n).masked_fill_(~seen, -torch.inf)


@torch.no_grad()
def _probe_body(model: Any) -> bool:
    """Return whether a model gives two examples the states in segments that it gives them alone."""
    inner = unwrap_peft(model)
    n, device = int(inner.get_input_embeddings().weight.shape[0]), inner.device
    examples = [
        Example(tuple(i % n for i in range(1, 40, 2)), 1),
        Example((5 % n, 6 % n, 7 % n), 1),
    ]
    batch = collate(examples, 0, pack=False).to(device)
    body = inner.get_decoder()
    try:
        together = compute_states(model, batch)
        delattr(body, _MARK)
        apart = compute_states(model, batch)
    except (TypeError, RuntimeError, ValueError, KeyError):
        return False
    finally:
        setattr(body, _MARK, True)
    tolerance = 1e-4 if inner.dtype == torch.float32 else 5e-2
    return _is_close(apart.float(), together.float(), tolerance)


def _is_product(layer: Any) -> bool:
    """Return whether `layer` is a frozen linear layer, alone or with a plain adapter."""
    if type(layer) is torch.nn.Linear:
        return not any(part.requires_grad for part in layer.parameters())
    return layer is not None and can_fuse_lora(layer)


def _as_float(module: Any) -> Any:
    return copy.deepcopy(module).float().cpu()


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _is_close(wanted: Tensor, got: Tensor, tolerance: float = _PROBE_TOLERANCE) -> bool:
    return wanted.shape == got.shape and float((wanted - got).norm() / wanted.norm()) < tolerance
