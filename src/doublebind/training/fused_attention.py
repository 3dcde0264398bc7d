"""Attention with rotary positions on short examples as one autograd operation.

PyTorch's fused kernel for CPUs takes twenty times as long in its backward pass as these products do
at a hundred tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.training import elementwise
from doublebind.training.adapted_product import AdaptedProduct
from doublebind.training.fused_norm import read_norm
from doublebind.training.segments import Segments


class Heads(NamedTuple):
    """Shape and settings of an attention layer's heads."""

    queries: int
    keys: int
    width: int
    scaling: float
    window: int | None
    """Keys that a query attends to at most, its own the last; `None`: all before it."""
    norms: tuple[tuple[Tensor, float] | None, tuple[Tensor, float] | None]
    """Weight and epsilon of the norms of queries and keys, where there are any."""


class AttentionLayer:
    """out(attention(rotate(norm(query(x))), rotate(norm(key(x))), value(x)))."""

    def __init__(self, module: Any, heads: Heads) -> None:
        """Take over the products of `module`."""
        self.heads = heads
        self.inner = AdaptedProduct([module.q_proj, module.k_proj, module.v_proj])
        self.outer = AdaptedProduct([module.o_proj])

    def release(self) -> None:
        """Give the module its weights again."""
        self.inner.release()
        self.outer.release()

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
        """Return the output for x [1, tokens, width], each example attending to itself."""
        factors = (*self.inner.parameters, *self.outer.parameters)
        out: Any = _AttentionFunction.apply(
            x, cos[0, :, None], sin[0, :, None], self, segments, *factors
        )
        return out


def read_heads(module: Any) -> Heads | None:
    """Return the settings of an attention layer, or `None` if it lacks one of them.

    By names; whether it computes what is taken for granted must be probed.
    """
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
    if any(not hasattr(module, name) for name in names):
        return None
    if (
        getattr(module, "attn_logit_softcapping", None)
        or getattr(module, "sinks", None) is not None
    ):
        return None
    queries, keys = (
        getattr(getattr(module, name), "out_features", 0) // module.head_dim
        for name in ("q_proj", "k_proj")
    )
    if not keys or queries % keys:
        return None
    norms = []
    for name in ("q_norm", "k_norm"):
        norm = getattr(module, name, None)
        norms.append(None if norm is None else read_norm(norm))
        if norm is not None and norms[-1] is None:
            return None
    window = getattr(module, "sliding_window", None)
    return Heads(
        queries, keys, module.head_dim, float(module.scaling), window, (norms[0], norms[1])
    )


class _AttentionFunction(torch.autograd.Function):
    """Compute an attention layer, with gradients for x and the adapters only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        layer: AttentionLayer,
        segments: Segments,
        *factors: Tensor,
    ) -> Tensor:
        """Save the inputs of all products, the probabilities, and what norms need."""
        heads, tokens = layer.heads, x.shape[1]
        inputs = layer.inner.make_input(tokens)
        inputs[:, : layer.inner.n_in] = x[0]
        vectors = layer.inner.forward(inputs).view(tokens, -1, heads.width)
        normalised = _normalise_heads(vectors, heads)
        elementwise.rotate_(vectors[:, : heads.queries + heads.keys], cos, sin)
        layout = segments.lay_out_heads(heads.queries, heads.keys)
        grids = vectors.view(-1, heads.width).index_select(0, layout.gather)
        query, key, value = _split_grids(grids, heads, segments)
        scores = _multiply(query, key.transpose(1, 2), heads.scaling)
        mask = segments.make_mask(heads.window, x.dtype)
        by_query = scores.view(-1, *mask.shape)
        probabilities = elementwise.softmax(by_query, mask, heads.window).view_as(scores)
        attended = torch.bmm(probabilities, value).view(-1, heads.width)
        hidden = layer.outer.make_input(tokens)
        rows = attended.index_select(0, layout.scatter_outputs).view(tokens, -1)
        hidden[:, : layer.outer.n_in] = rows
        out = layer.outer.forward(hidden)
        ctx.save_for_backward(inputs, grids, probabilities, hidden, cos, sin, *normalised)
        ctx.layer, ctx.segments = layer, segments
        return out.view(1, tokens, -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the gradients of x and of the factors."""
        inputs, grids, probabilities, hidden, cos, sin, *of_norms = ctx.saved_tensors
        layer, segments, heads = ctx.layer, ctx.segments, ctx.layer.heads
        tokens, layout = len(hidden), segments.lay_out_heads(heads.queries, heads.keys)
        gradient = layer.outer.make_gradient(tokens)
        gradient[:, : layer.outer.n_out] = grad_outputs[0].reshape(tokens, -1)
        of_rows, of_outer = layer.outer.backward(gradient, hidden)
        query, key, value = _split_grids(grids, heads, segments)
        of_attended = of_rows.view(-1, heads.width).index_select(0, layout.gather_outputs)
        of_attended = of_attended.view(query.shape)
        of_grids = torch.empty_like(grids)
        of_query, of_key, of_value = _split_grids(of_grids, heads, segments)
        torch.bmm(probabilities.transpose(1, 2), of_attended, out=of_value)
        of_scores = torch.bmm(of_attended, value.transpose(1, 2))
        of_scores = elementwise.softmax_backward(of_scores, probabilities)
        _multiply(of_scores, key, heads.scaling, of_query)
        _multiply(of_scores.transpose(1, 2), query, heads.scaling, of_key)
        vectors = of_grids.index_select(0, layout.scatter).view(tokens, -1, heads.width)
        elementwise.rotate_backward_(vectors[:, : heads.queries + heads.keys], cos, sin)
        _normalise_heads_backward(vectors, heads, of_norms)
        gradient = layer.inner.make_gradient(tokens)
        gradient[:, : layer.inner.n_out] = vectors.view(tokens, -1)
        of_x, of_inner = layer.inner.backward(gradient, inputs, of_input=ctx.needs_input_grad[0])
        of_x = None if of_x is None else of_x.view(1, tokens, -1)
        return of_x, None, None, None, None, *of_inner, *of_outer


def _split_grids(grids: Tensor, heads: Heads, segments: Segments) -> tuple[Tensor, ...]:
    """Return views of the queries of each group, the keys and the values.

    [examples x key heads, queries of a group x width, head width], and [examples x key heads,
    width, head width] twice.
    """
    rows = segments.n * segments.width
    parts = grids.split([rows * n for n in (heads.queries, heads.keys, heads.keys)])
    return tuple(part.view(segments.n * heads.keys, -1, heads.width) for part in parts)


def _multiply(a: Tensor, b: Tensor, scaling: float, out: Tensor | None = None) -> Tensor:
    """Return the batched product of `a` and `b`, times `scaling`."""
    out = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    return torch.baddbmm(out, a, b, beta=0, alpha=scaling, out=out)


def _list_normed(vectors: Tensor, heads: Heads) -> list[tuple[Tensor, Tensor, float]]:
    """Return each normalised part of the heads' vectors, with its norm's weight and epsilon."""
    parts = (vectors[:, : heads.queries], vectors[:, heads.queries :][:, : heads.keys])
    return [(p, *norm) for p, norm in zip(parts, heads.norms, strict=True) if norm is not None]


def _normalise_heads(vectors: Tensor, heads: Heads) -> list[Tensor]:
    """Normalise queries and keys in place; return what their gradients need."""
    saved = []
    for part, weight, eps in _list_normed(vectors, heads):
        before = part.clone(memory_format=torch.contiguous_format)
        after, inverse = elementwise.norm(before, weight, eps)
        part.copy_(after)
        saved += [before, inverse]
    return saved


def _normalise_heads_backward(gradient: Tensor, heads: Heads, saved: list[Tensor]) -> None:
    """Replace the gradient of what `_normalise_heads` leaves by that of what it takes."""
    parts = _list_normed(gradient, heads)
    for (part, weight, _), before, inverse in zip(parts, saved[::2], saved[1::2], strict=True):
        part.copy_(elementwise.norm_backward(part, before, weight, inverse))
