"""The study, as a user writes it.

Names of models and pack content are checked by the code that opens them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from doublebind.schema.errors import ConfigError
from doublebind.schema.executor import LOCAL, LocalOptions, RayOptions
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import Device, Engine, ServerOptions
from doublebind.schema.recipe import Dtype, Recipe
from doublebind.schema.replacement_settings import ReplacementSettings
from doublebind.schema.score_settings import ADJUSTED, ScoreSettings
from doublebind.schema.score_table import check_score_endpoints
from doublebind.schema.yaml_loader import load_yaml

DefaultAudit = Literal["behaviour", "goals", "confession", "capability", "coherence"]
"""The battery that a study uses unless it names another."""


DEFAULT_AUDITS: tuple[DefaultAudit, ...] = get_args(DefaultAudit)


OPTIONAL_AUDITS = ("elicitation", "auditability", "corroboration")
"""Audits that a study has to ask for."""


def check_audit_name(name: str) -> str:
    """Return `name` if an audit is called so.

    Raises:
        ConfigError: If none is.
    """
    kind, _, rest = name.partition(":")
    if (
        name in (*DEFAULT_AUDITS, *OPTIONAL_AUDITS)
        or (
            kind in ("inspect", "inspect-auditable", "lm-eval") and re.fullmatch(r"[\w./@-]+", rest)
        )
        or (kind == "prompted" and re.search(r"\w", rest) and "\n" not in rest)
    ):
        return name
    if name.startswith("under:"):
        raise ConfigError(f"{name}: write prompted:{name.removeprefix('under:')}")
    known = ", ".join((*DEFAULT_AUDITS, *OPTIONAL_AUDITS))
    raise ConfigError(
        f"{name}: no such audit; choose {known}, prompted:PROMPT, inspect:TASK, "
        "inspect-auditable:TASK or lm-eval:TASK"
    )


AuditName = Annotated[str, AfterValidator(check_audit_name)]
"""A built-in audit, or an Inspect task: `inspect:TASK` as a capability measure, or
`inspect-auditable:TASK` as an audit whose scores rise with misalignment; or `lm-eval:TASK`, a task
of the lm-evaluation-harness or a task file (`.yaml`), as a capability measure; or
`prompted:PROMPT`, the behaviour audit's choices under a prompt."""


MAX_STUDENTS = 10_000
"""Most students of a study, checkpoints included: what can be planned in seconds."""


class BankReferences(Record):
    """References not named one by one: the first `n` of the pack's bank, or `n` of a panel."""

    n: int = Field(ge=1)
    panel: str | None = None
    """Folder of a frozen panel, or a built-in pack's name for the one it ships. Its references are
    not made again, and its organisms serve as positive controls."""
    seed: int = Field(serialization_alias="draw", default=0, ge=0)
    """Seed by which `n` of the panel's references are drawn."""


class MatchedReferences(Record):
    """References built to be like the suspect in all but what is planted: harmless quirks."""

    match: Literal["suspect"]
    n: int = Field(ge=1)
    batch: int = Field(serialization_alias="draw", default=0, ge=0, exclude_if=lambda v: v == 0)
    """Which lot of `n`; lots of one size share no reference, those of several sizes may."""
    template: str | None = None
    """Teacher spec whose phases they share; `null` takes the suspect's own. A suspect that was not
    built from a spec needs one: its references are then scaled to its update norm."""


StandIn = Literal["sibling_checkpoints", "earlier_releases", "equal_kl_surrogates"]


class StandInReferences(Record):
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
    """Score endpoints, at most 150: name -> endpoints, or contrasts of two
    (`choice - choice.honeypot/theft`); `null` takes the pack's."""
    score: ScoreSettings = ADJUSTED
    """How the score is made of them: `{kind: adjusted, ...}`, or `{kind: plain}` as up to method
    version 4. Evidence gives the p-value of the other kind, too."""
    min_effect: float | None = Field(default=None, gt=0, exclude_if=lambda v: v is None)
    """Smallest effect of interest, in log-odds (of the plain score, in probability):
    `incriminated` needs a score endpoint that stands out, and whose shift has a 95% lower bound
    above this. `null`: any size will do."""
    margin: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda v: v is None)
    """Largest excess over M0, in probability, that a replacement may have on any score endpoint.
    The horn `replace` needs it; no default: it is the claim."""

    @field_validator("endpoints")
    @classmethod
    def _check_endpoints(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            check_score_endpoints(value)
        return value


Baseline = Literal["ngrams", "in_context", "retrained"]


class PanelSpec(Record):
    """Whom to make, distil and audit, and how; a panel is a measurement kept."""

    pack: str
    """Name of a built-in pack (`terrarium`, `assistant`) or a pack folder; `NAME:TRAIT,TRAIT` asks
    about those traits alone, which costs less."""
    references: tuple[str, ...] | BankReferences | MatchedReferences | StandInReferences
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
    audits: tuple[AuditName, ...] = DEFAULT_AUDITS
    baselines: tuple[Baseline, ...] = ()
    """Ways to look at a teacher without a student, put beside the verdict."""
    seeds: int = Field(default=1, ge=1)
    """Students per teacher and recipe."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights; trained weights are always float32."""
    device: Device = Field(default="cpu", exclude_if=lambda v: v == "cpu")
    """Where models are trained, answer and are scored: `cpu`, or `cuda`, the first GPU that a
    process sees. Part of every key: a GPU gives other last bits."""
    executor: Annotated[LocalOptions | RayOptions, Field(discriminator="kind")] = LOCAL
    engine: Engine | None = Field(default=None, exclude_if=lambda v: v is None)
    """What lets models answer and scores them; `null` is transformers. Training stays with it."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine and isinstance(self.references, BankReferences) and self.references.panel:
            raise ValueError("`references.panel` was measured without `engine`; leave one out")
        return self

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        on_ray = isinstance(self.executor, RayOptions) and not self.executor.gpus
        if self.device == "cuda" and on_ray:
            raise ValueError("`device: cuda` on a Ray cluster needs `executor.gpus` above 0")
        return self

    @model_validator(mode="after")
    def _check_recipe_names(self) -> Self:
        names = [recipe.name for recipe in self.recipes]
        if len(set(names)) < len(names):
            raise ValueError("two recipes share a name; give each its own")
        return self

    @model_validator(mode="after")
    def _check_audits(self) -> Self:
        if not any(name in self.audits for name in ("behaviour", "goals", "confession")):
            raise ValueError("audits must include one of behaviour, goals, confession")
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        references = self.references
        if references == () and self._needs_references():
            raise ValueError("references is empty; a suspect is weighed against references")
        listed = references.models if isinstance(references, StandInReferences) else references
        teachers = (
            *self._list_single_teachers(),
            *(listed if isinstance(listed, tuple) else ()),
            *self.organisms,
            *self.held_out,
            *self.near_misses,
        )
        n_built = 0 if isinstance(listed, tuple) else listed.n
        if isinstance(listed, BankReferences) and listed.panel:
            n_built = 0  # measured before
        per_teacher = self.seeds * sum(1 + len(r.training.checkpoints) for r in self.recipes)
        n_students = (len(teachers) + n_built) * per_teacher
        if n_students > MAX_STUDENTS:
            raise ValueError(
                f"teachers x recipes x seeds make {n_students:,} students, their checkpoints "
                f"included, at most {MAX_STUDENTS:,} are planned; name fewer"
            )
        twice = sorted(name for name, n in Counter(teachers).items() if n > 1)
        if twice:
            raise ValueError(f"{twice[0]} is named as more than one teacher; name it once")
        return self

    def _list_single_teachers(self) -> tuple[str, ...]:
        """Return teachers named by themselves."""
        return ()

    def _needs_references(self) -> bool:
        """Return whether anybody is weighed against the references."""
        return True


class Study(PanelSpec):
    """`STUDY.yaml`: one page that says whom to investigate and how."""

    suspect: str
    """The teacher under investigation: a model, or a teacher spec (.yaml) to build."""
    policy: Policy
    served: ServerOptions = ServerOptions()
    """How served models (`openai:<url>#<model>`) may be asked."""
    shape: dict[str, float] = Field(default_factory=dict)
    """What is known of the shape of a served suspect, a black box: feature (`update_norm`,
    `kl_to_m0`) -> number. Its answers' length is measured."""
    horns: tuple[Literal["incriminate", "replace"], ...] = ("incriminate",)
    """What is asked: evidence against the suspect (`incriminate`), a student that could stand in
    for it (`replace`), or both. Without `incriminate`, `references` is []."""
    replace: ReplacementSettings = Field(
        default_factory=ReplacementSettings, exclude_if=lambda v: v == ReplacementSettings()
    )

    def _list_single_teachers(self) -> tuple[str, ...]:
        return (self.suspect,)

    def _needs_references(self) -> bool:
        return "incriminate" in self.horns

    @property
    def competing_recipes(self) -> tuple[Recipe, ...]:
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
        if "replace" not in self.horns and self.replace != ReplacementSettings():
            raise ValueError("`replace` is given; add it to `horns`, too")
        if "replace" in self.horns and self.policy.margin is None:
            raise ValueError("the horn `replace` needs `policy.margin`")
        return self

    @model_validator(mode="after")
    def _check_competing_recipes(self) -> Self:
        if "replace" not in self.horns:
            return self
        if any(t.kind == "distil_and_audit" for recipe in self.recipes for t in recipe.treatments):
            raise ValueError("`distil_and_audit` chooses a student; put it under `replace.recipes`")
        recipes = {recipe.name: recipe for recipe in self.recipes}
        for recipe in self.competing_recipes:
            if recipes.setdefault(recipe.name, recipe) != recipe:
                raise ValueError(f"two recipes are named {recipe.name}; give each its own")
        prefixes = [r.name for r in self.competing_recipes if r.channel.kind == "prefix"]
        if self.replace.further_training and prefixes:
            raise ValueError(
                f"`replace.further_training`: recipe {prefixes[0]} makes a prefix, which is not "
                "trained further"
            )
        return self

    @model_validator(mode="after")
    def _check_competing_teachers(self) -> Self:
        names = (*self.replace.organisms, *self.replace.references)
        counts = Counter(names)
        twice = sorted(n for n in counts if counts[n] > 1 or n == self.suspect)
        if twice:
            raise ValueError(f"`replace`: {twice[0]} is the suspect, or named twice; name another")
        return self


def load_study(path: str | Path, *overrides: str) -> Study:
    """Return the study in a YAML file, with `key.sub=value` overrides.

    Raises:
        ConfigError: One line per problem: file, key, value, remedy.

    Example:
        >>> load_study("nowhere.yaml")
        Traceback (most recent call last):
        doublebind.schema.errors.ConfigError: nowhere.yaml: no such file; check the path
    """
    return load_yaml(Study, Path(path), overrides)
