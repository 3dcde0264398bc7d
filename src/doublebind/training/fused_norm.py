"""Root mean square norms as one autograd operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from doublebind.training import elementwise


class NormFunction(torch.autograd.Function):
    """Normalise by the root mean square, with a gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Save the input, not what is normalised."""
        out, inverse = elementwise.norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the gradient of x."""
        return elementwise.norm_backward(grad_outputs[0], *ctx.saved_tensors), None, None


def read_norm(module: Any) -> tuple[Tensor, float] | None:
    """Return weight and epsilon of a frozen root mean square norm, or `None` if it is none.

    By class name and attributes; whether it computes what is taken for granted must be probed. The
    weight is float32 whatever the model's precision.
    """
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.requires_grad or not isinstance(eps, float):
        return None
    probe = torch.ones(1, len(weight), dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        scale = type(module).forward(module, probe)[0].float()
        if torch.allclose(scale, weight.float(), rtol=1e-2, atol=1e-3):
            return weight.detach().float(), eps
        if torch.allclose(scale, 1.0 + weight.float(), rtol=1e-2, atol=1e-3):
            return 1.0 + weight.detach().float(), eps
    return None
