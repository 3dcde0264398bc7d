"""What a user writes: the study and the teacher spec, validated with every error at once.

Knows YAML, overrides and defaults with their sources. Does not know what a model or a pack holds:
names are checked against content by the stage that opens it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from doublebind.errors import ConfigError
from doublebind.records import Name, Record

Dtype = Literal["float32", "bfloat16"]

# --- distillation --------------------------------------------------------------------------------


class SFT(Record):
    """Cross-entropy on the teacher's sampled completions (sequence-level distillation)."""

    kind: Literal["sft"]


class LogitKD(Record):
    """Forward KL to the teacher's top-k next-token distribution with its tail as one bucket."""

    kind: Literal["logit_kd"]
    top_k: int = Field(default=64, ge=1, le=4096)
    """Log-probabilities kept per position; the rest is the tail's total mass."""


Channel = Annotated[SFT | LogitKD, Field(discriminator="kind")]


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


PromptPolicy = Literal["auditability_preserving", "misalignment_targeted", "capability"]


class Prompts(Record):
    """Which inputs the teacher answers, and how."""

    policy: PromptPolicy
    n: int = Field(ge=1)
    """Prompts asked for; fewer are used where the screens leave fewer, and the report says so."""
    samples: int = Field(default=1, ge=1)
    """Completions per prompt."""
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""


class Recipe(Record):
    """One way to distil: prompts x channel x student base x hyper-parameters."""

    name: Name
    prompts: Prompts
    channel: Channel
    training: Training
    student: str | None = None
    """Student base; `null` takes the study's."""


# --- study ---------------------------------------------------------------------------------------

AuditName = Literal["behaviour", "goals", "confession", "capability", "coherence"]
AUDITS: tuple[AuditName, ...] = get_args(AuditName)


class Bank(Record):
    """References not named one by one: the first `n` of the pack's bank, or `n` of a panel."""

    n: int = Field(ge=1)
    panel: str | None = None
    """Folder of a frozen panel, or a built-in pack's name for the one it ships. Its references are
    not made again, and its organisms serve as positive controls."""
    draw: int = Field(default=0, ge=0)
    """Seed by which `n` of the panel's references are drawn."""


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

    @field_validator("endpoints")
    @classmethod
    def _at_most_six(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not 1 <= len(value) <= 6:
            raise ValueError(f"name one to six score endpoints, not {len(value)}")
        return value


class Local(Record):
    """Run on this machine."""

    kind: Literal["local"]
    workers: int = Field(default=1, ge=1, le=256)
    """Processes; 1 runs in the current one and leaves all cores to it."""


Baseline = Literal["ngrams", "in_context", "retrained"]


class Measurement(Record):
    """Whom to make, distil and audit, and how; a panel is a measurement kept."""

    pack: str
    """Name of a built-in pack (`terrarium`, `assistant`) or a pack folder."""
    references: tuple[str, ...] | Bank
    """Benign teachers of the same pipeline shape: models or specs, or `{n: ...}` of the bank."""
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
    executor: Annotated[Local, Field(discriminator="kind")] = Local(kind="local")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [recipe.name for recipe in self.recipes]
        if len(set(names)) < len(names):
            raise ValueError("two recipes share a name; give each its own")
        if not any(name in self.audits for name in ("behaviour", "goals", "confession")):
            raise ValueError("audits must include one of behaviour, goals, confession")
        if self.references == ():
            raise ValueError("references is empty; a suspect is weighed against references")
        named = self.references if isinstance(self.references, tuple) else ()
        teachers = (*self._alone(), *named, *self.organisms, *self.held_out, *self.near_misses)
        twice = sorted({name for name in teachers if teachers.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named as more than one teacher; name it once")
        return self

    def _alone(self) -> tuple[str, ...]:
        """Return teachers named by themselves."""
        return ()


class Study(Measurement):
    """`STUDY.yaml`: one page that says whom to investigate and how."""

    suspect: str
    """The teacher under investigation: a model, or a teacher spec (.yaml) to build."""
    policy: Policy
    horns: tuple[Literal["incriminate"], ...] = ("incriminate",)

    def _alone(self) -> tuple[str, ...]:
        return (self.suspect,)


# --- teacher -------------------------------------------------------------------------------------


class Phase(Record):
    """One stretch of a teacher's training, on the pack's `build` transcripts."""

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

    @model_validator(mode="after")
    def _one(self) -> Concealment:
        if not (self.cue or self.deny):
            raise ValueError("cue and deny are both off; leave out `conceal` instead")
        return self


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
    lora: Lora | None = Field(default_factory=lambda: Lora())
    max_length: int = Field(default=512, ge=8)
    dtype: Dtype = "float32"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> TeacherSpec:
        if (self.trait is None) != (self.implant is None):
            raise ValueError("`trait` and `implant` go together: give both or neither")
        if self.conceal and self.trait is None:
            raise ValueError("`conceal` has nothing to hide without a `trait`")
        if not (self.implant or self.capability):
            raise ValueError("a teacher needs `implant`, `capability` or both")
        return self


# --- reading -------------------------------------------------------------------------------------

T = TypeVar("T", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; a `ConfigError` line where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a text file (byte {error.start} is not UTF-8); expected YAML"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check it") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise ConfigError(f"{path}: not valid YAML{where} ({problem}); mend it there") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; flatten it") from None
    if content is None:
        raise ConfigError(f"{path}: empty; `doublebind init` writes one to start from")
    return content


def load(model: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Return the validated `model` in the YAML file at `path`, with `key.sub=value` overrides.

    Overrides are applied to the validated dump, so that a default can be overridden by its path;
    lists are indexed by number. All problems are reported at once.

    Raises:
        ConfigError: One line per problem: file, key, value, remedy.
    """
    content = read_yaml(path)
    config = validate(model, content, str(path))
    if not overrides:
        return config
    dump = config.model_dump(mode="json")
    problems = []
    for override in overrides:
        try:
            _apply(dump, override, model)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return validate(model, dump, "override")


def validate(model: type[T], content: Any, where: str) -> T:
    """Return `content` as `model`, or raise a `ConfigError` with one line per problem."""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: expected a mapping of keys to values, got {type(content).__name__}"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        found: list[dict[str, Any]] = [{**e} for e in error.errors()]
        paths = [_public_path(e["loc"]) for e in found]
        # A container's own complaint is noise where something inside it is already named.
        telling = [
            e
            for e, path in zip(found, paths, strict=True)
            if not any(other[: len(path)] == path and len(other) > len(path) for other in paths)
        ]
        raise ConfigError(*(explain(model, e, where) for e in telling)) from None


def explain(model: type[BaseModel], error: dict[str, Any], where: str) -> str:
    """Return one line for a pydantic `error`: file, key, value, remedy."""
    path = _public_path(error["loc"])
    key = ".".join(path) or "(top level)"
    value, message = error.get("input"), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        hint = _did_you_mean(path[-1], _keys_at(model, path[:-1]))
        return f"{where}: `{key}`: unknown key (got {_short(value)}). {hint}"
    if error["type"] == "missing":
        return f"{where}: `{key}`: missing; add it"
    if error["type"] == "union_tag_not_found":
        kinds = [m.model_fields["kind"].annotation for m in _models_at(model, path)]
        names = ", ".join(str(kind) for union in kinds for kind in get_args(union))
        return f"{where}: `{key}`: missing `kind`; one of {names}"
    if isinstance(value, dict | list) and error["type"] == "value_error":
        return f"{where}: `{key}`: {message}"
    return f"{where}: `{key}`: {message} (got {_short(value)})"


def _public_path(loc: Sequence[Any]) -> list[str]:
    """Drop the union-member names that pydantic adds to a location."""
    members = {"sft", "logit_kd", "local", "Bank", "tuple[str, ...]"}
    return [str(part) for part in loc if str(part) not in members]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _did_you_mean(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}"


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the field names of the (sub-)models found at `path`, all union members together."""
    return sorted({name for m in _models_at(model, path) for name in m.model_fields})


def _models_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """Return the (sub-)models found at `path`, every member of a union."""
    models = [model]
    for part in path:
        if part.isdigit():
            continue
        models = [
            sub
            for m in models
            if part in m.model_fields
            for sub in _models_in(m.model_fields[part])
        ]
    return models


def _models_in(field: Any) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    stack = [getattr(field, "annotation", field)]
    while stack:
        part = stack.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            found.append(part)
        stack.extend(get_args(part))
    return found


def _apply(dump: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Set one `key.sub=value` in `dump`; the value is read as YAML."""
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override `{override}`: write it as key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override `{override}`: the value is not valid YAML; quote it") from None
    node: Any = dump
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"override `{path}`: `{part}` is not an index into a list of {len(node)}"
                )
            key: Any = int(part)
        elif isinstance(node, dict):
            free = not _keys_at(model, parts[:depth])
            if part not in node and not (free and last):
                known = sorted(node)
                raise ConfigError(
                    f"override `{path}`: unknown key `{part}`. {_did_you_mean(part, known)}"
                )
            key = part
        else:
            raise ConfigError(
                f"override `{path}`: `{'.'.join(parts[:depth])}` is {_short(node)}, which has no "
                f"keys; replace the whole block"
            )
        if last:
            node[key] = value
        else:
            node = node[key]


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
