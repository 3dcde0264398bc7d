"""Examples one behind the other in a single row, and the grid in which attention runs on them.

Everything but attention works on single tokens: there padding would be work for nothing. Attention
runs on a grid of [examples, longest], whose padding costs little.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.training.batch import Batch

TOKEN_MULTIPLE = 64
"""Tokens of a row are rounded up to a multiple, and one is always padding."""
WIDTH_MULTIPLE = 16
"""The grid's width likewise: shapes then repeat, and with them the kernels made for a shape."""


class HeadLayout(NamedTuple):
    """Where each head's vector of each token stands in the row and in the grid."""

    gather: Tensor
    """For each place in the grids of queries, keys and values, [examples, heads, width] each, its
    vector in the row of [tokens, query, key and value heads]."""
    scatter: Tensor
    """For each vector in the row, its place in the grids."""
    gather_outputs: Tensor
    """For each place in the grid of queries, its vector in the row of [tokens, query heads]."""
    scatter_outputs: Tensor
    """For each query head of each token, its place in the grid of queries."""


class Segments:
    """Examples of a batch as one row."""

    def __init__(self, batch: Batch) -> None:
        """Lay out the examples of `batch`, without their padding."""
        lengths, device = batch.lengths, batch.ids.device
        self.n, longest, total = len(lengths), max(lengths), sum(lengths)
        self.width = _round_up(longest + 1, WIDTH_MULTIPLE)
        self.n_tokens = _round_up(total + 1, TOKEN_MULTIPLE)
        self._lengths = torch.tensor(lengths, device=device)
        starts = torch.tensor(batch.starts, device=device)
        example = torch.arange(self.n, device=device).repeat_interleave(self._lengths)
        first = self._lengths.cumsum(0) - self._lengths
        position = torch.arange(total, device=device) - first[example]
        sources = starts[example] + position
        padding = self.n_tokens - total
        self.ids = torch.nn.functional.pad(batch.ids.flatten()[sources], (0, padding))[None]
        self.positions = torch.nn.functional.pad(position, (0, padding))[None]
        slots = example * self.width + position
        # Padding in the row and in the grid exchange each other's values, which nothing reads, and
        # gradients, which are zero: there is always some of both.
        spare = int(self._lengths[0])  # behind the first example
        self._slots = torch.nn.functional.pad(slots, (0, padding), value=spare)
        self._tokens = torch.full((self.n * self.width,), self.n_tokens - 1, device=device)
        self._tokens[slots] = torch.arange(total, device=device)
        places = torch.empty(batch.ids.numel(), dtype=torch.long, device=device)
        places[sources] = torch.arange(total, device=device)
        self.prediction_positions = places[batch.prediction_positions]
        self._heads: dict[tuple[int, int], HeadLayout] = {}
        self._masks: dict[Any, Tensor] = {}

    def lay_out_heads(self, queries: int, keys: int) -> HeadLayout:
        """Return the layout for so many heads of queries and of keys (and values)."""
        if (queries, keys) not in self._heads:
            all_heads, tokens = queries + 2 * keys, self._tokens.view(self.n, 1, self.width)
            gathers, scatters, start = [], [], 0
            example, column = self._slots // self.width, self._slots % self.width
            for offset, heads in ((0, queries), (queries, keys), (queries + keys, keys)):
                head = torch.arange(heads, device=tokens.device)
                gathers.append((tokens * all_heads + offset + head[:, None]).flatten())
                place = (example[:, None] * heads + head) * self.width + column[:, None]
                scatters.append(place + start)
                start += self.n * heads * self.width
            head = torch.arange(queries, device=tokens.device)
            self._heads[queries, keys] = HeadLayout(
                torch.cat(gathers),
                torch.cat(scatters, dim=1).flatten(),
                (tokens * queries + head[:, None]).flatten(),
                scatters[0].flatten(),
            )
        return self._heads[queries, keys]

    def make_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return 0 where a query [width] may attend to a key [width], and minus infinity elsewhere.

        A query attends to keys up to its own, the last `window` of them.
        """
        if (window, dtype) not in self._masks:
            n = torch.arange(self.width, device=self._tokens.device)
            seen = n[:, None] >= n
            if window is not None:
                seen &= n[:, None] - n < window
            mask = torch.zeros(seen.shape, dtype=dtype, device=n.device)
            self._masks[window, dtype] = mask.masked_fill_(~seen, -torch.inf)
        return self._masks[window, dtype]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
