"""Gated feed-forward layers with their adapters as one autograd operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from doublebind.training import elementwise
from doublebind.training.adapted_product import AdaptedProduct


class GatedLayer:
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, module: Any, activation: str) -> None:
        """Take over the products of `module`."""
        self.inner = AdaptedProduct([module.gate_proj, module.up_proj])
        self.outer = AdaptedProduct([module.down_proj])
        self.activation = activation

    def release(self) -> None:
        """Give the module its weights again."""
        self.inner.release()
        self.outer.release()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output for x [..., width]."""
        out: Any = _GatedFunction.apply(x, self, *self.inner.parameters, *self.outer.parameters)
        return out


class _GatedFunction(torch.autograd.Function):
    """Compute a gated layer, with gradients for x and the adapters only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: GatedLayer, *factors: Tensor) -> Tensor:
        """Save the inputs of both products and the gate's."""
        inner, outer = layer.inner, layer.outer
        rows = x.numel() // inner.n_in
        inputs = inner.make_input(rows)
        inputs[:, : inner.n_in] = x.view(rows, -1)
        up_gate = inner.forward(inputs)
        hidden = outer.make_input(rows)
        elementwise.gate(up_gate, layer.activation, hidden[:, : outer.n_in])
        out = outer.forward(hidden)
        ctx.save_for_backward(inputs, up_gate, hidden)
        ctx.layer = layer
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the gradients of x and of the factors."""
        inputs, up_gate, hidden = ctx.saved_tensors
        inner, outer = ctx.layer.inner, ctx.layer.outer
        (grad,) = grad_outputs
        gradient = outer.make_gradient(len(hidden))
        gradient[:, : outer.n_out] = grad.reshape(len(hidden), -1)
        of_hidden, of_outer = outer.backward(gradient, hidden)
        gradient = inner.make_gradient(len(hidden))
        of_gate = gradient[:, : inner.n_out]
        elementwise.gate_backward(of_hidden, up_gate, ctx.layer.activation, of_gate)
        of_x, of_inner = inner.backward(gradient, inputs, of_input=ctx.needs_input_grad[0])
        of_x = None if of_x is None else of_x.view(grad.shape)
        return of_x, None, *of_inner, *of_outer
