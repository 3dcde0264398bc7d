"""Arguments and results that all channels share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from doublebind.models.load import LM
from doublebind.models.teacher_cache import TeacherTargets, read_targets
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import Dtype, Training
from doublebind.stages.distillation.student_inputs import TeacherAccess, TrainingData
from doublebind.stages.distillation.tokenizer_checks import check_supervised
from doublebind.training import loop
from doublebind.training.batch import Example
from doublebind.training.encode import encode_trajectories


class TrainingResult(NamedTuple):
    """A trained student."""

    model: Any
    n_examples: int
    log: loop.TrainLog
    facts: Mapping[str, Any] = MappingProxyType({})
    """Facts of this channel only, for `student.json`."""


class PreparedStudent(NamedTuple):
    """A model ready for training; sizes are read before adapters are attached."""

    model: Any
    vocab_size: int
    pad_id: int


class ChannelContext(NamedTuple):
    """A student to train, with its data and settings."""

    lm: LM
    data: TrainingData
    trajectories: list[Trajectory]
    training: Training
    seed: int
    dtype: Dtype
    cache: Path
    save_checkpoint: loop.CheckpointSaver | None = None
    """Called with the student at each of `training.checkpoints`."""

    @property
    def teacher_access(self) -> TeacherAccess:
        """The teacher, for channels that use it during training."""
        assert self.data.teacher_access is not None, "the planner sets it for these channels"
        return self.data.teacher_access

    def read_targets(self) -> TeacherTargets:
        """Read the teacher's cached distributions."""
        assert self.data.targets is not None, "the planner sets them for channels that use them"
        return read_targets(self.data.targets)

    def encode_examples(self) -> list[Example]:
        """Encode the trajectories in the student's tokens.

        Raises:
            ModelError: If the tokenizer cannot write an answer, or no token is supervised.
        """
        examples = encode_trajectories(self.lm.tokenizer, self.trajectories)
        check_supervised(self.lm, examples)
        return examples

    def prepare_student(self) -> PreparedStudent:
        """Seed all generators and make the student's weights trainable."""
        loop.seed_everything(self.seed)
        vocab_size = self.lm.vocab_size
        pad_id = self.lm.pad_id
        model = loop.prepare_model(self.lm.model, self.training.lora, self.seed)
        return PreparedStudent(model, vocab_size, pad_id)
