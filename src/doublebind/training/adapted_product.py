"""Linear layers of one input and their adapters, as one matrix product each way.

With W the frozen weights of the layers one below the other, A and B their adapters' factors and s
the scaling, one matrix [[W, s B], [A, 0]] serves both directions:

    output          [x, x A'] [W, s B]'
    input gradient  [g, s g B] [W; A]

Adding s B A to W instead would save the few further columns, and lose the adapter: an update below
half a unit in the last place of W vanishes, and in bfloat16 most of the early ones are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from doublebind.models.matmul import multiply


class AdaptedProduct:
    """Frozen weights and adapters of linear layers that share their input.

    Holds a copy of the weights, which become views of it until `release`: they are not in memory
    twice.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """Copy the weights of `layers`, plain linear layers or LoRA layers around one."""
        self._bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        adapters = [_read_adapter(layer) for layer in layers]
        self._adapters = [(i, *a) for i, a in enumerate(adapters) if a is not None]
        weights = [base.weight for base in self._bases]
        self.n_in, self.outs = weights[0].shape[1], [len(weight) for weight in weights]
        self.n_out, self.rank = sum(self.outs), sum(len(down) for _, down, _, _ in self._adapters)
        self._matrix = weights[0].new_zeros(self.n_out + self.rank, self.n_in + self.rank)
        for weight, rows in zip(weights, _list_slices(self.outs), strict=True):
            self._matrix[rows, : self.n_in] = weight.detach()
            weight.data = self._matrix[rows, : self.n_in]
        biases = [base.bias for base in self._bases]
        self._bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            pairs = zip(biases, weights, strict=True)
            parts = [w.new_zeros(len(w)) if b is None else b.detach() for b, w in pairs]
            self._bias = torch.cat(parts)

    def release(self) -> None:
        """Give the layers weights of their own again."""
        for base in self._bases:
            base.weight.data = base.weight.data.clone(memory_format=torch.contiguous_format)

    @property
    def parameters(self) -> list[Tensor]:
        """A and B of each adapter, in the order of the gradients that `backward` returns."""
        return [factor for _, down, up, _ in self._adapters for factor in (down, up)]

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor, Tensor, float]]:
        """Yield each adapter's columns of the output, its place among the ranks, A, B and s."""
        rows = _list_slices(self.outs)
        places = _list_slices([len(down) for _, down, _, _ in self._adapters])
        for (i, down, up, scaling), place in zip(self._adapters, places, strict=True):
            yield rows[i], place, down, up, scaling

    def _copy_factors(self) -> None:
        """Copy the factors into the matrix: fused optimisers change them without a trace."""
        for rows, place, down, up, scaling in self._blocks():
            ranks = slice(self.n_out + place.start, self.n_out + place.stop)
            columns = slice(self.n_in + place.start, self.n_in + place.stop)
            self._matrix[ranks, : self.n_in] = down.detach()
            torch.mul(up.detach(), scaling, out=self._matrix[rows, columns])

    def make_input(self, rows: int) -> Tensor:
        """Return uninitialised memory for `forward`, [rows, in + rank]; fill the first columns."""
        return self._matrix.new_empty(rows, self.n_in + self.rank)

    def make_gradient(self, rows: int) -> Tensor:
        """Return uninitialised memory for `backward`, [rows, out + rank]."""
        return self._matrix.new_empty(rows, self.n_out + self.rank)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layers' outputs side by side, [rows, out]; fill the last columns."""
        self._copy_factors()
        x, within = inputs[:, : self.n_in], inputs[:, self.n_in :]
        if self.rank:
            within.copy_(x @ self._matrix[self.n_out :, : self.n_in].t())
        out = multiply(inputs, self._matrix[: self.n_out])
        return out if self._bias is None else out.add_(self._bias)

    def backward(
        self, gradient: Tensor, inputs: Tensor, *, of_input: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the input [rows, in], and of `parameters`.

        Args:
            gradient: From `make_gradient`; of the outputs in the first columns.
            inputs: As `forward` left them.
            of_input: Whether the input needs one.
        """
        x, within = inputs[:, : self.n_in], inputs[:, self.n_in :]
        through, of_factors = gradient[:, self.n_out :], []
        for rows, place, _, up, scaling in self._blocks():
            columns = slice(self.n_in + place.start, self.n_in + place.stop)
            through[:, place] = gradient[:, rows] @ self._matrix[rows, columns]
            # The transposed product, grad' within, takes up to fifty times as long on some CPUs.
            of_up = within[:, place].t() @ gradient[:, rows]
            of_factors.append(of_up.t().to(up.dtype, memory_format=torch.contiguous_format))
            of_factors[-1].mul_(scaling)
        of_x = multiply(gradient, self._matrix[:, : self.n_in].t()) if of_input else None
        if not self.rank:
            return of_x, []
        of_downs = through.t() @ x
        grads = [
            each
            for (_, place, down, _, _), of_up in zip(self._blocks(), of_factors, strict=True)
            for each in (of_downs[place].to(down.dtype), of_up)
        ]
        return of_x, grads


def _list_slices(sizes: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _read_adapter(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    if not hasattr(layer, "base_layer"):
        return None
    name = layer.active_adapters[0]
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
