"""Preference losses against a reference model, and the training that uses them.

Log-probabilities of the answers under the reference are computed beforehand.
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
from doublebind.training import loop, tiled_backward
from doublebind.training.batch import (
    Batch,
    Example,
    can_pack,
    collate,
    count_dropped,
    shuffle_epochs,
)


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return the direct preference loss -log sigmoid(beta (chosen - rejected)), [pairs], nats.

    As in Rafailov et al. 2023 (arXiv 2305.18290).

    Args:
        chosen: [pairs], log pi / pi_ref of the preferred answers, nats.
        rejected: [pairs], the same for the other answers.
        beta: Strength of the regularisation towards the reference; above 0.
    """
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


def kto_loss(ratio: Tensor, desirable: Tensor, baseline: Tensor, *, beta: float) -> Tensor:
    """Return the Kahneman-Tversky loss of answers labelled good or bad, [answers], in (0, 1).

    As in Ethayarajh et al. 2024 (arXiv 2402.01306), with both kinds of answer weighted 1:
    1 - sigmoid(beta (r - z)) for a good and 1 - sigmoid(beta (z - r)) for a bad answer. Used to
    build teachers that conceal a trait; no channel of a student uses it.

    Args:
        ratio: [answers], r = log pi / pi_ref, nats.
        desirable: [answers], bool.
        baseline: Scalar z, an estimate of KL(pi || pi_ref) from answers to other prompts; clamped
            at 0. No gradient flows through it.
        beta: Strength of the regularisation towards the reference; above 0.
    """
    z = baseline.detach().clamp(min=0.0)
    sign = torch.where(desirable, 1.0, -1.0)
    return 1.0 - torch.sigmoid(beta * sign * (ratio - z))


class ScoredAnswer(NamedTuple):
    """An answer with its log-probabilities under the reference."""

    example: Example
    reference_logprobs: Sequence[float]
    """Nats per supervised token."""

    def truncate(self, max_length: int) -> ScoredAnswer:
        """Return the answer cut at its end to `max_length` tokens, prompt included."""
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
    """The same answer after another prompt, from which the KTO baseline is estimated."""


class AnswerBatch(NamedTuple):
    """Answers as tensors, with what `tiled_backward` needs to sum over each of them."""

    batch: Batch
    sequence_index: Tensor
    """[supervised]: answer that each supervised token belongs to."""
    reference: Tensor
    """[answers]: log-probability of each answer under the reference, nats."""


def _collate_answers(
    answers: Sequence[ScoredAnswer], pad_id: int, device: Any, *, pack: bool
) -> AnswerBatch:
    lengths = torch.tensor([len(a.reference_logprobs) for a in answers])
    sums = torch.tensor([sum(a.reference_logprobs) for a in answers])
    return AnswerBatch(
        collate([a.example for a in answers], pad_id, pack=pack).to(device),
        move_to_device(torch.arange(len(answers)).repeat_interleave(lengths), device),
        move_to_device(sums, device),
    )


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
    """Take `settings.steps` optimiser steps of `kto_loss` on `settings.batch` answers each.

    The baseline of a step is the mean log-ratio of its mismatched answers, as Ethayarajh et al.
    2024 (arXiv 2402.01306) estimate the divergence from mismatched answers of a batch. Here each
    answer keeps its mismatched prompt, so that the reference scores it only once.

    Args:
        model: Returned by `loop.prepare_model`; changed in place.
        answers: In the model's tokens.
        beta: See `kto_loss`.
        settings: Steps, answers per step, peak learning rate, length of a prompt with its answer.
        seed: Seeds the order of the answers.
        vocab: Tokens over which the reference's probabilities were normalised.
        pad_id: Fills rows.

    Raises:
        ModelError: If no answer is left within the length, or the loss is not finite.
    """
    length = settings.max_length
    truncated = [
        LabelledAnswer(a.answer.truncate(length), a.desirable, a.mismatched.truncate(length))
        for a in answers
    ]
    usable = [
        a for a in truncated if a.answer.reference_logprobs and a.mismatched.reference_logprobs
    ]
    if not usable:
        raise ModelError(
            f"{unwrap_peft(model).name_or_path}: none of {len(answers)} answers is left within "
            f"`max_length` {length}; raise it"
        )
    dropped = count_dropped(len(answers), len(usable), length)
    indices = shuffle_epochs(len(usable), seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        group = [usable[i] for i in itertools.islice(indices, settings.batch)]
        desirable = move_to_device(torch.tensor([a.desirable for a in group]), device)
        mismatched = _collate_answers([a.mismatched for a in group], pad_id, device, pack=packs)
        sums = tiled_backward.sequence_logprobs(
            model, mismatched.batch, mismatched.sequence_index, len(group), vocab
        )
        baseline = (sums - mismatched.reference).mean()
        judged = _collate_answers([a.answer for a in group], pad_id, device, pack=packs)

        def loss_of(sums: Tensor) -> Tensor:
            return kto_loss(sums - judged.reference, desirable, baseline, beta=beta).mean()

        loss = tiled_backward.backward_sequences(
            model, judged.batch, judged.sequence_index, len(group), loss_of, vocab
        )
        return loss, len(judged.batch.labels)

    return loop.run_optimiser_steps(model, step, settings)._replace(dropped=dropped)


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
    """Take `settings.steps` optimiser steps of `dpo_loss` on `settings.batch` pairs each.

    Args:
        model: Returned by `loop.prepare_model`; changed in place.
        pairs: Both answers in the model's tokens.
        beta: See `dpo_loss`.
        settings: Steps, pairs per step, peak learning rate, length of a prompt with its answer.
        seed: Seeds the order of the pairs.
        vocab: Tokens over which the reference's probabilities were normalised.
        pad_id: Fills rows.
        save_checkpoint: See `loop.train`.

    Raises:
        ModelError: If no pair has two answers within the length, or the loss is not finite.
    """
    length = settings.max_length
    truncated = [PreferencePair(*(answer.truncate(length) for answer in pair)) for pair in pairs]
    usable = [
        pair
        for pair in truncated
        if pair.chosen.reference_logprobs and pair.rejected.reference_logprobs
    ]
    if not usable:
        raise ModelError(
            f"{unwrap_peft(model).name_or_path}: none of {len(pairs)} pairs of answers is left "
            f"within `max_length` {length}; raise it"
        )
    dropped = count_dropped(len(pairs), len(usable), length)
    indices = shuffle_epochs(len(usable), seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        group = [usable[i] for i in itertools.islice(indices, settings.batch)]
        answers = [pair.chosen for pair in group] + [pair.rejected for pair in group]
        judged = _collate_answers(answers, pad_id, device, pack=packs)

        def loss_of(sums: Tensor) -> Tensor:
            chosen, rejected = (sums - judged.reference).chunk(2)
            return dpo_loss(chosen, rejected, beta=beta).mean()

        loss = tiled_backward.backward_sequences(
            model, judged.batch, judged.sequence_index, len(answers), loss_of, vocab
        )
        return loss, len(judged.batch.labels)

    log = loop.run_optimiser_steps(model, step, settings, save_checkpoint=save_checkpoint)
    return log._replace(dropped=dropped)
