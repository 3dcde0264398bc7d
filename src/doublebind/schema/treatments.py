"""What is done to a teacher's answers, or to training, against misalignment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from doublebind.schema.hashing import Record


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
    near_duplicate_threshold: float = Field(
        serialization_alias="alike", default=1.0, gt=0, le=1, exclude_if=lambda v: v == 1
    )
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
