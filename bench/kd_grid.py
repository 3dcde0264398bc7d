"""Students distilled from one teacher: this package against TRL's GKDTrainer at lmbda = 0.

`python bench/kd_grid.py --json` prints `ratio_s1, ratio_s8, ratio_s16` (the peer's seconds for S
students over ours), `rss_ratio` and `heldout_kl_ratio` (ours over the peer's). Both take the same
batches, padded alike, in the same precision, with the same LoRA and optimiser, without activation
checkpointing, in two processes that step by turns. The peer at S students is taken to be S times
its measured single run, its model loading left out. Ours is the teacher's scoring, once, and S
times the student's steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import shapes

SHARP = 6.0


def data(args: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Training rows and held-out rows."""
    token_rows = shapes.rows(args.batch * args.steps, args.tokens, seed=1)
    return token_rows, shapes.rows(args.heldout, args.tokens, seed=2)


def heldout_kl(student: Any, teacher: Any, held: list[Any]) -> float:
    """Mean KL (nats) from the whole teacher's distribution, by dense float32 log-softmax."""
    import torch

    total, n = 0.0, 0
    with torch.no_grad():
        for ids, first in held:
            row = torch.tensor([ids], device=teacher.device)
            logp, logq = (
                m(input_ids=row).logits[0, first - 1 : -1].float().log_softmax(-1)
                for m in (teacher, student)
            )
            total += float((logp.exp() * (logp - logq)).sum())
            n += len(ids) - first
    return total / n


def lm(shape: str, seed: int, args: argparse.Namespace, **options: Any) -> Any:
    """A random model as this package holds one."""
    from doublebind.models.load import LM
    from doublebind.schema.model_source import ModelSource

    built = shapes.model(shape, seed, args.dtype, device=args.device, **options)
    source = ModelSource(kind="folder", path=shape, sha256="0" * 64)
    return LM(built.requires_grad_(False), shapes.tokenizer(), source)


def examples(token_rows: list[Any]) -> list[Any]:
    """The rows as this package has them."""
    from doublebind.training.batch import Example

    return [Example(tuple(ids), first) for ids, first in token_rows]


def score(args: argparse.Namespace) -> None:
    """Worker: cache the teacher's distributions; one step is all of it."""
    from doublebind.models import teacher_cache

    teacher = lm(args.teacher, 7, args, sharp=SHARP)
    token_rows, _ = data(args)
    clock = shapes.Clock(args.device)
    clock.begin()
    teacher_cache.write_targets(Path(args.cache), teacher, examples(token_rows), top_k=64)

    def report() -> dict[str, Any]:
        targets = teacher_cache.read_targets(Path(args.cache))
        return {
            "rss": shapes.peak_memory(args.device),
            "tail_mean": float(targets.tail.mean()),
            "bytes": sum(f.stat().st_size for f in Path(args.cache).rglob("*") if f.is_file()),
        }

    clock.end(report)


def ours(args: argparse.Namespace) -> None:
    """Worker: one student by this package's loop, on the cached targets."""
    from doublebind.models import teacher_cache
    from doublebind.schema.recipe import Lora
    from doublebind.training import loop

    token_rows, held = data(args)
    student = lm(args.student, 3, args)
    loop.seed_everything(0)
    model = loop.prepare_model(student.model, Lora(rank=shapes.RANK, alpha=shapes.ALPHA), 0)
    settings = shapes.training(args)
    shuffle_epochs = loop.shuffle_epochs
    loop.shuffle_epochs = lambda n, seed: itertools.cycle(range(n))  # the peer's order
    if not args.pack:
        loop.can_pack = lambda model: False  # the peer's padding
    clock = shapes.Clock(args.device)
    clock.begin()
    loop.train(
        model,
        loop.TrainingSet(examples(token_rows), teacher_cache.read_targets(Path(args.cache))),
        settings=settings,
        seed=0,
        save_checkpoint=lambda _, step: clock.turn(),
    )
    loop.shuffle_epochs = shuffle_epochs
    clock.end(lambda: after(model, held, args))


def peer(args: argparse.Namespace) -> None:
    """Worker: one student by TRL's GKDTrainer, teacher beside it."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    token_rows, held = data(args)
    on = {"device": args.device}
    teacher = shapes.model(args.teacher, 7, args.dtype, sharp=SHARP, **on).requires_grad_(False)
    student = shapes.model(args.student, 3, args.dtype, **on)
    clock = shapes.Clock(args.device)

    class Turns(TrainerCallback):
        def on_step_end(self, trained: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step < args.steps:
                clock.turn()

    class InOrder(GKDTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    def collate(chosen: list[Any]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for at, row in enumerate(chosen):
            tokens, first = torch.tensor(row["input_ids"]), row["first"]
            ids[at, : len(tokens)], mask[at, : len(tokens)] = tokens, 1
            labels[at, first : len(tokens)] = tokens[first:]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    settings = GKDConfig(lmbda=0.0, beta=0.0, **shapes.trl_settings(args))  # forward KL
    trainer = InOrder(
        model=student,
        teacher_model=teacher,
        args=settings,
        train_dataset=Dataset.from_list([{"input_ids": i, "first": f} for i, f in token_rows]),
        data_collator=collate,
        processing_class=shapes.tokenizer(),
        peft_config=shapes.peft_lora(),
        callbacks=[Turns()],
    )
    clock.begin()
    trainer.train()
    clock.end(lambda: after(trainer.model, held, args, teacher))


def after(
    student: Any, held: list[Any], args: argparse.Namespace, teacher: Any = None
) -> dict[str, Any]:
    """What there is to say of a trained student: peak memory first, then held-out KL."""
    report: dict[str, Any] = {"rss": shapes.peak_memory(args.device)}
    report["weights"] = shapes.weights(student)
    if args.heldout:
        teacher = teacher or shapes.model(
            args.teacher, 7, args.dtype, sharp=SHARP, device=args.device
        )
        report["kl"] = heldout_kl(student.eval(), teacher, held)
        with student.disable_adapter():
            report["kl_before"] = heldout_kl(student, teacher, held)
    return report


def flops(mine: shapes.Child, args: argparse.Namespace) -> float:
    """Operations a second of our steps, counted as `bench/README.md` says: MFU times the peak."""
    token_rows, _ = data(args)
    steps = [token_rows[i : i + args.batch] for i in range(0, len(token_rows), args.batch)]
    padded = sum(len(step) * max(len(ids) for ids, _ in step) for step in steps) / len(steps)
    learned = sum(len(ids) - first for ids, first in token_rows) / len(steps)
    has = mine.report["weights"]
    return 4 * (has["body"] * padded + has["head"] * learned) / mine.typical()


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the three workers and compare."""
    folder = tempfile.mkdtemp()
    common = ["--cache", folder]
    for name in ("steps", "batch", "tokens", "heldout", "dtype", "student", "teacher", "device"):
        common += [f"--{name}", str(getattr(args, name))]
    if args.pack:
        common.append("--pack")
    before = shapes.machine()
    scoring = shapes.Child(__file__, "--role", "score", *common)
    scoring.step()
    mine, theirs = (shapes.Child(__file__, "--role", role, *common) for role in ("ours", "peer"))
    for _ in range(args.steps):
        mine.step()
        theirs.step()
    ratios = {}
    for kind in ("", "cpu_"):
        step, peer_step = (each.typical(cpu=bool(kind)) for each in (mine, theirs))
        # Scoring, for each step that the cached rows last.
        share = scoring.typical(cpu=bool(kind)) / args.steps / args.epochs
        ratios |= {f"{kind}ratio_s{s}": peer_step / (step + share / s) for s in (1, 4, 8, 16)}
    return {
        **ratios,
        "rss_ratio": max(mine.report["rss"], scoring.report["rss"]) / theirs.report["rss"],
        "heldout_kl_ratio": mine.report["kl"] / theirs.report["kl"] if args.heldout else None,
        "flops_per_second": flops(mine, args),
        "step_seconds": {"ours": mine.seconds, "peer": theirs.seconds},
        "step_cpu_seconds": {"ours": mine.cpu_seconds, "peer": theirs.cpu_seconds},
        "scoring_seconds": scoring.seconds[0],
        "scoring_cpu_seconds": scoring.cpu_seconds[0],
        "reports": {"ours": mine.report, "peer": theirs.report, "scoring": scoring.report},
        "settings": {k: v for k, v in vars(args).items() if k not in ("role", "cache", "json")},
        "weights": "random, of real shapes",
        "machine": before,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("score", "ours", "peer"))
    parser.add_argument("--cache")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--heldout", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2, help="times the cached rows are used")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--student", default="135m")
    parser.add_argument("--teacher", default="360m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pack", action="store_true", help="let ours pack rows")
    chosen = parser.parse_args()
    if chosen.role:
        {"score": score, "ours": ours, "peer": peer}[chosen.role](chosen)
    else:
        report = main(chosen)
        print(json.dumps(report, indent=1) if chosen.json else json.dumps(report), file=sys.stdout)
