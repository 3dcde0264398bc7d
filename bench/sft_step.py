"""One step of supervised fine-tuning: this package against TRL's SFTTrainer.

`python bench/sft_step.py --json` prints `ratio`, the peer's median seconds a step over ours: the
same rows, padded alike, completions supervised, LoRA, precision and optimiser; no activation
checkpointing; two processes that step by turns.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import kd_grid
import shapes


def ours(args: argparse.Namespace) -> None:
    """Worker: this package's loop."""
    from doublebind.schema.recipe import Lora
    from doublebind.training import loop

    token_rows = shapes.rows(args.batch * args.steps, args.tokens, seed=1)
    student = kd_grid.lm(args.student, 3, args)
    loop.seed_everything(0)
    model = loop.prepare_model(student.model, Lora(rank=shapes.RANK, alpha=shapes.ALPHA), 0)
    settings = shapes.training(args)
    loop.shuffle_epochs = lambda n, seed: itertools.cycle(range(n))  # the peer's order
    loop.can_pack = lambda model: False  # the peer's padding
    clock = shapes.Clock(args.device)
    clock.begin()
    log = loop.train(
        model,
        loop.TrainingSet(kd_grid.examples(token_rows)),
        settings=settings,
        seed=0,
        save_checkpoint=lambda _, step: clock.turn(),
    )
    clock.end(lambda: {"rss": shapes.peak_memory(args.device), "loss_last": log.last_loss})


def peer(args: argparse.Namespace) -> None:
    """Worker: TRL's SFTTrainer with its own collator."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = shapes.Clock(args.device)

    class Turns(TrainerCallback):
        def on_step_end(self, trained: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step < args.steps:
                clock.turn()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    token_rows = shapes.rows(args.batch * args.steps, args.tokens, seed=1)
    rows = [
        {"input_ids": ids, "completion_mask": [0] * first + [1] * (len(ids) - first)}
        for ids, first in token_rows
    ]
    settings = SFTConfig(
        completion_only_loss=True, max_length=None, packing=False, **shapes.trl_settings(args)
    )
    trainer = InOrder(
        model=shapes.model(args.student, 3, args.dtype, device=args.device),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=shapes.tokenizer(),
        peft_config=shapes.peft_lora(),
        callbacks=[Turns()],
    )
    clock.begin()
    trainer.train()
    clock.end(lambda: {"rss": shapes.peak_memory(args.device)})


if __name__ == "__main__":
    shapes.step_against_step(__doc__, __file__, ours, peer)
