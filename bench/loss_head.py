"""The loss head alone: ours against dense logits and against TRL's chunked divergence.

`python bench/loss_head.py --json` prints `ratio_dense` and `ratio_trl` (the rival's seconds over
ours, medians of alternating runs in one process) at V = 49,152, and the memory that each adds at
its peak at V = 32,768, 131,072 and 262,144, measured in a process of its own. Forward KL and the
gradient of the hidden states; the head is frozen, as with LoRA. Every row is supervised. The
rivals project the teacher's hidden states too, which ours has cached (its top 64 and the tail);
the teacher's body is in none. `dense` is the faster of float32 and the head's own precision.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import shapes
import torch

WIDTH, TEACHER_WIDTH, TOP_K = 576, 960, 64
MEMORY_AT = (32_768, 131_072, 262_144)
PLOT_ROWS = (256, 1024)


def ways(
    vocab: int, n: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to the gradient of the hidden states; same inputs."""
    from doublebind.models.logits import OutputHead
    from doublebind.training.head_loss import SoftTargets, head_loss

    g = torch.Generator().manual_seed(0)

    def drawn(rows: int, width: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(rows, width, generator=g)).to(device, dtype)

    rows, weight = drawn(n, WIDTH), drawn(vocab, WIDTH, 4 / math.sqrt(WIDTH))
    theirs = drawn(n, TEACHER_WIDTH)
    heads = drawn(vocab, TEACHER_WIDTH, 4 / math.sqrt(TEACHER_WIDTH))
    parts = []
    for tile in torch.arange(n).split(16):
        logp = (theirs[tile] @ heads.T).float().log_softmax(1)
        top, ids = logp.topk(TOP_K, dim=1)
        parts.append((ids, top, logp.exp_().scatter_(1, ids, 0).sum(1)))
    ids, top, tail = (torch.cat(part) for part in zip(*parts, strict=True))

    def ours() -> torch.Tensor:
        leaf = rows.detach().requires_grad_()
        head_loss(leaf, OutputHead(weight), soft=SoftTargets(ids, top, tail)).backward()
        assert leaf.grad is not None
        return leaf.grad

    def dense(precision: torch.dtype) -> torch.Tensor:
        leaf = rows.detach().requires_grad_()
        logq = (leaf @ weight.T).to(precision).log_softmax(1)
        logp = (theirs @ heads.T).to(precision).log_softmax(1)
        kl = torch.nn.functional.kl_div(logq, logp, reduction="none", log_target=True)
        (kl.sum() / n).backward()
        assert leaf.grad is not None
        return leaf.grad

    def trl() -> torch.Tensor:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        leaf = rows.detach().requires_grad_()
        loss, _, _ = _chunked_divergence_loss(
            leaf[None], theirs[None], weight, heads, torch.ones(1, n, device=device), beta=0.0
        )
        loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    return {
        "ours": ours,
        "dense_float32": lambda: dense(torch.float32),
        "dense_own": lambda: dense(dtype),
        "trl": trl,
    }


def timed(args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each way by clock and by processor, alternating."""
    all_ways = ways(args.vocab, args.rows, getattr(torch, args.dtype), args.device)
    seconds: dict[str, list[float]] = {name: [] for name in all_ways}
    cpu: dict[str, list[float]] = {name: [] for name in all_ways}
    grads = {}
    for _ in range(args.reps + 1):
        for name, way in all_ways.items():
            shapes.finished(args.device)
            began, used = time.perf_counter(), time.process_time()
            grads[name] = way().float()
            shapes.finished(args.device)
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
    ratios = {}
    for kind, taken in (("", seconds), ("cpu_", cpu)):
        typical = {name: statistics.median(each[1:]) for name, each in taken.items()}
        dense = min(typical["dense_float32"], typical["dense_own"])
        ratios[f"{kind}ratio_dense"] = dense / typical["ours"]
        ratios[f"{kind}ratio_trl"] = typical["trl"] / typical["ours"]
    exact = grads["dense_float32"]
    off = {k: float((g - exact).norm() / exact.norm()) for k, g in grads.items()}
    return {
        **ratios,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "gradient_off_dense_float32": off,
    }


def memory(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """MiB that each way adds at its peak, each in a fresh process."""
    results: dict[str, dict[str, float]] = {}
    for vocab in MEMORY_AT:
        for name in ("ours", "dense_own", "dense_float32", "trl"):
            command = [sys.executable, __file__, "--way", name, "--vocab", str(vocab)]
            command += ["--rows", str(args.rows), "--dtype", args.dtype]
            command += ["--device", args.device]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
            added = json.loads(lines[0][1:])["added"] / 2**20 if lines else math.nan
            results.setdefault(name, {})[str(vocab)] = round(added)
    return results


def plotted(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Rows -> way -> vocabulary -> MiB added, drawn in the file named."""
    results = {}
    for rows in PLOT_ROWS:
        args.rows = rows
        results[str(rows)] = memory(args)
    draw(results, args.dtype, args.plot)
    return results


def draw(results: dict[str, dict[str, dict[str, float]]], dtype: str, where: str) -> None:
    """Draw memory against vocabulary x rows: a line for each way and number of rows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    labels = {
        "ours": "ours",
        "dense_own": f"dense, {dtype}",
        "dense_float32": "dense, float32",
        "trl": "TRL's chunks",
    }
    for (rows, ways_), style in zip(results.items(), ("-", "--"), strict=True):
        for color, (name, label) in enumerate(labels.items()):
            at = [int(rows) * int(vocab) for vocab in ways_[name]]
            label = f"{label}, {rows} rows"
            axes.plot(at, list(ways_[name].values()), style, c=f"C{color}", marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="vocabulary x supervised tokens")
    axes.set_ylabel("MiB added at the peak")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(where, dpi=120)


def alone(args: argparse.Namespace) -> None:
    """Worker: run one way once and tell what it added to the peak."""
    way = ways(args.vocab, args.rows, getattr(torch, args.dtype), args.device)[args.way]
    if args.way == "trl":
        import trl.trainer.distillation_trainer  # noqa: F401  its own weight is not the loss's
    # Forget the peak of making the inputs.
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = shapes.peak_memory(args.device)
    way()
    shapes.say(added=shapes.peak_memory(args.device) - before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way")
    parser.add_argument("--vocab", type=int, default=shapes.VOCAB)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", help="picture of the memory instead, for 256 and 1,024 rows")
    chosen = parser.parse_args()
    if chosen.way:
        alone(chosen)
    elif chosen.plot:
        print(json.dumps(plotted(chosen), indent=1))
    else:
        before = shapes.machine()
        results = timed(chosen) | {"added_mib": memory(chosen), "machine": before}
        print(json.dumps(results, indent=1 if chosen.json else None))
