"""Triton kernels for the two passes of `head_loss` over a tile of logits.

PyTorch reads and writes a tile eight times between logits and their gradient; these read it twice
and write it once. Tests compare them with the PyTorch path under Triton's interpreter
(`TRITON_INTERPRET=1`); they have not run on a GPU yet.
"""
# Triton is an extra (`gpu`); without it `head_loss` never imports this module.
# pyright: reportMissingImports=false, reportUnknownMemberType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Columns that one program reads: enough to keep its memory busy, few enough for registers."""


@triton.jit
def part_logsumexp_kernel(z, out, columns, stride, parts, BLOCK: tl.constexpr):
    """Write log-sum-exp of one part of one row of `z` to `out` [rows, parts]."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(z + row * stride + at, mask=at < columns, other=-float("inf"))
    highest = tl.max(x, axis=0)
    # If all are -inf, the maximum cannot be subtracted.
    origin = tl.where(highest == -float("inf"), 0.0, highest)
    tl.store(out + row * parts + part, origin + tl.log(tl.sum(tl.exp(x - origin), axis=0)))


@triton.jit
def scaled_softmax_kernel(z, lse, factor, columns, stride, BLOCK: tl.constexpr):
    """Replace one part of one row of `z` by factor exp(z - lse)."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    here = z + row * stride + at
    x = tl.load(here, mask=at < columns, other=-float("inf"))
    p = tl.exp(x - tl.load(lse + row))
    tl.store(here, p * tl.load(factor + row), mask=at < columns)


def logsumexp(z: Tensor) -> Tensor:
    """Return log sum_j exp z_j, [rows], of float32 `z` [rows, columns] with contiguous columns.

    The kernel reduces parts of a row; `torch.logsumexp` reduces the parts.
    """
    rows, columns = z.shape
    parts = triton.cdiv(columns, BLOCK)
    out = torch.empty(rows, parts, device=z.device)
    part_logsumexp_kernel[(rows, parts)](z, out, columns, z.stride(0), parts, BLOCK=BLOCK)  # pyright: ignore
    return torch.logsumexp(out, dim=1)


def scaled_softmax_(z: Tensor, lse: Tensor, factor: Tensor) -> Tensor:
    """Replace `z` [rows, columns], float32, by factor_i exp(z_ij - lse_i); return it.

    Args:
        z: As for `logsumexp`; -inf becomes 0.
        lse: [rows], finite.
        factor: [rows].
    """
    rows, columns = z.shape
    grid = (rows, triton.cdiv(columns, BLOCK))
    scaled_softmax_kernel[grid](  # pyright: ignore
        z, lse.contiguous(), factor.contiguous(), columns, z.stride(0), BLOCK=BLOCK
    )
    return z
