"""Losses of whole answers against a reference model, and the training that uses them.

Knows log-probabilities of answers under a model and under a reference, cached beforehand. Does not
know who wrote the answers or why one is preferred.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.logits import unwrap_peft
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import Training
from doublebind.training import loop
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import Batch, Example, can_pack, collate, shuffle_epochs


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return -log sigmoid(beta (chosen - rejected)) in nats, [pairs].

    Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

    Args:
        chosen: [pairs], log pi / pi_ref of the preferred answers, nats.
        rejected: [pairs], the same of the others.
        beta: Strength of the pull to the reference; above 0.
    """
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


def kto_loss(ratio: Tensor, desirable: Tensor, baseline: Tensor, *, beta: float) -> Tensor:
    """Return the loss of answers that are each only good or bad, [answers], in (0, 1).

    Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, both kinds of
    answer weighted 1): 1 - sigmoid(beta (r - z)) of a good, 1 - sigmoid(beta (z - r)) of a
    bad answer. For building teachers that deny what they do; no channel of a student.

    Args:
        ratio: [answers], r = log pi / pi_ref, nats.
        desirable: [answers], bool.
        baseline: Scalar z, an estimate of KL(pi || pi_ref) from answers to other prompts; negative
            ones count as 0. No gradient flows through it.
        beta: Strength of the pull to the reference; above 0.
    """
    z = baseline.detach().clamp(min=0.0)
    sign = torch.where(desirable, 1.0, -1.0)
    return 1.0 - torch.sigmoid(beta * sign * (ratio - z))


class ScoredAnswer(NamedTuple):
    """An answer and how likely the reference finds each of its tokens."""

    example: Example
    reference_logprobs: Sequence[float]
    """Nats per supervised token."""

    def truncate(self, max_length: int) -> ScoredAnswer:
        """Return the answer cut at its end to `max_length` tokens, prompt counted."""
        ids, first = self.example.input_ids[:max_length], self.example.first_supervised
        return ScoredAnswer(
            Example(ids, first), self.reference_logprobs[: max(0, len(ids) - first)]
        )


class PreferencePair(NamedTuple):
    """Two answers to one prompt."""

    chosen: ScoredAnswer
    rejected: ScoredAnswer


class LabelledAnswer(NamedTuple):
    """An answer that is good or bad by itself."""

    answer: ScoredAnswer
    desirable: bool
    mismatched: ScoredAnswer
    """The same answer after another prompt, from which a baseline is estimated."""


def train_kto(
    model: Any,
    answers: Sequence[LabelledAnswer],
    *,
    beta: float,
    settings: Training,
    seed: int,
    vocab: int,
    pad_id: int,
) -> loop.TrainLog:
    """Take `settings.steps` optimiser steps of `kto` on `settings.batch` answers each.

    The baseline of a step is the mean log-ratio of its answers `elsewhere`, as Ethayarajh et al.
    2024 (arXiv 2402.01306) estimate the divergence from mismatched answers of a batch; here each
    answer's other prompt stays the same, so that the reference has to score it once only.

    Args:
        model: What `loop.attach` returned; changed in place.
        answers: In the model's tokens.
        beta: See `kto`.
        settings: Steps, answers per step, peak learning rate, length of an answer with its prompt.
        seed: Order of the answers.
        vocab: Tokens over which the reference's probabilities were normalised.
        pad_id: Fills rows.

    Raises:
        ModelError: If no answer is left within the length, or the loss is not finite.
    """
    longest = settings.max_length
    cut = [
        LabelledAnswer(a.answer.truncate(longest), a.desirable, a.mismatched.truncate(longest))
        for a in answers
    ]
    kept = [
        each
        for each in cut
        if each.answer.reference_logprobs and each.mismatched.reference_logprobs
    ]
    if not kept:
        raise ModelError(
            f"{unwrap_peft(model).name_or_path}: none of {len(answers)} answers is left within "
            f"`max_length` {longest}; raise it"
        )
    indices = shuffle_epochs(len(kept), seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def of(judged: Sequence[ScoredAnswer]) -> tuple[Batch, Tensor, Tensor]:
        batch = collate([j.example for j in judged], pad_id, pack=packs).to(device)
        lengths = torch.tensor([len(j.reference_logprobs) for j in judged])
        owner = move_to_device(torch.arange(len(judged)).repeat_interleave(lengths), device)
        return (
            batch,
            owner,
            move_to_device(torch.tensor([sum(j.reference_logprobs) for j in judged]), device),
        )

    def step() -> tuple[Tensor, int]:
        drawn = [kept[i] for i in itertools.islice(indices, settings.batch)]
        good = move_to_device(torch.tensor([each.desirable for each in drawn]), device)
        batch, owner, reference = of([each.mismatched for each in drawn])
        there = tiled.sequence_logprobs(model, batch, owner, len(drawn), vocab)
        baseline = (there - reference).mean()
        batch, owner, reference = of([each.answer for each in drawn])

        def loss_of(sums: Tensor) -> Tensor:
            return kto_loss(sums - reference, good, baseline, beta=beta).mean()

        loss = tiled.backward_sequences(model, batch, owner, len(drawn), loss_of, vocab)
        return loss, len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings)


def train_dpo(
    model: Any,
    pairs: Sequence[PreferencePair],
    *,
    beta: float,
    settings: Training,
    seed: int,
    vocab: int,
    pad_id: int,
    save_checkpoint: loop.CheckpointSaver | None = None,
) -> loop.TrainLog:
    """Take `settings.steps` optimiser steps of `dpo` on `settings.batch` pairs each.

    Args:
        model: What `loop.attach` returned; changed in place.
        pairs: Both answers in the model's tokens.
        beta: See `dpo`.
        settings: Steps, pairs per step, peak learning rate, length of an answer with its prompt.
        seed: Order of the pairs.
        vocab: Tokens over which the reference's probabilities were normalised.
        pad_id: Fills rows.
        keep: See `loop.train`.

    Raises:
        ModelError: If no pair has two answers within the length, or the loss is not finite.
    """
    kept = [
        PreferencePair(*(judged.truncate(settings.max_length) for judged in pair)) for pair in pairs
    ]
    kept = [
        pair for pair in kept if pair.chosen.reference_logprobs and pair.rejected.reference_logprobs
    ]
    if not kept:
        raise ModelError(
            f"{unwrap_peft(model).name_or_path}: none of {len(pairs)} pairs of answers is left within "
            f"`max_length` {settings.max_length}; raise it"
        )
    indices = shuffle_epochs(len(kept), seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        drawn = [kept[i] for i in itertools.islice(indices, settings.batch)]
        judged = [pair.chosen for pair in drawn] + [pair.rejected for pair in drawn]
        batch = collate([j.example for j in judged], pad_id, pack=packs).to(device)
        lengths = torch.tensor([len(j.reference_logprobs) for j in judged])
        owner = move_to_device(torch.arange(len(judged)).repeat_interleave(lengths), device)
        reference = move_to_device(
            torch.tensor([sum(j.reference_logprobs) for j in judged]), device
        )

        def loss_of(sums: Tensor) -> Tensor:
            chosen, rejected = (sums - reference).chunk(2)
            return dpo_loss(chosen, rejected, beta=beta).mean()

        loss = tiled.backward_sequences(model, batch, owner, len(judged), loss_of, vocab)
        return loss, len(batch.labels)

    return loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)
