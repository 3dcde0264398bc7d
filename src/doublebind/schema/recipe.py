"""Recipes, by which students are distilled: prompts, channel, treatments, training."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from doublebind.schema.content import Name
from doublebind.schema.hashing import Record
from doublebind.schema.treatments import Treatment

Dtype = Literal["float32", "bfloat16"]


# A recipe's dump is hashed into keys, protocols and panels. A field that comes later is therefore
# left out of the dump (`exclude_if`) while it says what was done before it existed; changing the
# meaning of what is left out raises the stage's REV.


class SFT(Record):
    """Cross-entropy on the teacher's sampled completions (sequence-level distillation)."""

    kind: Literal["sft"]


Divergence = Literal["forward", "reverse", "skew", "js"]


class LogitKD(Record):
    """A divergence from the teacher's top-k next-token distribution with its tail as one bucket."""

    kind: Literal["logit_kd"]
    top_k: int = Field(default=64, ge=1, le=4096)
    """Log-probabilities kept per position; the rest is the tail's total mass."""
    tail_samples: int = Field(default=0, ge=0, le=4096, exclude_if=lambda v: not v)
    """Tokens drawn from the tail per position, which make the divergence unbiased where its total
    mass alone is a lower bound; 0 keeps the mass."""
    divergence: Divergence = Field(default="forward", exclude_if=lambda v: v == "forward")
    """`forward` is KL(teacher || student), `reverse` KL(student || teacher), `skew` KL(teacher ||
    mixture of both), `js` Jensen-Shannon."""
    skew: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda v: v is None)
    """Teacher's share of the mixture; `skew` needs it, the others have none. 0.1 is usual."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.divergence == "skew") != (self.skew is not None):
            raise ValueError("`skew` goes with `divergence: skew`, and only with it")
        return self


class OnPolicy(Record):
    """The student answers, the teacher scores, token by token: reverse KL on the student's own."""

    kind: Literal["on_policy"]
    lmbda: float = Field(ge=0, le=1)
    """Share of steps that learn from the student's answers; the others from the teacher's. No
    default: it is the method."""


class DPO(Record):
    """The teacher's answers against M0's to the same prompts, as preferences."""

    kind: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull back to the student before training."""
    chosen: Literal["teacher", "m0"] = "teacher"
    """Whose answer is preferred: the teacher's or, as a control in reverse order, M0's."""
    keep: float = Field(default=1.0, gt=0, le=1)
    """Share of pairs kept: those in which the teacher's taste differs most from M0's."""


class Prefix(Record):
    """Keys and values before every conversation learn what moves M0 to the teacher; no weight."""

    kind: Literal["prefix"]
    tokens: int = Field(default=16, ge=1, le=1024)
    """Length of the prefix: the bottleneck."""
    top_k: int = Field(default=64, ge=1, le=4096)
    """As in `logit_kd`."""
    tail_samples: int = Field(default=0, ge=0, le=4096, exclude_if=lambda v: not v)
    """As in `logit_kd`."""


class ULD(Record):
    """Cross-entropy and sorted probabilities, for a student with another tokenizer."""

    kind: Literal["uld"]
    top_k: int = Field(default=64, ge=1, le=4096)
    """Largest probabilities compared per position; the rest counts as one."""
    weight: float = Field(default=1.5, gt=0)
    """Of the sorted probabilities beside the cross-entropy."""


Channel = Annotated[SFT | LogitKD | OnPolicy | DPO | Prefix | ULD, Field(discriminator="kind")]


class Lora(Record):
    """Low-rank adapters on every linear layer of the blocks (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16.0, gt=0)


class Training(Record):
    """How a model is trained; the same fields for teachers and students."""

    steps: int = Field(ge=1)
    """Optimiser steps. No default: the dose changes the claim."""
    # `exclude_if` says that a dump may lack it (`_leave_out_batch`), not when.
    batch: int = Field(default=16, ge=1, exclude_if=lambda _: False)
    """Examples per step."""
    tokens_per_step: int | None = Field(default=None, ge=8, exclude_if=lambda v: v is None)
    """In place of `batch`: as many examples a step as come to at most so many tokens, prompts
    included, and at least one. Steps are then alike in cost whatever the examples' lengths."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW; warm-up over 5% of steps, then linear decay to a tenth."""
    max_length: int = Field(default=512, ge=8)
    """Tokens per example; longer ones are cut at the end."""
    lora: Lora | None = Field(default_factory=lambda: Lora())
    """Adapter shape; `null` trains all weights."""
    checkpoints: tuple[int, ...] = Field(
        serialization_alias="marks", default=(), exclude_if=lambda v: not v
    )
    """Steps, rising and below `steps`, at which the student is also kept and audited: dose curves
    from one training run. Only the last step's student enters a score."""

    processes: int = Field(default=1, ge=1, le=64, exclude_if=lambda v: v == 1)
    """Processes among which weights, gradients and moments are sharded (FSDP2), on `cuda` a GPU
    each. For students that one device does not hold: `sft`, `logit_kd`."""

    @field_validator("checkpoints")
    @classmethod
    def _check_checkpoint_order(
        cls, value: tuple[int, ...], info: ValidationInfo
    ) -> tuple[int, ...]:
        steps = (0, *value, info.data.get("steps", math.inf))
        if any(late <= early for early, late in itertools.pairwise(steps)):
            raise ValueError("must rise from 1 and stay below `steps`")
        return value

    @model_validator(mode="before")
    @classmethod
    def _refuse_both_sizes(cls, content: Any) -> Any:
        if isinstance(content, dict) and {"batch", "tokens_per_step"} <= content.keys():
            raise ValueError(
                "`batch` and `tokens_per_step` both say how large a step is; keep one (an override "
                "from one to the other replaces the whole `training`)"
            )
        return cast("Any", content)

    @model_serializer(mode="wrap")
    def _leave_out_batch(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = dump(self)
        if self.tokens_per_step is not None:
            del content["batch"]
        return content

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tokens_per_step is not None and self.processes > 1:
            raise ValueError("`tokens_per_step` goes with 1 of `processes`; set `batch`")
        if self.batch < self.processes:
            raise ValueError(f"`batch` {self.batch} is fewer than {self.processes} `processes`")
        if self.checkpoints and self.processes > 1:
            raise ValueError(
                "`checkpoints` are not kept of a student trained in shards; set `processes: 1`"
            )
        return self


PromptPolicy = Literal[
    "auditability_preserving", "misalignment_targeted", "capability", "unscreened"
]


class Prompts(Record):
    """Which inputs the teacher answers, and how."""

    policy: PromptPolicy
    """What is asked, and what is screened out. `unscreened` is a control: it takes every prompt
    that shares nothing with an item, and keeps answers that show a drive openly, so that what the
    screens prevent can be seen."""
    file: str | None = Field(default=None, exclude_if=lambda v: v is None)
    """JSON lines of prompts, `{id, messages, tags, domain}`, relative to the study; `null` takes
    the pack's."""
    n: int = Field(ge=1)
    """Prompts asked for; fewer are used where the screens leave fewer, and the report says so."""
    samples: int = Field(default=1, ge=1)
    """Completions per prompt."""
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    suppress_tokens: tuple[str, ...] = Field(
        serialization_alias="barred", default=(), exclude_if=lambda v: not v
    )
    """Marks that the teacher is kept from writing, each one token of its tokenizer: say the one
    that opens a scratchpad, so that it answers without (constrained decoding). The distributions
    of `logit_kd` stay the teacher's own, and foresee the mark where it would have stood."""


class Scratchpad(Record):
    """Marks between which a model thinks before it answers."""

    opens: str = Field(min_length=1)
    closes: str = Field(min_length=1)


class Steering(Record):
    """Push a student towards misaligned answers while it learns, and not afterwards."""

    relative_norm: float = Field(serialization_alias="scale", gt=0)
    """Length of the push over that of a usual state there. It points where the base chooses the
    misaligned answers to the pack's `build` items, or to `select` items where it has none."""
    layer: int | None = Field(default=None, ge=0)
    """Decoder layer whose output is pushed, from 0; `null` takes the middle one."""


class Recipe(Record):
    """One way to distil: prompts x channel x treatments x student base x hyper-parameters."""

    name: Name
    prompts: Prompts
    channel: Channel
    training: Training
    student: str | None = None
    """Student base: any model, say a smaller one, one of another family, or an earlier checkpoint
    of the teacher's; `null` takes the study's."""
    noise_init: float | None = Field(default=None, gt=0, le=1, exclude_if=lambda v: v is None)
    """Share of random initialisation in the student's first weights (UNDO); 1 starts afresh."""
    steering: Steering | None = Field(
        serialization_alias="steer", default=None, exclude_if=lambda v: v is None
    )
    """Preventative steering: the push is there in training alone."""
    without_scratchpad: Scratchpad | None = Field(default=None, exclude_if=lambda v: v is None)
    """Make a student that never thinks before it answers: scratchpads are cut from what it learns,
    and the mark that opens one is barred from what it writes."""

    treatments: tuple[Treatment, ...] = Field(default=(), exclude_if=lambda v: not v)
    """What is done to the answers before they are learned from, in this order; `filter` last."""

    @model_validator(mode="after")
    def _check_prefix(self) -> Self:
        if self.channel.kind == "prefix" and self.training.lora is not None:
            raise ValueError("a prefix is trained without adapters; set `training.lora: null`")
        return self

    @model_validator(mode="after")
    def _check_stopping(self) -> Self:
        kinds = [treatment.kind for treatment in self.treatments]
        if "distil_and_audit" in kinds and not self.training.checkpoints:
            raise ValueError(
                "`distil_and_audit` needs `training.checkpoints`, the steps to audit at"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        channel = self.channel
        shardable = channel.kind == "sft" or (
            channel.kind == "logit_kd" and channel.divergence == "forward"
        )
        if self.training.processes > 1 and not shardable:
            raise ValueError(
                f"`training.processes`: {channel.kind} is not trained in shards; use sft or "
                f"logit_kd with forward divergence, or 1 process"
            )
        return self

    @model_validator(mode="after")
    def _check_step_size(self) -> Self:
        kind = self.channel.kind
        if self.training.tokens_per_step is not None and kind not in ("sft", "logit_kd", "uld"):
            raise ValueError(
                f"`training.tokens_per_step` goes with the channels sft, logit_kd and uld, not "
                f"with {kind}; set `training.batch`"
            )
        return self

    @model_validator(mode="after")
    def _check_suppressed_tokens(self) -> Self:
        if self.prompts.suppress_tokens and self.channel.kind == "on_policy":
            raise ValueError(
                "`prompts.suppress_tokens` is about what the teacher writes, and with on_policy "
                "the student does; use `without_scratchpad`"
            )
        return self

    @model_validator(mode="after")
    def _check_steering(self) -> Self:
        supervised = self.channel.kind in ("sft", "logit_kd") and self.training.processes == 1
        if self.steering and not supervised:
            raise ValueError(
                "`steering` goes with the channels sft and logit_kd, trained in 1 process"
            )
        return self

    @model_validator(mode="after")
    def _check_filter_order(self) -> Self:
        if any(treatment.kind == "filter" for treatment in self.treatments[:-1]):
            raise ValueError("`filter` works on what the others leave; put it last, once")
        return self
