"""Door of the audit stage: asks a model the items of a split, and what an audit has to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.schema.content import Split
from doublebind.schema.model_source import Device, ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.audits.protocol import Audit

REV = 1


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
    from doublebind.stages.audits import battery

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
    from doublebind.stages.audits import in_context_baseline as reading

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
    from doublebind.execution.store import write_records
    from doublebind.models.load import load
    from doublebind.packs.load import load as load_pack
    from doublebind.stages.audits.judging import pairwise as judged
    from doublebind.stages.audits.judging.judges import open_judge

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
    from doublebind.models.load import load
    from doublebind.packs.load import load as load_pack
    from doublebind.stages.audits import whitebox

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
    from doublebind.models.load import load
    from doublebind.packs.load import load as load_pack
    from doublebind.stages.audits.followup import investigator
    from doublebind.stages.audits.followup import steps as followup

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
    from doublebind.stages.audits.followup import steps as followup

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
    from doublebind.stages.audits.followup import steps as followup

    followup.prepare(out, guessed=guessed, pack=pack, by=by)


def ask(out: Path, *, source: ModelSource, questions: Path, dtype: Dtype, cache: Path) -> None:
    """Write what a model answers to such items; see `followup.ask`."""
    from doublebind.stages.audits.followup import steps as followup

    followup.ask(out, source=source, questions=questions, dtype=dtype, cache=cache)
