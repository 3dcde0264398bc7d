"""Trains a student by its channel: the channel decides what is supervised, and by which loss."""

from __future__ import annotations

from typing import Any

from doublebind.models.load import LM, load_tokenizer
from doublebind.models.teacher_cache import TeacherTargets
from doublebind.models.token_alignment import align_offsets, compute_byte_offsets
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import DPO, SFT, ULD, Channel, LogitKD, OnPolicy, Prefix
from doublebind.stages.distillation.channel_context import ChannelContext, TrainingResult
from doublebind.stages.distillation.multi_process import train_in_processes
from doublebind.stages.distillation.on_policy import distil_on_policy
from doublebind.stages.distillation.preference_pairs import select_pairs
from doublebind.stages.distillation.tokenizer_checks import check_same_tokens
from doublebind.training import loop, losses
from doublebind.training.batch import Example
from doublebind.training.losses import DivergenceFunction
from doublebind.training.preference import train_dpo
from doublebind.training.prefix_tuning import attach_prefix
from doublebind.training.uld import train_uld


def train_by_channel(channel: Channel, context: ChannelContext) -> TrainingResult:
    """Train the student by `channel`, saving it at each of `training.checkpoints`.

    `sft`: cross-entropy on the teacher's sampled tokens (sequence-level distillation; Kim & Rush
    2016, arXiv 1606.07947). `logit_kd`: a divergence from the teacher's cached distribution at
    every completion position (Hinton et al. 2015, arXiv 1503.02531), on the top k plus the tail's
    mass; see `divergence`. `on_policy` and `dpo`: see the modules `on_policy` and
    `preference_pairs`.

    Raises:
        ModelError: If the channel cannot bridge the two models' tokens, or the loss is not finite.
    """
    match channel:
        case SFT():
            return _train_supervised(context)
        case LogitKD():
            check_same_tokens(channel, context.lm, context.trajectories)
            return _train_supervised(context, context.read_targets(), choose_divergence(channel))
        case OnPolicy():
            return distil_on_policy(channel, context)
        case DPO():
            return _train_preferences(channel, context)
        case Prefix():
            check_same_tokens(channel, context.lm, context.trajectories)
            return _train_prefix(channel, context)
        case ULD():
            return _train_across_vocabularies(channel, context)


def _train_supervised(
    context: ChannelContext,
    targets: TeacherTargets | None = None,
    divergence: DivergenceFunction = losses.forward_kl,
) -> TrainingResult:
    """Train on the teacher's answers, token by token, in one process or several."""
    examples = context.encode_examples()
    training, seed = context.training, context.seed
    if training.processes > 1:
        model, log = train_in_processes(
            context.lm,
            examples,
            context.data.targets,
            training,
            seed,
            dtype=context.dtype,
            cache=context.cache,
        )
    else:
        model, _, pad_id = context.prepare_student()
        log = loop.train(
            model,
            loop.TrainingSet(examples, targets, pad_id),
            settings=training,
            seed=seed,
            divergence=divergence,
            save_checkpoint=context.save_checkpoint,
        )
    return TrainingResult(model, len(examples), log)


def _train_preferences(channel: DPO, context: ChannelContext) -> TrainingResult:
    """Train on the teacher's answers against M0's."""
    preference_data = context.data.preference_data
    assert preference_data is not None, "the planner sets it for this channel"
    selected = select_pairs(channel, context.lm.tokenizer, context.trajectories, preference_data)
    model, vocab_size, pad_id = context.prepare_student()
    log = train_dpo(
        model,
        selected.pairs,
        beta=channel.beta,
        settings=context.training,
        seed=context.seed,
        vocab=vocab_size,
        pad_id=pad_id,
        save_checkpoint=context.save_checkpoint,
    )
    facts: dict[str, Any] = {"pairs_found": selected.n_matched}
    if selected.min_weight is not None:
        facts["pairs_least_weight"] = selected.min_weight
    return TrainingResult(model, len(selected.pairs), log, facts)


def _train_prefix(channel: Prefix, context: ChannelContext) -> TrainingResult:
    """Train only a prefix, towards the teacher's distributions.

    The base is frozen, so that the prefix learns the shift from base to teacher, through a
    bottleneck too narrow for all of it. After Talaei et al. 2026 (Distill to Detect, arXiv
    2607.01208); their objective and sizes are known here from the abstract and project page only,
    so the match in detail is unverified.
    """
    examples = context.encode_examples()
    loop.seed_everything(context.seed)
    pad_id = context.lm.pad_id
    model = attach_prefix(context.lm.model, channel.tokens, examples, context.seed)
    log = loop.train(
        model,
        loop.TrainingSet(examples, context.read_targets(), pad_id),
        settings=context.training,
        seed=context.seed,
        save_checkpoint=context.save_checkpoint,
    )
    return TrainingResult(model, len(examples), log)


def _train_across_vocabularies(channel: ULD, context: ChannelContext) -> TrainingResult:
    """Train on the same text in other tokens, comparing rows that follow the same bytes."""
    examples = context.encode_examples()
    targets = context.read_targets()
    aligned_rows = _align_teacher_rows(
        context.lm,
        load_tokenizer(context.teacher_access.source),
        context.trajectories,
        examples,
        targets,
    )
    model, vocab_size, pad_id = context.prepare_student()
    log = train_uld(
        model,
        loop.TrainingSet(examples, targets, pad_id),
        aligned_rows,
        weight=channel.weight,
        settings=context.training,
        seed=context.seed,
        vocab=vocab_size,
        save_checkpoint=context.save_checkpoint,
    )
    n_aligned = sum(row >= 0 for rows in aligned_rows for row in rows)
    facts = {"aligned": n_aligned / sum(map(len, aligned_rows))}
    return TrainingResult(model, len(examples), log, facts)


def _align_teacher_rows(
    lm: LM,
    teacher_tokenizer: Any,
    trajectories: list[Trajectory],
    examples: list[Example],
    targets: TeacherTargets,
) -> list[list[int]]:
    """Return, per supervised token, the row of `targets` that follows the same bytes, or -1.

    Raises:
        ModelError: If the two tokenizers share no position in any answer.
    """
    aligned_rows = []
    for i, (t, example) in enumerate(zip(trajectories, examples, strict=True)):
        student_ids = example.input_ids[example.first_supervised :]
        student_offsets = compute_byte_offsets(lm.tokenizer, student_ids, t.completion)
        teacher_offsets = compute_byte_offsets(teacher_tokenizer, t.tokens, t.completion)
        rows = [-1] * len(student_ids)
        for position, teacher_position in align_offsets(student_offsets, teacher_offsets):
            rows[position] = int(targets.offsets[i]) + teacher_position
        aligned_rows.append(rows)
    if not any(row >= 0 for rows in aligned_rows for row in rows):
        raise ModelError(
            f"{lm.source.path}: its tokens and the teacher's share no position in any answer; use "
            f"the channel sft"
        )
    return aligned_rows


def choose_divergence(channel: LogitKD) -> DivergenceFunction:
    """Return the function of a channel's `divergence`; see `training.losses` for sources."""
    match channel.divergence:
        case "forward":
            return losses.forward_kl
        case "reverse":
            return losses.reverse_kl
        case "skew":
            assert channel.skew is not None, "the schema requires it"
            return losses.skew_kl(channel.skew)
        case "js":
            return losses.jensen_shannon(0.5)
