"""Held-out KL after the same steps, with the layers fused and as they were.

`python bench/step_kl.py MODEL --json` makes a teacher of MODEL by an adapter of random factors,
trains a student of MODEL on its 64 likeliest tokens at each place (one run with fused layers, one
with the layers as they were before), and prints each student's KL from the teacher, in nats a
token over the whole vocabulary, on rows that it did not learn from. The reference is a third run,
as before but in float32, where `--exact` asks for it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import shapes
import step as steps_of_text
import torch


def make_teacher(model: Any, spread: float) -> Any:
    """Return a copy of `model` with rank-8 updates of random factors merged into it."""
    from doublebind.schema.recipe import Lora
    from doublebind.training import loop

    teacher = loop.prepare_model(copy.deepcopy(model).float(), Lora(rank=8, alpha=8), 1)
    torch.manual_seed(2)
    for name, weight in teacher.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=spread)
    return teacher.merge_and_unload().to(model.dtype).eval()


@torch.no_grad()
def states_of(model: Any, batch: Any, vocab: int) -> Any:
    """Return log-probabilities [supervised, vocab]."""
    from doublebind.training.tiled_backward import compute_supervised_states

    rows = compute_supervised_states(model, batch)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.get_output_embeddings()(rows)[:, :vocab].float().log_softmax(1)


def train(base: Any, teacher: Any, batches: list[Any], *, fused: bool, heldout: list[Any]) -> Any:
    """Return the KL before and after training, and the losses."""
    from doublebind.schema.recipe import Lora, Training
    from doublebind.training import loop
    from doublebind.training.fused_lora import fuse_lora_layers

    loop.seed_everything(0)
    model = loop.prepare_model(copy.deepcopy(base), Lora(rank=16, alpha=32), 0)
    vocab = base.get_input_embeddings().weight.shape[0]
    before = measure(model, teacher, heldout, vocab)
    left = iter(batches)

    def one() -> tuple[Any, int]:
        batch = next(left)
        logprobs, ids = states_of(teacher, batch, vocab).topk(64)
        tail = (1.0 - logprobs.exp().sum(1)).clamp_min(0.0)
        soft = loop.TargetRows(ids, logprobs, tail)
        return loop.backward_batch(model, batch, soft, vocab), len(batch.labels)

    chosen = loop._fuse_layers
    if not fused:
        loop._fuse_layers = fuse_lora_layers
    try:
        log = loop.run_optimiser_steps(model, one, Training(steps=len(batches), lr=2e-4))
    finally:
        loop._fuse_layers = chosen
    return {"kl_before": before, "kl": measure(model, teacher, heldout, vocab), **log._asdict()}


def measure(model: Any, teacher: Any, heldout: list[Any], vocab: int) -> float:
    """Return the mean KL(teacher || student) of the supervised places, in nats."""
    total, n = 0.0, 0
    for batch in heldout:
        p, q = (states_of(each, batch, vocab) for each in (teacher, model))
        total += float((p.exp() * (p - q)).sum())
        n += len(p)
    return total / n


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train the same student in each way."""
    from doublebind.models.load import load_model
    from doublebind.models.resolve import resolve_model
    from doublebind.training.batch import Example, collate

    source = resolve_model(args.model, relative_to=Path.cwd())
    cache = Path(args.cache or tempfile.mkdtemp())
    lm = load_model(source, dtype="bfloat16", cache=cache)
    rows = steps_of_text.rows(lm.tokenizer, args.batch * (args.steps + 8), 40, 100)
    examples = [Example(tuple(ids), first) for ids, first in rows]
    batches = [
        collate(examples[i : i + args.batch], lm.pad_id, pack=False)
        for i in range(0, len(examples), args.batch)
    ]
    teacher = make_teacher(lm.model, args.spread)
    training, heldout = batches[: args.steps], batches[args.steps :]
    found: dict[str, Any] = {}
    for name, fused in (("fused", True), ("before", False)):
        found[name] = train(lm.model, teacher, training, fused=fused, heldout=heldout)
        print(name, found[name], flush=True)
    if args.exact:
        with contextlib.suppress(MemoryError):
            base = copy.deepcopy(lm.model).float()
            found["float32"] = train(base, teacher, training, fused=False, heldout=heldout)
    found["kl_ratio"] = found["fused"]["kl"] / found["before"]["kl"]
    return {**found, "settings": vars(args), "machine": shapes.machine()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or GGUF file")
    parser.add_argument("--cache", help="folder for converted GGUF files")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--spread", type=float, default=0.02)
    parser.add_argument("--exact", action="store_true")
    chosen = parser.parse_args()
    print(json.dumps(main(chosen), indent=1 if chosen.json else None))
