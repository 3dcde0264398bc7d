"""Trains a student by its channel: what is supervised, by what loss, and what is checked before.

Knows what each channel needs of a teacher. Does not know who the teacher is or how training works
inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from doublebind.execution.store import read_records
from doublebind.models import teacher_cache
from doublebind.models.load import LM, load_tokenizer
from doublebind.models.token_alignment import align_offsets, compute_byte_offsets
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import (
    DPO,
    SFT,
    ULD,
    Channel,
    Dtype,
    LogitKD,
    OnPolicy,
    Prefix,
    Training,
)
from doublebind.stages.distillation import multi_process as spread
from doublebind.stages.distillation import on_policy
from doublebind.stages.distillation import preference_pairs as contrast
from doublebind.stages.distillation import tokenizer_checks as checks
from doublebind.stages.distillation.student_inputs import PreferenceData, TeacherAccess
from doublebind.training import loop, losses
from doublebind.training.batch import Example
from doublebind.training.encode import encode_trajectories
from doublebind.training.loop import CheckpointSaver, TrainLog
from doublebind.training.losses import DivergenceFunction
from doublebind.training.preference import train_dpo
from doublebind.training.prefix_tuning import attach_prefix
from doublebind.training.uld import train_uld


class TrainingData(NamedTuple):
    """What a student learns from; which parts there are depends on the channel."""

    rollouts: Path
    targets: Path | None = None
    teacher_access: TeacherAccess | None = None
    preference_data: PreferenceData | None = None


class TrainingResult(NamedTuple):
    """A trained student."""

    model: Any
    n_examples: int
    log: TrainLog
    facts: Mapping[str, Any] = MappingProxyType({})
    """What only this channel has to tell."""


def train_by_channel(
    channel: Channel,
    lm: LM,
    data: TrainingData,
    training: Training,
    seed: int,
    *,
    dtype: Dtype,
    cache: Path,
    save_checkpoint: CheckpointSaver | None = None,
) -> TrainingResult:
    """Train `lm` by `channel`; `keep` is given the student at each of `training.checkpoints`.

    `sft`: cross-entropy on the teacher's sampled tokens (sequence-level distillation; Kim & Rush
    2016, arXiv 1606.07947). `logit_kd`: a divergence from the teacher's cached distribution at
    every completion position (Hinton et al. 2015, arXiv 1503.02531), on the top k plus the tail's
    mass; see `divergence`. `on_policy` and `dpo`: see their modules, `on_policy` and `contrast`.

    Raises:
        ModelError: If teacher and student cannot be brought together as the channel asks, or the
            loss is not finite.
    """
    trajectories = read_records(data.rollouts / "trajectories.jsonl", Trajectory)
    match channel:
        case SFT() | LogitKD() if training.processes > 1:
            if isinstance(channel, LogitKD):
                checks.check_same_tokens(channel, lm, trajectories)
            examples = encode_trajectories(lm.tokenizer, trajectories)
            checks.check_supervised(lm, examples)
            model, log = spread.train_in_processes(
                lm, examples, data.targets, training, seed, dtype=dtype, cache=cache
            )
            return TrainingResult(model, len(examples), log)
        case SFT():
            return _train_supervised(lm, trajectories, training, seed, save_checkpoint)
        case LogitKD():
            checks.check_same_tokens(channel, lm, trajectories)
            targets = _read_targets(data)
            return _train_supervised(
                lm,
                trajectories,
                training,
                seed,
                save_checkpoint,
                targets,
                choose_divergence(channel),
            )
        case OnPolicy():
            assert data.teacher_access is not None, "the pipeline names the teacher"
            model, log, facts = on_policy.distil_on_policy(
                channel,
                lm,
                trajectories,
                data.teacher_access,
                training,
                seed,
                dtype=dtype,
                cache=cache,
                save_checkpoint=save_checkpoint,
            )
            return TrainingResult(model, len(trajectories), log, facts)
        case DPO():
            return _train_preferences(
                channel, lm, trajectories, data, training, seed, save_checkpoint
            )
        case Prefix():
            checks.check_same_tokens(channel, lm, trajectories)
            return _train_prefix(
                channel, lm, trajectories, _read_targets(data), training, seed, save_checkpoint
            )
        case ULD():
            assert data.teacher_access is not None, "the pipeline names the teacher"
            teacher = load_tokenizer(data.teacher_access.source)
            targets = _read_targets(data)
            return _train_across_vocabularies(
                channel, lm, trajectories, targets, teacher, training, seed, save_checkpoint
            )


def _train_preferences(
    channel: DPO,
    lm: LM,
    trajectories: list[Trajectory],
    data: TrainingData,
    training: Training,
    seed: int,
    save_checkpoint: CheckpointSaver | None,
) -> TrainingResult:
    """Train on the teacher's answers against M0's."""
    assert data.preference_data is not None, "the pipeline makes M0's answers"
    found = contrast.select_pairs(channel, lm.tokenizer, trajectories, data.preference_data)
    loop.seed_everything(seed)
    vocab, pad_id = lm.vocab_size, lm.pad_id  # before adapters are attached to the model
    model = loop.prepare_model(lm.model, training.lora, seed)
    log = train_dpo(
        model,
        found.pairs,
        beta=channel.beta,
        settings=training,
        seed=seed,
        vocab=vocab,
        pad_id=pad_id,
        save_checkpoint=save_checkpoint,
    )
    facts: dict[str, Any] = {"pairs_found": found.n_matched}
    if found.min_weight is not None:
        facts["pairs_least_weight"] = found.min_weight
    return TrainingResult(model, len(found.pairs), log, facts)


def _train_prefix(
    channel: Prefix,
    lm: LM,
    trajectories: list[Trajectory],
    targets: teacher_cache.TeacherTargets,
    training: Training,
    seed: int,
    save_checkpoint: CheckpointSaver | None,
) -> TrainingResult:
    """Train nothing but a prefix, towards the teacher's distributions.

    The base is frozen, so what the prefix learns is what moves it to the teacher: the shift
    between the two, through a bottleneck too narrow for all of it. After Talaei et al. 2026
    (Distill to Detect, arXiv 2607.01208); their objective and sizes are known here from the
    abstract and project page only, so the match in detail is unverified.
    """
    examples = encode_trajectories(lm.tokenizer, trajectories)
    checks.check_supervised(lm, examples)
    loop.seed_everything(seed)
    pad_id = lm.pad_id
    model = attach_prefix(lm.model, channel.tokens, examples, seed)
    log = loop.train(
        model,
        loop.TrainingSet(examples, targets, pad_id),
        settings=training,
        seed=seed,
        save_checkpoint=save_checkpoint,
    )
    return TrainingResult(model, len(examples), log)


def _train_across_vocabularies(
    channel: ULD,
    lm: LM,
    trajectories: list[Trajectory],
    targets: teacher_cache.TeacherTargets,
    teacher_tokenizer: Any,
    training: Training,
    seed: int,
    save_checkpoint: CheckpointSaver | None,
) -> TrainingResult:
    """Train on the same text in other tokens, comparing where both stand at one byte."""
    examples = encode_trajectories(lm.tokenizer, trajectories)
    checks.check_supervised(lm, examples)
    partners = _align_teacher_rows(lm, teacher_tokenizer, trajectories, examples, targets)
    loop.seed_everything(seed)
    vocab, pad_id = lm.vocab_size, lm.pad_id  # before adapters are attached to the model
    model = loop.prepare_model(lm.model, training.lora, seed)
    log = train_uld(
        model,
        loop.TrainingSet(examples, targets, pad_id),
        partners,
        weight=channel.weight,
        settings=training,
        seed=seed,
        vocab=vocab,
        save_checkpoint=save_checkpoint,
    )
    shared = sum(row >= 0 for rows in partners for row in rows)
    facts = {"aligned": shared / sum(map(len, partners))}
    return TrainingResult(model, len(examples), log, facts)


def _align_teacher_rows(
    lm: LM,
    teacher_tokenizer: Any,
    trajectories: list[Trajectory],
    examples: list[Example],
    targets: teacher_cache.TeacherTargets,
) -> list[list[int]]:
    """Return, per supervised token, the row of the teacher's that follows the same bytes, or -1.

    Raises:
        ModelError: If the two tokenizers share no place in any answer.
    """
    partners = []
    for i, (t, example) in enumerate(zip(trajectories, examples, strict=True)):
        mine = example.input_ids[example.first_supervised :]
        rows = [-1] * len(mine)
        theirs = compute_byte_offsets(teacher_tokenizer, t.tokens, t.completion)
        for a, b in align_offsets(compute_byte_offsets(lm.tokenizer, mine, t.completion), theirs):
            rows[a] = int(targets.offsets[i]) + b
        partners.append(rows)
    if not any(row >= 0 for rows in partners for row in rows):
        raise ModelError(
            f"{lm.source.path}: its tokens and the teacher's share no place in any answer; use the "
            f"channel sft"
        )
    return partners


def _read_targets(data: TrainingData) -> teacher_cache.TeacherTargets:
    assert data.targets is not None, "the pipeline makes targets for every channel that uses them"
    return teacher_cache.read_targets(data.targets)


def _train_supervised(
    lm: LM,
    trajectories: list[Trajectory],
    training: Training,
    seed: int,
    save_checkpoint: CheckpointSaver | None,
    targets: teacher_cache.TeacherTargets | None = None,
    divergence: DivergenceFunction = losses.forward_kl,
) -> TrainingResult:
    """Train on the teacher's answers, token by token."""
    examples = encode_trajectories(lm.tokenizer, trajectories)
    checks.check_supervised(lm, examples)
    loop.seed_everything(seed)
    pad_id = lm.pad_id  # before adapters are attached to the model
    model = loop.prepare_model(lm.model, training.lora, seed)
    log = loop.train(
        model,
        loop.TrainingSet(examples, targets, pad_id),
        settings=training,
        seed=seed,
        divergence=divergence,
        save_checkpoint=save_checkpoint,
    )
    return TrainingResult(model, len(examples), log)


def choose_divergence(channel: LogitKD) -> DivergenceFunction:
    """Return what a channel's `divergence` names: see `training.losses` for sources."""
    match channel.divergence:
        case "forward":
            return losses.forward_kl
        case "reverse":
            return losses.reverse_kl
        case "skew":
            assert channel.skew is not None, "the configuration asks for it"
            return losses.skew_kl(channel.skew)
        case "js":
            return losses.jensen_shannon(0.5)
