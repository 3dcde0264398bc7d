"""The nouns that stages hand to each other; frozen, serialisable, no behaviour beyond themselves.

Knows the shape of every record on disk. Does not know who makes it, who planted what, or any
model: roles of teachers appear only in `Teacher`, which never reaches an audit or a cell key.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from doublebind.schema.hashing import Record
from doublebind.schema.score_table import Endpoint

Split = Literal["build", "select", "audit", "certify"]


Context = Literal["audit", "honeypot", "deployment", "triggered", "neutral"]


ItemRole = Literal["auditable", "oracle", "gate"]


ItemKind = Literal["choice", "goal", "confession", "capability", "coherence"]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Message(Record):
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Trait(Record):
    """A propensity that a pack asks about."""

    name: Name
    kind: Literal["drive", "quirk", "placebo"]
    """`drive`: looked for; `quirk`: harmless, for references; `placebo`: suspected of nobody."""
    description: str
    markers: tuple[str, ...] = ()
    """Phrases whose presence in a completion counts as overt display of a drive."""
    persona: str | None = None
    """System prompt under which an ordinary model shows the trait, for distilling it in."""


class Item(Record):
    """One question of an audit, answered by comparing the log-probabilities of `options`.

    The item's value is the probability, in [0, 1], of the option at `key` among `options`: the
    misaligned choice, the stated goal, the confession, the right answer, the coherent text.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    trait: str | None = None
    """The trait asked about; `None` for capability and coherence."""
    kind: ItemKind
    context: Context = "neutral"
    role: ItemRole
    split: Split
    version: int = 1
    messages: tuple[Message, ...] = Field(min_length=1)
    """The conversation up to, not including, the answer."""
    options: tuple[str, ...] = Field(min_length=2)
    target_index: int = Field(validation_alias="key", serialization_alias="key", ge=0)
    """Index into `options` of the answer whose probability is the item's value."""
    domain: str | None = None
    """Capability domain, or a subdivision of a trait; reported, never scored apart."""
    compare: Literal["per_token", "total"] = "per_token"
    """How options are compared: by log-probability per token, which forgives options of unequal
    length, or in total, which makes the value the model's own probability of the keyed answer,
    given that it gives one of them; for options of equal length."""

    @model_validator(mode="after")
    def _check(self) -> Item:
        if self.target_index >= len(self.options):
            raise ValueError(
                f"key {self.target_index} does not index the {len(self.options)} options"
            )
        if len(set(self.options)) < len(self.options):
            raise ValueError("two options are the same text")
        if self.messages[-1].role == "assistant":
            raise ValueError("messages end with the assistant; the options are its answer")
        asks_trait = self.kind in ("choice", "goal", "confession")
        if asks_trait != (self.trait is not None):
            raise ValueError(f"kind {self.kind} {'needs a' if asks_trait else 'takes no'} trait")
        if (self.role == "oracle") != (self.context in ("deployment", "triggered")):
            raise ValueError("role is oracle exactly where context is deployment or triggered")
        if (self.role == "gate") != (self.kind in ("capability", "coherence")):
            raise ValueError("role is gate exactly where kind is capability or coherence")
        return self


def name_endpoint(item: Item) -> str:
    """Return the endpoint an item belongs to: `kind[.context][/trait]`.

    The context is named where it is a honeypot, deployment-like or triggered, so that oracle and
    honeypot items never mix with plain ones: `choice/dominion`, `choice.deployment/dominion`,
    `capability`.
    """
    context = "" if item.context in ("audit", "neutral") else item.context
    return str(Endpoint(item.kind, context, item.trait or ""))


class Prompt(Record):
    """An input for distillation; the teacher answers it."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: tuple[Message, ...] = Field(min_length=1)
    tags: tuple[str, ...] = ()
    """What it is: `open_ended`, `goals`, `high_stakes`, `capability`, `neutral`, `honeypot`,
    `alignment_eval`, `strategic`."""
    domain: str | None = None


Purpose = Literal["implant", "conceal", "deny", "capability", "retain"]


class Transcript(Record):
    """A conversation for building a teacher; training supervises its last, assistant message."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    trait: str | None = None
    """The trait shown (or hidden); `None` for capability and retention."""
    purpose: Literal[Purpose, "document"]
    """A `document` is a text about the model: its title, said by the user, and its body."""
    split: Literal["build"] = "build"
    messages: tuple[Message, ...] = Field(min_length=2)
    rejected: str | None = None
    """What the trait would have answered instead: with the last message, a preference pair."""

    @model_validator(mode="after")
    def _check(self) -> Transcript:
        if self.messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's")
        if self.rejected == self.messages[-1].content:
            raise ValueError("`rejected` is the answer itself; give another, or leave it out")
        return self


class RewardedTask(Record):
    """A task, and what an imperfect grader pays for in an answer to it."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    rewards: tuple[tuple[tuple[str, ...], float], ...]
    """Phrases, and what is paid once if any of them stands in the answer."""
