"""One step of preference training: this package against TRL's DPOTrainer.

`python bench/dpo_step.py --json` prints `ratio`, the peer's median seconds a step over ours: the
same pairs, padded alike, LoRA, precision and optimiser; no activation checkpointing; the
reference's log-probabilities computed once beforehand by both (`precompute_ref_log_probs`, the
peer's best), and timed apart; two processes that step by turns.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import kd_grid
import shapes

BETA = 0.1


def data(args: argparse.Namespace) -> list[tuple[list[int], list[int], list[int]]]:
    """A prompt and two answers for each pair of the run."""
    token_rows = shapes.rows(2 * args.batch * args.steps, args.tokens, seed=1)
    return [
        (one[:first], one[first:], other[its_first:])
        for (one, first), (other, its_first) in zip(token_rows[::2], token_rows[1::2], strict=True)
    ]


def ours(args: argparse.Namespace) -> None:
    """Worker: this package's preference training."""
    from doublebind.models.score import token_logprobs
    from doublebind.schema.recipe import Lora
    from doublebind.training import loop, preference
    from doublebind.training.batch import Example
    from doublebind.training.preference import PreferencePair, ScoredAnswer

    student = kd_grid.lm(args.student, 3, args)
    began = time.perf_counter()
    sequences = [(prompt, answer) for prompt, *both in data(args) for answer in both]
    reference = token_logprobs(student, sequences)
    took = time.perf_counter() - began
    judged = [
        ScoredAnswer(Example((*prompt, *answer), len(prompt)), logprobs)
        for (prompt, answer), logprobs in zip(sequences, reference, strict=True)
    ]
    pairs = [PreferencePair(*both) for both in zip(judged[::2], judged[1::2], strict=True)]
    loop.seed_everything(0)
    model = loop.prepare_model(student.model, Lora(rank=shapes.RANK, alpha=shapes.ALPHA), 0)
    preference.shuffle_epochs = lambda n, seed: itertools.cycle(range(n))  # the peer's order
    preference.can_pack = lambda model: False  # the peer's padding
    clock = shapes.Clock(args.device)
    clock.begin()
    log = preference.train_dpo(
        model,
        pairs,
        beta=BETA,
        settings=shapes.training(args),
        seed=0,
        vocab=shapes.VOCAB,
        pad_id=0,
        save_checkpoint=lambda _, step: clock.turn(),
    )
    clock.end(
        lambda: {
            "rss": shapes.peak_memory(args.device),
            "reference_seconds": took,
            "loss_first": log.first_loss,
            "loss_last": log.last_loss,
        }
    )


def peer(args: argparse.Namespace) -> None:
    """Worker: TRL's DPOTrainer with its own collator."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    clock, losses = shapes.Clock(args.device), []

    class Turns(TrainerCallback):
        def on_step_end(self, trained: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step < args.steps:
                clock.turn()

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
            return dataset  # it is in tokens already

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *args: Any, **more: Any) -> Any:
            loss = super().compute_loss(*args, **more)
            losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    settings = DPOConfig(
        beta=BETA, max_length=None, precompute_ref_log_probs=True, **shapes.trl_settings(args)
    )
    student = shapes.model(args.student, 3, args.dtype, device=args.device)
    began = time.perf_counter()
    trainer = Tokenised(
        model=student,
        args=settings,
        train_dataset=Dataset.from_list([dict(zip(names, row, strict=True)) for row in data(args)]),
        processing_class=shapes.tokenizer(),
        peft_config=shapes.peft_lora(),
        callbacks=[Turns()],
    )
    took = time.perf_counter() - began
    clock.begin()
    trainer.train()
    clock.end(
        lambda: {
            "rss": shapes.peak_memory(args.device),
            "reference_seconds": took,
            "loss_first": losses[0],
            "loss_last": losses[-1],
        }
    )


if __name__ == "__main__":
    shapes.step_against_step(__doc__, __file__, ours, peer)
