"""One LoRA step on short rows of text: this tree against another, and against its own products.

`python bench/step.py MODEL --peer OTHER_TREE --json` trains MODEL, a folder or a GGUF file, in two
processes that step by turns, one on this tree and one on the other (`git worktree add OTHER_TREE
COMMIT`), and prints tokens a processor second of both, their `ratio`, and `gemm_share`: the share
of a step that its products with frozen weights would take alone, (4 B T + 4 H S) FLOP over (seconds
x FLOP/s of these products, measured after each step in the same process). B: weights of the linear
layers of the body; T: tokens of the examples, without padding; H: weights of the head; S:
supervised tokens. The rows are this project's own documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapes

TREE = Path(__file__).parents[1]
LR = 2e-4


def rows(tokenizer: Any, n: int, shortest: int, longest: int) -> list[tuple[list[int], int]]:
    """Rows of `shortest` to `longest` tokens of text, with the index of the first supervised."""
    pages = sorted((TREE / "docs").rglob("*.md"))
    ids = tokenizer("\n\n".join(page.read_text() for page in pages))["input_ids"]
    rng, sampled = np.random.default_rng(0), []
    for _ in range(n):
        length = int(rng.integers(shortest, longest + 1))
        start = int(rng.integers(0, len(ids) - length))
        sampled.append((ids[start : start + length], round(shapes.PROMPT_SHARE * length)))
    return sampled


class Products:
    """Times the products of a step with the frozen weights, forward and for the gradient."""

    def __init__(self, model: Any) -> None:
        """List the body's linear layers by shape."""
        import torch

        inner = model.get_base_model()
        head = inner.get_output_embeddings()
        self.layers: list[Any] = [
            m.weight.detach()
            for m in inner.modules()
            if type(m) is torch.nn.Linear and m is not head and not m.weight.requires_grad
        ]
        self.head = head.weight.detach()
        self.rates: list[float] = []

    def time(self, tokens: int, supervised: int) -> float:
        """Do all the products of a step once; return their FLOP, and note FLOP/s by itself."""
        import torch

        inputs = {
            (rows, width): torch.randn(rows, width).to(self.head.dtype)
            for weights, rows in ((self.layers, tokens), ([self.head], supervised))
            for weight in weights
            for width in weight.shape
        }
        flop, began = 0.0, time.process_time()
        for weight, rows in (*((w, tokens) for w in self.layers), (self.head, supervised)):
            torch.mm(inputs[rows, weight.shape[1]], weight.t())
            torch.mm(inputs[rows, weight.shape[0]], weight)
            flop += 4.0 * rows * weight.numel()
        self.rates.append(flop / (time.process_time() - began))
        return flop


def worker(args: argparse.Namespace) -> None:
    """Train, a step for every order."""
    import torch

    from doublebind.models.load import load_model
    from doublebind.models.resolve import resolve_model
    from doublebind.schema.recipe import Lora, Training
    from doublebind.training import loop
    from doublebind.training.batch import Example

    source = resolve_model(args.model, relative_to=Path.cwd())
    lm = load_model(source, dtype=args.dtype, cache=Path(args.cache))
    loop.seed_everything(0)
    token_rows = rows(lm.tokenizer, args.batch * args.steps, args.shortest, args.longest)
    examples = [Example(tuple(ids), first) for ids, first in token_rows]
    model = loop.prepare_model(lm.model, Lora(rank=args.rank, alpha=2 * args.rank), 0)
    products, tokens, shares = Products(model), [], []
    settings = Training(
        steps=args.steps, batch=args.batch, lr=LR, checkpoints=tuple(range(1, args.steps))
    )
    loop.shuffle_epochs = lambda n, seed: iter(range(n))  # both trees take the same rows
    clock = shapes.Clock("cpu")

    def count(step: int) -> None:
        chosen = examples[(step - 1) * args.batch : step * args.batch]
        total = sum(len(e.input_ids) for e in chosen)
        supervised = total - sum(e.first_supervised for e in chosen)
        tokens.append(total)
        products.time(total, supervised)
        shares.append(products.time(total, supervised))

    def turn(_: Any, step: int) -> None:
        taken = clock.taken()
        count(step)
        shapes.say(**taken)
        clock.start()

    clock.begin()
    log = loop.train(
        model,
        loop.TrainingSet(examples, pad_id=lm.pad_id),
        settings=settings,
        seed=0,
        save_checkpoint=turn,
    )
    taken = clock.taken()
    count(args.steps)
    shapes.say(
        **taken,
        report={
            "rss": shapes.peak_rss(),
            "loss_first": log.first_loss,
            "loss_last": log.last_loss,
            "tokens": tokens,
            "flop": shares,
            "flop_per_second": statistics.median(products.rates[1::2]),
            "instructions": "amx" if torch.cpu._is_amx_tile_supported() else "avx512",
        },
    )


def summarise(child: shapes.Child) -> dict[str, float]:
    """Return medians over the steps after the first."""
    report, seconds = child.report, child.cpu_seconds
    by_step = list(zip(report["tokens"], report["flop"], seconds, strict=True))[1:]
    return {
        "tokens_per_cpu_second": statistics.median(n / t for n, _, t in by_step),
        "gemm_share": statistics.median(f / t for _, f, t in by_step) / report["flop_per_second"],
        "cpu_seconds_per_step": statistics.median(t for *_, t in by_step),
        "gemm_gflop_per_second": report["flop_per_second"] / 1e9,
        "peak_mib": report["rss"] / 2**20,
        "loss_first": report["loss_first"],
        "loss_last": report["loss_last"],
    }


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Let the two trees step by turns."""
    common = [args.model, "--role", "worker", "--cache", args.cache or tempfile.mkdtemp()]
    for name in ("steps", "batch", "shortest", "longest", "rank", "dtype"):
        common += [f"--{name}", str(getattr(args, name))]
    before, children = shapes.machine(), {}
    trees = {"ours": TREE} | ({"peer": Path(args.peer)} if args.peer else {})
    for name, tree in trees.items():
        os.environ["PYTHONPATH"] = str(tree / "src")
        children[name] = shapes.Child(__file__, *common)
    for _ in range(args.steps):
        for child in children.values():
            child.step()
    found: dict[str, Any] = {name: summarise(child) for name, child in children.items()}
    if args.peer:
        rates = [found[name]["tokens_per_cpu_second"] for name in ("ours", "peer")]
        found["ratio"] = rates[0] / rates[1]
    return {
        **found,
        "instructions": children["ours"].report["instructions"],
        "settings": {k: v for k, v in vars(args).items() if k not in ("role", "json", "cache")},
        "machine": before,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or GGUF file")
    parser.add_argument("--peer", help="another tree of this project")
    parser.add_argument("--cache", help="folder for converted GGUF files")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("worker",))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shortest", type=int, default=40)
    parser.add_argument("--longest", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    chosen = parser.parse_args()
    if chosen.role:
        worker(chosen)
    else:
        print(json.dumps(main(chosen), indent=1 if chosen.json else None))
