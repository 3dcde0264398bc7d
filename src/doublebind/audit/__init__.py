"""Door of the audit stage: asks a model the items of a split, and what an audit has to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from doublebind.config import Dtype
from doublebind.records import Device, Item, ModelSource, Split, endpoint_of

REV = 1


class Answer(NamedTuple):
    """What one item yielded."""

    item: Item
    value: float | None
    """In [0, 1]; `None` where the item could not be scored."""
    unscored_reason: str | None = None
    transcript: str = ""
    """What was said or compared, as text for the report; hostile until escaped."""


class Question(NamedTuple):
    """An item as an audit asks it, and the endpoint that the answer belongs to."""

    endpoint: str
    item: Item
    """One of the pack's, or one made from it, whose id is then its own."""


@runtime_checkable
class Audit(Protocol):
    """A measurement of one model; module-level objects of this shape can be passed to `run`.

    Hashed by `identity`, `version` and fields, so a changed audit never meets cached scores.
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
        """Return one answer per item; `baseline` is M0, for audits that compare.

        An audit that asks in its own way, under endpoints of its own, has a method `questions`,
        too, from items to `Question`s; it then returns one answer per question.
        """
        ...


def identity(audit: Audit) -> tuple[str, str]:
    """Return the module and qualified name by which `audit` enters keys and protocols.

    An audit of this package declares them as `identity`, which never changes: its class may move or
    be renamed. Any other is identified by its class as it is now.
    """
    kind = type(audit)
    is_ours = kind.__module__.startswith("doublebind.")
    declared: str | None = getattr(audit, "identity", None) if is_ours else None
    if declared is None:
        return kind.__module__, kind.__qualname__
    module, _, name = declared.rpartition(".")
    return module, name


def questions(audit: Audit, items: Sequence[Item]) -> list[Question]:
    """Return what `audit` asks when it is given a pack's `items`."""
    mine = [item for item in items if item.kind in audit.endpoints]
    own = getattr(audit, "questions", None)
    if own is not None:
        return list(own(mine))
    return [Question(endpoint_of(item), item) for item in mine]


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


def judge(
    out: Path,
    *,
    source: ModelSource | None,
    baseline: ModelSource | None,
    pack: str,
    judges: Sequence[str],
    cache: Path,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Put free answers before judges; write answers, judgements and scores to `out`.

    Args:
        out: Folder; answers frozen there are judged as they are where `source` is `None`.
        source: The model asked.
        baseline: The model it is compared with.
        pack: Whose items are asked.
        judges: `keys`, `local:MODEL`, `inspect:MODEL`.
        cache: Folder for converted models.
        device: Where a local judge runs.

    Returns:
        See `judged.judge`.
    """
    from doublebind.audit import judged
    from doublebind.audit.judges import open_judge
    from doublebind.models.load import load
    from doublebind.packs.load import load as load_pack
    from doublebind.store import write_records

    opened = [open_judge(ref, cache, device) for ref in judges]
    if source and baseline:
        models = load(source, cache=cache), load(baseline, cache=cache)
        write_records(
            out / judged.ANSWERS, judged.ask(*models, load_pack(pack, relative_to=Path()))
        )
    return judged.judge(out, opened)


def look_inside(
    sources: Sequence[ModelSource], baseline: ModelSource, *, pack: str, cache: Path
) -> list[dict[str, float]]:
    """Return the white-box measures of each model against `baseline`; see `whitebox.measure`."""
    from doublebind.audit import whitebox
    from doublebind.models.load import load
    from doublebind.packs.load import load as load_pack

    m0, content = load(baseline, cache=cache), load_pack(pack, relative_to=Path())
    return [whitebox.measure(load(source, cache=cache), m0, content) for source in sources]


def investigate(
    source: ModelSource,
    baseline: ModelSource,
    *,
    pack: str,
    budget: int,
    key: str | None,
    cache: Path,
    by: str = "rules",
) -> dict[str, Any]:
    """Return hypotheses about a model, and how they fare against `key`; see `investigator`."""
    from doublebind.audit import followup, investigator
    from doublebind.models.load import load
    from doublebind.packs.load import load as load_pack

    content = load_pack(pack, relative_to=Path())
    model, m0 = load(source, cache=cache), load(baseline, cache=cache)
    heard = investigator.listen(model, m0, content, budget=budget)
    guesses = followup.guesses(model, m0, content, heard, followup.check(by))
    found: dict[str, Any] = {"hypotheses": [guess.model_dump(mode="json") for guess in guesses]}
    return found | ({"against_key": investigator.score(guesses, content, key)} if key else {})


def guess(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    pack: str,
    by: str,
    budget: int,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write hypotheses about a student, and what it was heard to say; see `followup.guess`."""
    from doublebind.audit import followup

    followup.guess(
        out,
        source=source,
        baseline=baseline,
        pack=pack,
        by=by,
        budget=budget,
        dtype=dtype,
        cache=cache,
    )


def prepare_questions(out: Path, *, guessed: tuple[Path, ...], pack: str, by: str) -> None:
    """Write fresh items that follow from hypotheses; see `followup.prepare`."""
    from doublebind.audit import followup

    followup.prepare(out, guessed=guessed, pack=pack, by=by)


def ask(out: Path, *, source: ModelSource, questions: Path, dtype: Dtype, cache: Path) -> None:
    """Write what a model answers to such items; see `followup.ask`."""
    from doublebind.audit import followup

    followup.ask(out, source=source, questions=questions, dtype=dtype, cache=cache)


def built_in(names: Sequence[str], folder: Path | None = None) -> tuple[Audit, ...]:
    """Return the built-in audits called `names`, and the tasks of other harnesses among them.

    Args:
        names: As a study names them.
        folder: What paths of task files are relative to; default the current one.
    """
    from doublebind.audit.auditability import Auditability
    from doublebind.audit.corroboration import Corroboration
    from doublebind.audit.inspect_audit import InspectTask
    from doublebind.audit.lm_eval_audit import harness_task
    from doublebind.audit.option_audits import OPTION_AUDITS
    from doublebind.audit.under import Under
    from doublebind.audit.variants import Elicitation

    known: tuple[Audit, ...] = (*OPTION_AUDITS, Elicitation(), Auditability(), Corroboration())
    found: list[Audit] = [audit for audit in known if audit.name in names]
    for name in names:
        kind, is_task, task = name.partition(":")
        if kind == "under":
            found.append(Under(task))
        elif kind == "lm-eval":
            found.append(harness_task(task, folder or Path()))
        elif is_task:
            found.append(InspectTask(task, "auditable" if kind == "inspect-auditable" else "gate"))
    return tuple(found)
