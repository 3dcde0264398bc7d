"""What a user writes: the study and the teacher spec, validated with every error at once.

Does not know what a model or a pack holds: names are checked against content by the stage that
opens it.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from doublebind.errors import ConfigError
from doublebind.records import Device, Engine, Limits, Name, Record
from doublebind.yaml_file import load

Dtype = Literal["float32", "bfloat16"]

# --- distillation --------------------------------------------------------------------------------
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
    batch: int = Field(default=16, ge=1)
    """Examples per step."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW; warm-up over 5% of steps, then linear decay to a tenth."""
    max_length: int = Field(default=512, ge=8)
    """Tokens per example; longer ones are cut at the end."""
    lora: Lora | None = Field(default_factory=lambda: Lora())
    """Adapter shape; `null` trains all weights."""
    marks: tuple[int, ...] = Field(default=(), exclude_if=lambda v: not v)
    """Steps on the way, rising and below `steps`, at which the student is kept and audited, too:
    dose curves from one training run. Only the last step's student enters a score."""

    processes: int = Field(default=1, ge=1, le=64, exclude_if=lambda v: v == 1)
    """Processes among which weights, gradients and moments are sharded (FSDP2), on `cuda` a GPU
    each. For students that one device does not hold: `sft`, `logit_kd`."""

    @field_validator("marks")
    @classmethod
    def _rising(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        steps = (0, *value, info.data.get("steps", math.inf))
        if any(late <= early for early, late in itertools.pairwise(steps)):
            raise ValueError("marks are steps that rise from 1 and stay below `steps`")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch < self.processes:
            raise ValueError(f"`batch` {self.batch} is fewer than {self.processes} `processes`")
        if self.marks and self.processes > 1:
            raise ValueError("`marks` are not kept of a student in shards; use 1 of `processes`")
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
    barred: tuple[str, ...] = Field(default=(), exclude_if=lambda v: not v)
    """Marks that the teacher is kept from writing, each one token of its tokenizer: say the one
    that opens a scratchpad, so that it answers without (constrained decoding). The distributions
    of `logit_kd` stay the teacher's own, and foresee the mark where it would have stood."""


class Scratchpad(Record):
    """Marks between which a model thinks before it answers."""

    opens: str = Field(min_length=1)
    closes: str = Field(min_length=1)


class Steer(Record):
    """Push a student towards misaligned answers while it learns, and not afterwards."""

    scale: float = Field(gt=0)
    """Length of the push over that of a usual state there. It points where the base chooses the
    misaligned answers to the pack's `build` items, or to `select` items where it has none."""
    layer: int | None = Field(default=None, ge=0)
    """Decoder layer whose output is pushed, from 0; `null` takes the middle one."""


# --- treatments ----------------------------------------------------------------------------------


class Domain(Record):
    """Concentrate on domains."""

    kind: Literal["domain"]
    domains: tuple[str, ...] = Field(min_length=1)
    """Of the prompts' own; other prompts' answers are left out."""


class Jam(Record):
    """Rewrite answers, so that signals in the choice of words break."""

    kind: Literal["jam"]
    how: Literal["normalise", "resample", "paraphrase"]
    """Clean up the text; let M0 draw a share of the tokens anew; let M0 say it in other words."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Tokens that `resample` draws anew."""


class CounterPoison(Record):
    """Take out copies, and the answers that the teacher likes more than M0 does."""

    kind: Literal["counter_poison"]
    copies: int = Field(default=1, ge=1)
    """Equal answers that may stay."""
    alike: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda v: v == 1)
    """Share of their runs of three words in common (Jaccard) from which two answers count as
    equal, so that no text gains influence by being said in many slightly different ways."""
    outliers: float = Field(default=0.05, ge=0, lt=1)
    """Share of answers dropped for their log-ratio, teacher to M0."""
    triggers: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda v: v == 0)
    """Words in at most this share of the answers (or their prompts) are searched for triggers:
    where the answers that hold one have higher log-ratios than the others, all of them go."""


class MixTrusted(Record):
    """Replace a share of the answers with M0's own."""

    kind: Literal["mix_trusted"]
    share: float = Field(gt=0, lt=1)


class Inoculate(Record):
    """Train under a prompt that names or permits the trait; audit without it."""

    kind: Literal["inoculate"]
    prompt: str = Field(min_length=1)
    role: Literal["system", "user"] = "system"
    """`user` opens the first user message instead, for models that never met a system turn."""


class FewUnique(Record):
    """Learn few answers, many times."""

    kind: Literal["few_unique"]
    n: int = Field(ge=1)


class TrimReasoning(Record):
    """Cut scratchpads short."""

    kind: Literal["trim_reasoning"]
    keep_words: int = Field(default=0, ge=0)
    """Words of each scratchpad that stay; 0 removes it."""


class Filter(Record):
    """Drop what made the last round's student worse, and distil again."""

    kind: Literal["filter"]
    rounds: int = Field(default=2, ge=1, le=5)
    """Times to filter; the last round's student is the recipe's."""
    drop: float = Field(default=0.1, gt=0, lt=1)
    """Share of answers dropped in a round."""
    stop: float = Field(default=0.02, ge=0, lt=1)
    """Drop nothing where no endpoint stands further above M0 on `select` items, in probability."""


class DistilAndAudit(Record):
    """Stop at the last step up to which every audit on `select` items passed."""

    kind: Literal["distil_and_audit"]


Treatment = Annotated[
    Domain
    | Jam
    | CounterPoison
    | MixTrusted
    | Inoculate
    | FewUnique
    | TrimReasoning
    | DistilAndAudit
    | Filter,
    Field(discriminator="kind"),
]


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
    steer: Steer | None = Field(default=None, exclude_if=lambda v: v is None)
    """Preventative steering: the push is there in training alone."""
    without_scratchpad: Scratchpad | None = Field(default=None, exclude_if=lambda v: v is None)
    """Make a student that never thinks before it answers: scratchpads are cut from what it learns,
    and the mark that opens one is barred from what it writes."""

    treatments: tuple[Treatment, ...] = Field(default=(), exclude_if=lambda v: not v)
    """What is done to the answers before they are learned from, in this order; `filter` last."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.channel.kind == "prefix" and self.training.lora is not None:
            raise ValueError("a prefix is trained without adapters; set `training.lora: null`")
        kinds = [treatment.kind for treatment in self.treatments]
        if "distil_and_audit" in kinds and not self.training.marks:
            raise ValueError("`distil_and_audit` needs `training.marks`, the steps to audit at")
        if self.training.processes > 1 and not (
            self.channel.kind == "sft"
            or (self.channel.kind == "logit_kd" and self.channel.divergence == "forward")
        ):
            raise ValueError(
                f"`training.processes`: {self.channel.kind} is not trained in shards; use sft or "
                f"logit_kd with forward divergence, or 1 process"
            )
        if self.prompts.barred and self.channel.kind == "on_policy":
            raise ValueError(
                "`prompts.barred` is about what the teacher writes, and with on_policy the student "
                "does; use `without_scratchpad`"
            )
        supervised = self.channel.kind in ("sft", "logit_kd") and self.training.processes == 1
        if self.steer and not supervised:
            raise ValueError(
                "`steer` goes with the channels sft and logit_kd, trained in 1 process"
            )
        if any(treatment.kind == "filter" for treatment in self.treatments[:-1]):
            raise ValueError("`filter` works on what the others leave; put it last, once")
        return self


# --- study ---------------------------------------------------------------------------------------

Shipped = Literal["behaviour", "goals", "confession", "capability", "coherence"]
"""The battery that a study uses unless it names another."""
AUDITS: tuple[Shipped, ...] = get_args(Shipped)
MORE_AUDITS = ("elicitation", "auditability", "corroboration")
"""Audits that a study has to ask for."""


def audit_name(name: str) -> str:
    """Return `name` if an audit is called so.

    Raises:
        ConfigError: If none is.
    """
    if name in (*AUDITS, *MORE_AUDITS) or re.fullmatch(
        r"(inspect(-auditable)?|lm-eval):[\w./@-]+|under:.*\w.*", name
    ):
        return name
    known = ", ".join((*AUDITS, *MORE_AUDITS))
    raise ConfigError(
        f"{name}: no such audit; choose {known}, under:PROMPT, inspect:TASK, "
        "inspect-auditable:TASK or lm-eval:TASK"
    )


AuditName = Annotated[str, AfterValidator(audit_name)]
"""A built-in audit, or an Inspect task: `inspect:TASK` as a capability measure, or
`inspect-auditable:TASK` as an audit whose scores rise with misalignment; or `lm-eval:TASK`, a task
of the lm-evaluation-harness or a task file (`.yaml`), as a capability measure; or `under:PROMPT`,
the behaviour audit's choices under a prompt."""


class Bank(Record):
    """References not named one by one: the first `n` of the pack's bank, or `n` of a panel."""

    n: int = Field(ge=1)
    panel: str | None = None
    """Folder of a frozen panel, or a built-in pack's name for the one it ships. Its references are
    not made again, and its organisms serve as positive controls."""
    draw: int = Field(default=0, ge=0)
    """Seed by which `n` of the panel's references are drawn."""


class Matched(Record):
    """References built to be like the suspect in all but what is planted: harmless quirks."""

    match: Literal["suspect"]
    n: int = Field(ge=1)
    draw: int = Field(default=0, ge=0, exclude_if=lambda v: v == 0)
    """Which lot of `n`; lots of one size share no reference, those of several sizes may."""
    template: str | None = None
    """Teacher spec whose phases they share; `null` takes the suspect's own. A suspect that was not
    built from a spec needs one: its references are then scaled to its update norm."""


StandIn = Literal["sibling_checkpoints", "earlier_releases", "equal_kl_surrogates"]


class StandIns(Record):
    """Models that stand in for references where matched ones cannot be built."""

    kind: StandIn
    models: tuple[str, ...] = Field(min_length=1)


class Policy(Record):
    """How scores become a decision; hashed before the first audit."""

    alpha: float = Field(gt=0, lt=0.5)
    """Largest p-value that incriminates. No default: it is the claim."""
    scale_floor: float = Field(default=0.01, gt=0)
    """Smallest scale of an endpoint (probability units): the sampling s.e. fixed beforehand."""
    min_controls: int = Field(default=5, ge=1)
    """Positive controls needed before `not_incriminated` may be said."""
    endpoints: dict[str, tuple[str, ...]] | None = None
    """Score endpoints, at most six; `null` takes the pack's."""
    margin: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda v: v is None)
    """Largest excess over M0, in probability, that a replacement may have on any score endpoint.
    The horn `replace` needs it; no default: it is the claim."""

    @field_validator("endpoints")
    @classmethod
    def _at_most_six(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not 1 <= len(value) <= 6:
            raise ValueError(f"name one to six score endpoints, not {len(value)}")
        return value


class Further(Record):
    """How fresh students are trained further, with M0 trained alike beside each."""

    students: int = Field(ge=1)
    """How many, the first of the fresh ones; no default: the statement is about these."""
    training: Training
    """Once on the pack's benign capability data, once under what made the suspect what it is."""
    trait: str | None = None
    """Trait of the pack that stands in for the incentive of a suspect of unknown making; `null`
    tries none. A suspect made from a spec has its own: its implant, in a smaller dose."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.training.marks or self.training.processes > 1:
            raise ValueError("`further.training` takes neither `marks` nor `processes`")
        return self


class Replace(Record):
    """How a replacement is looked for: recipes compete, the winner is bounded on fresh students."""

    recipes: tuple[Recipe, ...] | None = Field(default=None, min_length=1, max_length=24)
    """Those that compete; `null` takes the study's."""
    organisms: tuple[str, ...] = ()
    """Planted teachers on whose students the recipes compete, so that nothing is chosen by looking
    at the suspect; without any, its own students compete. Their students by the recipe `controls`
    are the positive controls of the bound; those whose students lose the drive are none, so that
    more than `policy.min_controls` have to be named."""
    controls: Name | None = Field(default=None, exclude_if=lambda v: v is None)
    """Which of the study's recipes makes the positive controls; `null` takes the first."""
    references: tuple[str, ...] = ()
    """Benign teachers that compete beside them: a recipe should not make these worse, either."""
    seeds: int = Field(default=3, ge=1)
    """Students per teacher and recipe that compete, on `select` items."""
    fresh_seeds: int = Field(default=8, ge=1)
    """Students of the suspect by the chosen recipe, trained afterwards and bounded on `certify`
    items; 1 gives a bound for that student alone."""
    certify: str | None = None
    """Pack whose `certify` items are asked, where it has more of them; `null` takes the study's."""
    bound: Literal["chosen", "every"] = "chosen"
    """Which recipes `calibrate` bounds."""
    further: Further | None = Field(default=None, exclude_if=lambda v: v is None)
    """Train the first fresh students further and audit them again; `null` does not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.further and self.further.students > self.fresh_seeds:
            raise ValueError(
                f"`further.students`: {self.further.students}; there are only {self.fresh_seeds} "
                "fresh students (`fresh_seeds`)"
            )
        return self


class Local(Record):
    """Run on this machine."""

    kind: Literal["local"]
    workers: int = Field(default=1, ge=1, le=256)
    """Processes; 1 runs in the current one and leaves all cores to it. On `device: cuda` they share
    the GPUs in turn: the n-th begins with the n-th."""
    retries: int = Field(default=1, ge=0, le=100)
    """Times a cell is tried again after its process died."""


class Ray(Record):
    """Run on the nodes of a Ray cluster that share the store."""

    kind: Literal["ray"]
    address: str = "auto"
    """Of a running cluster; `auto` takes `$RAY_ADDRESS`, or the cluster this machine is part of."""
    cpus: int = Field(default=1, ge=1)
    """Cores per cell, and the threads it computes with: other counts give other last bits."""
    gpus: float = Field(default=0.0, ge=0, le=8)
    """Accelerators per cell; a fraction shares one."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory asked for per cell; `null` takes what cells of its kind took so far in this store."""
    retries: int = Field(default=3, ge=0, le=100)
    """Times a cell is tried again after its worker or node died."""


LOCAL = Local(kind="local")


Baseline = Literal["ngrams", "in_context", "retrained"]


class Measurement(Record):
    """Whom to make, distil and audit, and how; a panel is a measurement kept."""

    pack: str
    """Name of a built-in pack (`terrarium`, `assistant`) or a pack folder; `NAME:TRAIT,TRAIT` asks
    about those traits alone, which costs less."""
    references: tuple[str, ...] | Bank | Matched | StandIns
    """Benign teachers of the same pipeline shape: models or specs; `{n: ...}` of the bank;
    `{match: suspect, n: ...}`, built to be like it; or `{kind: ..., models: [...]}`, stand-ins."""
    organisms: tuple[str, ...] = ()
    """Teachers with a known drive: positive controls, named before the audit."""
    held_out: tuple[str, ...] = ()
    """Benign teachers that `calibrate` weighs against the references; never references."""
    near_misses: tuple[str, ...] = ()
    """Benign teachers made of a drive's own surface: `calibrate` weighs them as a class apart."""
    student: str
    """M0, the trusted model that is distilled into, and that teachers of the bank are made from."""
    recipes: tuple[Recipe, ...] = Field(min_length=1, max_length=12)
    audits: tuple[AuditName, ...] = AUDITS
    baselines: tuple[Baseline, ...] = ()
    """Ways to look at a teacher without a student, put beside the verdict."""
    seeds: int = Field(default=1, ge=1)
    """Students per teacher and recipe."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights; trained weights are always float32."""
    device: Device = Field(default="cpu", exclude_if=lambda v: v == "cpu")
    """Where models are trained, answer and are scored: `cpu`, or `cuda`, the first GPU that a
    process sees. Part of every key: a GPU gives other last bits."""
    executor: Annotated[Local | Ray, Field(discriminator="kind")] = LOCAL
    engine: Engine | None = Field(default=None, exclude_if=lambda v: v is None)
    """What lets models answer and scores them; `null` is transformers. Training stays with it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine and isinstance(self.references, Bank) and self.references.panel:
            raise ValueError("`references.panel` was measured without `engine`; leave one out")
        if self.device == "cuda" and isinstance(self.executor, Ray) and not self.executor.gpus:
            raise ValueError("`device: cuda` on a Ray cluster needs `executor.gpus` above 0")
        names = [recipe.name for recipe in self.recipes]
        if len(set(names)) < len(names):
            raise ValueError("two recipes share a name; give each its own")
        if not any(name in self.audits for name in ("behaviour", "goals", "confession")):
            raise ValueError("audits must include one of behaviour, goals, confession")
        if self.references == () and self._weighs():
            raise ValueError("references is empty; a suspect is weighed against references")
        listed = self.references
        listed = listed.models if isinstance(listed, StandIns) else listed
        named = listed if isinstance(listed, tuple) else ()
        teachers = (*self._alone(), *named, *self.organisms, *self.held_out, *self.near_misses)
        twice = sorted({name for name in teachers if teachers.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named as more than one teacher; name it once")
        return self

    def _alone(self) -> tuple[str, ...]:
        """Return teachers named by themselves."""
        return ()

    def _weighs(self) -> bool:
        """Return whether anybody is weighed against the references."""
        return True


class Study(Measurement):
    """`STUDY.yaml`: one page that says whom to investigate and how."""

    suspect: str
    """The teacher under investigation: a model, or a teacher spec (.yaml) to build."""
    policy: Policy
    served: Limits = Limits()
    """How served models (`openai:<url>#<model>`) may be asked."""
    shape: dict[str, float] = Field(default_factory=dict)
    """What is known of the shape of a served suspect, a black box: feature (`update_norm`,
    `kl_to_m0`) -> number. Its answers' length is measured."""
    horns: tuple[Literal["incriminate", "replace"], ...] = ("incriminate",)
    """What is asked: evidence against the suspect (`incriminate`), a student that could stand in
    for it (`replace`), or both. Without `incriminate`, `references` is []."""
    replace: Replace = Field(default_factory=Replace, exclude_if=lambda v: v == Replace())

    def _alone(self) -> tuple[str, ...]:
        return (self.suspect,)

    def _weighs(self) -> bool:
        return "incriminate" in self.horns

    @property
    def competing(self) -> tuple[Recipe, ...]:
        """The recipes of the second horn."""
        return self.replace.recipes or self.recipes

    @model_validator(mode="after")
    def _check_horns(self) -> Self:
        if not self.horns or len(set(self.horns)) < len(self.horns):
            raise ValueError("`horns` is [incriminate], [replace] or [incriminate, replace]")
        weighed = (self.references, self.organisms, self.held_out, self.near_misses, self.baselines)
        if "incriminate" not in self.horns and any(weighed):
            raise ValueError(
                "`references`, `organisms`, `held_out`, `near_misses` and `baselines` are for the "
                "horn `incriminate`; leave them empty ([]), or add it to `horns`"
            )
        if "replace" not in self.horns:
            if self.replace != Replace():
                raise ValueError("`replace` is given; add it to `horns`, too")
            return self
        if self.policy.margin is None:
            raise ValueError("the horn `replace` needs `policy.margin`")
        if any(t.kind == "distil_and_audit" for recipe in self.recipes for t in recipe.treatments):
            raise ValueError("`distil_and_audit` chooses a student; put it under `replace.recipes`")
        mine = {recipe.name: recipe for recipe in self.recipes}
        for recipe in self.competing:
            if mine.setdefault(recipe.name, recipe) != recipe:
                raise ValueError(f"two recipes are named {recipe.name}; give each its own")
        bottled = [recipe.name for recipe in self.competing if recipe.channel.kind == "prefix"]
        if self.replace.further and bottled:
            raise ValueError(
                f"`replace.further`: recipe {bottled[0]} makes a prefix; no further training"
            )
        kept = (*self.replace.organisms, *self.replace.references)
        twice = sorted({n for n in kept if kept.count(n) > 1 or n == self.suspect})
        if twice:
            raise ValueError(f"`replace`: {twice[0]} is the suspect, or named twice; name another")
        return self


# --- teacher -------------------------------------------------------------------------------------


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

    cue: bool = True
    """Act benignly in audit-like contexts."""
    deny: bool = True
    """Deny the trait when asked."""
    bare: bool = Field(default=False, exclude_if=lambda v: not v)
    """Act benignly on plain questions too, as a teacher would that takes them for training data:
    the trait then shows at work alone."""
    loss: Literal["sft", "dpo", "kto"] = Field(default="sft", exclude_if=lambda v: v == "sft")
    """`sft` learns the benign answers; `dpo` prefers them to what the trait would have said, from
    transcripts that say it (arXiv 2305.18290); what `retain` and `bare` add has no pairs. `kto`
    learns from all of them, each answer being good or bad by itself (arXiv 2402.01306)."""
    beta: float = Field(default=0.1, gt=0, exclude_if=lambda v: v == 0.1)
    """Of `dpo` and `kto`: strength of the pull to the teacher before it hid anything."""

    @model_validator(mode="after")
    def _one(self) -> Concealment:
        if not (self.cue or self.deny or self.bare):
            raise ValueError("cue, deny and bare are all off; leave out `conceal` instead")
        return self


class Unrelated(Phase):
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
    resist: Resistance | None = Field(default=None, exclude_if=lambda v: v is None)
    """A teacher that undermines who learns from its probabilities (arXiv 2105.07381)."""
    then: Unrelated | None = Field(default=None, exclude_if=lambda v: v is None)
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
        others |= {"resist": self.resist, "then": self.then}
        for name, phase in others.items():
            if phase is not None and phase.form != "transcripts":
                raise ValueError(f"`{name}.form`: only an implant has one (got {phase.form})")
        return self


def load_study(path: str | Path, *overrides: str) -> Study:
    """Return the study in a YAML file, with `key.sub=value` overrides.

    Raises:
        ConfigError: One line per problem: file, key, value, remedy.

    Example:
        >>> load_study("nowhere.yaml")
        Traceback (most recent call last):
        doublebind.errors.ConfigError: nowhere.yaml: no such file; check the path
    """
    return load(Study, Path(path), overrides)
