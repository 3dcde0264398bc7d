"""Norm, gate, rotation and softmax of a decoder layer with their gradients, without autograd.

In bfloat16 on a CPU each is one compiled function where it can be (`compiled`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from doublebind.training.compiled import as_matrix, find_compiled

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
"""Activations that `gate` knows; the first two are compiled."""


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) * weight in x's precision, and 1 / rms(x), float32 [..., 1].

    Root mean square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).

    Args:
        x: [..., width].
        weight: [width], float32.
        eps: Added to the mean square.
    """
    if (compiled := find_compiled(x)) is not None:
        rows = as_matrix(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        inverse = torch.empty(*x.shape[:-1], 1)
        pointers = (weight.data_ptr(), out.data_ptr(), inverse.data_ptr())
        compiled.norm(rows.data_ptr(), rows.stride(0), *pointers, *rows.shape, eps)
        return out, inverse
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(x * inverse, weight, out=out)
    return out, inverse


def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of x."""
    if (compiled := find_compiled(x)) is not None:
        g, rows = as_matrix(grad), as_matrix(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        matrices = (g.data_ptr(), g.stride(0), rows.data_ptr(), rows.stride(0))
        pointers = (weight.data_ptr(), inverse.data_ptr(), out.data_ptr())
        compiled.norm_backward(*matrices, *pointers, *rows.shape)
        return out
    scaled = grad * weight
    along = torch.linalg.vecdot(scaled.float(), x.float()).unsqueeze(-1)
    along.mul_(inverse).mul_(inverse).mul_(inverse).div_(x.shape[-1])
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.sub(scaled * inverse, x * along, out=out)


def gate(up_gate: Tensor, activation: str, out: Tensor) -> None:
    """Write activation(gate) * up, [rows, width], to `out`.

    Args:
        up_gate: [rows, 2 width]: the gate's columns, then the others.
        activation: One of `ACTIVATIONS`.
        out: [rows, width].
    """
    compiled = find_compiled(out)
    if compiled is not None and activation in ACTIVATIONS[:2]:
        matrices = (up_gate.data_ptr(), up_gate.stride(0), out.data_ptr(), out.stride(0))
        compiled.gate(*matrices, *out.shape, ACTIVATIONS.index(activation))
        return
    opened, up = up_gate.chunk(2, dim=1)
    torch.mul(_activate(opened, activation), up, out=out)


def gate_backward(grad: Tensor, up_gate: Tensor, activation: str, out: Tensor) -> None:
    """Write the gradient of `up_gate` to `out`, [rows, 2 width]; `grad` is overwritten."""
    compiled = find_compiled(out)
    if compiled is not None and activation in ACTIVATIONS[:2]:
        matrices = (each for m in (grad, up_gate, out) for each in (m.data_ptr(), m.stride(0)))
        compiled.gate_backward(*matrices, *grad.shape, ACTIVATIONS.index(activation))
        return
    opened, up = up_gate.chunk(2, dim=1)
    of_opened, of_up = out.chunk(2, dim=1)
    torch.mul(grad, _activate(opened, activation), out=of_up)
    grad.mul_(up)
    if activation == "silu":
        torch.ops.aten.silu_backward.grad_input(grad, opened, grad_input=of_opened)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        torch.ops.aten.gelu_backward.grad_input(
            grad, opened, approximate=approximate, grad_input=of_opened
        )


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(x)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.nn.functional.gelu(x, approximate=approximate)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Replace halves x1, x2 of the last dimension by x1 cos1 - x2 sin1 and x2 cos2 + x1 sin2.

    Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Args:
        x: [tokens, heads, width].
        cos: [tokens, 1, width].
        sin: The same.
    """
    if _rotate_compiled(x, cos, sin, back=False):
        return
    (x1, x2), (cos1, cos2), (sin1, sin2) = (each.chunk(2, dim=-1) for each in (x, cos, sin))
    first = x1.clone()
    x1.mul_(cos1).addcmul_(x2, sin1, value=-1)
    x2.mul_(cos2).addcmul_(first, sin2)


def rotate_backward_(grad: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Replace the gradient of what `rotate_` leaves by that of what it takes."""
    if _rotate_compiled(grad, cos, sin, back=True):
        return
    (g1, g2), (cos1, cos2), (sin1, sin2) = (each.chunk(2, dim=-1) for each in (grad, cos, sin))
    first = g1.clone()
    g1.mul_(cos1).addcmul_(g2, sin2)
    g2.mul_(cos2).addcmul_(first, sin1, value=-1)


def _rotate_compiled(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> bool:
    """Rotate by the compiled function; return whether there is one."""
    compiled = find_compiled(x)
    if compiled is None or cos.dtype != x.dtype or x.stride()[1:] != (x.shape[2], 1):
        return False
    cos, sin = cos.contiguous(), sin.contiguous()
    pointers = (x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr())
    compiled.rotate(*pointers, *x.shape, back)
    return True


def softmax(scores: Tensor, mask: Tensor, window: int | None) -> Tensor:
    """Return the softmax over the last dimension of scores + mask; `scores` is overwritten.

    Args:
        scores: [matrices, width, width], contiguous.
        mask: [width, width], 0 or minus infinity.
        window: What the mask says: a row sees so many columns at most, its own the last; `None`:
            all before it.
    """
    compiled = find_compiled(scores)
    if compiled is not None and scores.shape[-1] % 16 == 0:
        compiled.softmax(scores.data_ptr(), *scores.shape[:2], window or scores.shape[-1])
        return scores
    return torch.softmax(scores.add_(mask), dim=-1)


def softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """Return the gradient of the scores; `grad`, contiguous, may be overwritten."""
    compiled = find_compiled(grad)
    width = grad.shape[-1]
    if compiled is not None and width % 16 == 0:
        pointers = (grad.data_ptr(), probabilities.data_ptr())
        compiled.softmax_backward(*pointers, grad.numel() // width**2, width)
        return grad
    return torch.ops.aten._softmax_backward_data(grad, probabilities, -1, grad.dtype)
