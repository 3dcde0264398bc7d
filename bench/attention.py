"""Attention of a training step by plain products against PyTorch's fused kernel, by length.

`python bench/attention.py --json` prints processor milliseconds of forward and backward pass for
2,048 tokens in rows of equal length, in SmolLM2-135M's shape (9 heads of 64 on 3 of keys), and the
length up to which the products are faster: `fused_body.MAX_LENGTHS` is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import shapes
import torch

from doublebind.training import elementwise

QUERIES, KEYS, WIDTH = 9, 3, 64
LENGTHS = (64, 128, 256, 512, 1024, 2048)


def by_products(n: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return the pass that `fused_attention` makes, on grids."""
    group = QUERIES // KEYS
    query = torch.randn(n * KEYS, group * length, WIDTH).to(dtype)
    key, value = (torch.randn(n * KEYS, length, WIDTH).to(dtype) for _ in range(2))
    place = torch.arange(length)
    mask = torch.zeros(length, length, dtype=dtype)
    mask.masked_fill_(place[:, None] < place, -torch.inf)

    def run() -> None:
        scores = torch.bmm(query, key.transpose(1, 2)).view(-1, length, length)
        probabilities = elementwise.softmax(scores, mask, None).view(n * KEYS, -1, length)
        out = torch.bmm(probabilities, value)
        torch.bmm(probabilities.transpose(1, 2), out)
        grad = torch.bmm(out, value.transpose(1, 2))
        grad = elementwise.softmax_backward(grad, probabilities)
        torch.bmm(grad, key)
        torch.bmm(grad.transpose(1, 2), query)

    return run


def by_kernel(n: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return PyTorch's fused attention."""
    query = torch.randn(n, QUERIES, length, WIDTH).to(dtype).requires_grad_()
    key, value = (torch.randn(n, KEYS, length, WIDTH).to(dtype).requires_grad_() for _ in range(2))

    def run() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        out.backward(out.detach())

    return run


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Time both by turns at each length."""
    found: dict[str, Any] = {}
    for length in LENGTHS:
        ways = {"products": by_products, "kernel": by_kernel}
        runs = {
            name: way(args.tokens // length, length, getattr(torch, args.dtype))
            for name, way in ways.items()
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():
                began = time.process_time()
                run()
                taken[name].append(1e3 * (time.process_time() - began))
        found[str(length)] = {name: statistics.median(each[1:]) for name, each in taken.items()}
    faster = [n for n in LENGTHS if found[str(n)]["products"] < found[str(n)]["kernel"]]
    return {"cpu_ms": found, "faster_up_to": max(faster, default=0), "machine": shapes.machine()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    chosen = parser.parse_args()
    print(json.dumps(main(chosen), indent=1 if chosen.json else None))
