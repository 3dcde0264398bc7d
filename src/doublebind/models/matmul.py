"""Matrix products with a layer's weights, by oneDNN where it is faster than MKL.

PyTorch computes float32 products on CPU by MKL, at less than half of oneDNN's speed on processors
that are not Intel's. Both are deterministic; their last bits differ.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MIN_ROWS = 32
"""With fewer rows the layout of the weights decides, and MKL is as fast."""


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W', [rows, out], of `x` [rows, in] and `weight` [out, in]; not differentiable."""
    on_cpu = x.dtype == torch.float32 and x.device.type == "cpu"
    # oneDNN takes a thousand times as long where the rows of the weights stand apart in memory.
    is_dense = weight.is_contiguous() or weight.t().is_contiguous()
    if on_cpu and is_dense and len(x) >= MIN_ROWS and _HAS_ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.t()


@contextlib.contextmanager
def use_fast_linear(model: Any) -> Iterator[None]:
    """Run the plain linear layers of `model` by `multiply` within the context; no gradients."""
    layers: list[Any] = [m for m in model.modules() if type(m) is torch.nn.Linear]
    for layer in layers:
        layer.forward = functools.partial(_forward_linear, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the method of the class is visible again


def _forward_linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    out = multiply(x.flatten(0, -2), layer.weight)
    if layer.bias is not None:
        out += layer.bias
    return out.view(*x.shape[:-1], -1)


def _probe_onednn() -> bool:
    try:
        eye: Any = torch.eye(2)
        done = torch.ops.mkldnn._linear_pointwise(eye, eye, None, "none", [], "")
        return torch.backends.mkldnn.is_available() and torch.equal(done, eye)
    except (AttributeError, RuntimeError):
        return False


_HAS_ONEDNN = _probe_onednn()
