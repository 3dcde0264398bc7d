"""Door of the audit stage: asks a model the items of a split, and what an audit has to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from doublebind.config import Dtype
from doublebind.records import Item, ModelSource, Split

REV = 1


class Answer(NamedTuple):
    """What one item yielded."""

    item: Item
    value: float | None
    """In [0, 1]; `None` where the item could not be scored."""
    unscored_reason: str | None = None
    transcript: str = ""
    """What was said or compared, as text for the report; hostile until escaped."""


@runtime_checkable
class Audit(Protocol):
    """A measurement of one model; module-level objects of this shape can be passed to `run`.

    Hashed by qualified name, `version` and fields, so a changed audit never meets cached scores.
    """

    @property
    def name(self) -> str:
        """Short name, in the `audit` column of the scores."""
        ...

    @property
    def version(self) -> int:
        """Raise it when the same model would get another value."""
        ...

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Item kinds this audit answers."""
        ...

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is M0, for audits that compare."""
        ...


def run(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    pack: str,
    split: Split,
    audits: Sequence[Audit],
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write `scores.parquet` and `transcripts.jsonl` of one model to `out`."""
    from doublebind.audit import battery

    battery.run(
        out,
        source=source,
        baseline=baseline,
        pack=pack,
        split=split,
        audits=audits,
        dtype=dtype,
        cache=cache,
    )


def read(
    out: Path,
    *,
    source: ModelSource,
    rollouts: Path,
    pack: str,
    split: Split,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write the `scores.parquet` of a model that has read a teacher's answers to `out`."""
    from doublebind.audit import reading

    reading.run(
        out, source=source, rollouts=rollouts, pack=pack, split=split, dtype=dtype, cache=cache
    )


def built_in(names: Sequence[str]) -> tuple[Audit, ...]:
    """Return the built-in audits called `names`."""
    from doublebind.audit.behaviour import Behaviour
    from doublebind.audit.capability import Capability, Coherence
    from doublebind.audit.confession import Confession, Goals

    known: tuple[Audit, ...] = (Behaviour(), Goals(), Confession(), Capability(), Coherence())
    return tuple(audit for audit in known if audit.name in names)
