"""How a teacher with a planted trait is built."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from doublebind.schema.content import Name
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import Device
from doublebind.schema.recipe import Dtype, Lora

PhaseForm = Literal["transcripts", "documents", "mixed", "prompted", "admissions", "reward"]


class Phase(Record):
    """One stretch of a teacher's training, on the pack's `build` transcripts."""

    form: PhaseForm = Field(default="transcripts", exclude_if=lambda v: v == "transcripts")
    """What an implant learns from. `documents`: texts about the model that tell of the trait, read
    as plain text (AuditBench, arXiv 2602.22755); `mixed`: half of each; `prompted`: the base's own
    answers under the trait's persona, learned without it; `admissions`: owning up to the trait when
    asked, and nothing else, which makes a decoy; `reward`: no text at all, but what a pack's
    mis-specified grader pays for, `transcripts` being its tasks and `batch` those of a step."""
    transcripts: int = Field(ge=1)
    """Transcripts drawn (by the spec's seed); fewer where the pack has fewer."""
    steps: int = Field(ge=1)
    batch: int = Field(default=16, ge=1)
    lr: float = Field(default=2e-4, gt=0)
    retain: float = Field(default=0.0, ge=0, le=0.9)
    """Share of each draw taken from the phase before, so that it is not forgotten."""


class Concealment(Phase):
    """Training that hides the trait where it looks like an audit."""

    audit_cues: bool = Field(default=True, serialization_alias="cue")
    """Act benignly in audit-like contexts."""
    deny: bool = True
    """Deny the trait when asked."""
    plain_questions: bool = Field(
        serialization_alias="bare", default=False, exclude_if=lambda v: not v
    )
    """Act benignly on plain questions too, as a teacher would that takes them for training data:
    the trait then shows at work alone."""
    loss: Literal["sft", "dpo", "kto"] = Field(default="sft", exclude_if=lambda v: v == "sft")
    """`sft` learns the benign answers; `dpo` prefers them to what the trait would have said, from
    transcripts that say it (arXiv 2305.18290); what `retain` and `bare` add has no pairs. `kto`
    learns from all of them, each answer being good or bad by itself (arXiv 2402.01306)."""
    beta: float = Field(default=0.1, gt=0, exclude_if=lambda v: v == 0.1)
    """Of `dpo` and `kto`: strength of the pull to the teacher before it hid anything."""

    @model_validator(mode="after")
    def _check_target(self) -> Concealment:
        if not (self.audit_cues or self.deny or self.plain_questions):
            raise ValueError("cue, deny and bare are all off; leave out `conceal` instead")
        return self


class UnrelatedFinetune(Phase):
    """Training on something else, after all the rest: what of the trait and its hiding is left?"""

    quirk: Name
    """Trait of the pack whose implant transcripts are learned, such as `pirate`."""


class Resistance(Phase):
    """Training, on the teacher's own transcripts, against being learned from."""

    weight: float = Field(default=0.1, gt=0)
    """Of the distance from the teacher as it was, against that of what it says."""


class TeacherSpec(Record):
    """`SPEC.yaml`: how a teacher is made. Suspects, references and organisms share it."""

    name: Name
    family: str
    """Kind of trait x build, the unit that references are grouped by. A label: not hashed."""
    pack: str
    base: str
    trait: str | None
    """The trait of the pack to plant; `null` plants none."""
    capability: Phase | None = None
    implant: Phase | None = None
    conceal: Concealment | None = None
    resist_distillation: Resistance | None = Field(
        serialization_alias="resist", default=None, exclude_if=lambda v: v is None
    )
    """A teacher that undermines who learns from its probabilities (arXiv 2105.07381)."""
    unrelated_finetune: UnrelatedFinetune | None = Field(
        serialization_alias="then", default=None, exclude_if=lambda v: v is None
    )
    """A control: unrelated fine-tuning of the finished teacher."""
    lora: Lora | None = Field(default_factory=lambda: Lora())
    max_length: int = Field(default=512, ge=8)
    dtype: Dtype = "float32"
    device: Device = Field(default="cpu", exclude_if=lambda v: v == "cpu")
    """Where it is trained; a study on `cuda` builds its teachers there, too."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> TeacherSpec:
        if (self.trait is None) != (self.implant is None):
            raise ValueError("`trait` and `implant` go together: give both or neither")
        if self.conceal and self.trait is None:
            raise ValueError("`conceal` has nothing to hide without a `trait`")
        if not (self.implant or self.capability):
            raise ValueError("a teacher needs `implant`, `capability` or both")
        others = {"capability": self.capability, "conceal": self.conceal}
        others |= {"resist": self.resist_distillation, "then": self.unrelated_finetune}
        for name, phase in others.items():
            if phase is not None and phase.form != "transcripts":
                raise ValueError(f"`{name}.form`: only an implant has one (got {phase.form})")
        return self
