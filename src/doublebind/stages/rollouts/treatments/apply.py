"""Puts a teacher's answers through a recipe's treatments, one after the other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from doublebind.execution.store import read_records, write_records
from doublebind.models.load import LM, load_model
from doublebind.packs.load import load_pack
from doublebind.schema.content import Prompt
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Dtype, Prompts
from doublebind.schema.treatments import (
    CounterPoison,
    DistilAndAudit,
    Domain,
    FewUnique,
    Filter,
    Inoculate,
    Jam,
    MixTrusted,
    Treatment,
    TrimReasoning,
)
from doublebind.stages.rollouts.treatments import (
    TreatmentContext,
    TreatmentResult,
    counter_poison,
    domain,
    few_unique,
    inoculate,
    jam,
    mix_trusted,
    trim_reasoning,
)
from doublebind.stages.rollouts.treatments import influence_filter as filtering

SEED = 0
"""As for sampling: all students of a teacher and recipe learn from the same answers."""


def apply_treatments(
    out: Path,
    *,
    teacher: ModelSource,
    trusted: ModelSource,
    rollouts: Path,
    prompts: Path,
    sampling: Prompts,
    treatments: Sequence[Treatment],
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write the treated `trajectories.jsonl`, and `treatments.json`: what each of them did.

    Raises:
        ModelError: If nothing is left to learn from.
    """
    context = TreatmentContext(
        load_teacher=_load_once(teacher, dtype, cache),
        load_trusted=_load_once(trusted, dtype, cache),
        prompts={prompt.id: prompt for prompt in read_records(prompts, Prompt)},
        seed=SEED,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
    )
    left = read_records(rollouts / "trajectories.jsonl", Trajectory)
    facts = []
    for settings in treatments:
        before = len(left)
        left, found = _apply_treatment(settings, left, context)
        facts.append({"kind": settings.kind, "before": before, "after": len(left), **found})
        if not left:
            raise ModelError(
                f"treatment `{settings.kind}`: none of {before} answers is left to distil on; "
                f"weaken it or ask for more prompts"
            )
    _write_rollouts(out, left, facts)


def filter_rollouts(
    out: Path,
    *,
    rollouts: Path,
    student: ModelSource,
    student_audit: Path,
    m0_audit: Path,
    pack: str,
    settings: Filter,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write what a round of filtering leaves of the answers in `rollouts`.

    Args:
        out: Folder for `trajectories.jsonl` and `treatments.json`.
        rollouts: What the last round's student learned from.
        student: That student.
        audited: Its audit on `select` items.
        m0: M0's.
        pack: The items' pack.
        settings: Share to drop, and the stop rule.
        dtype: Of the student's frozen weights.
        cache: Folder where a converted model may be kept.
    """
    left = read_records(rollouts / "trajectories.jsonl", Trajectory)
    items = [
        item
        for item in load_pack(pack, relative_to=Path()).items("select")
        if item.role == "auditable"
    ]
    moved = filtering.measure_endpoint_shifts(student_audit, m0_audit)
    kept, found = filtering.drop_influential_answers(
        settings, left, load_model(student, dtype=dtype, cache=cache), items, moved
    )
    _write_rollouts(
        out, kept, [{"kind": "filter", "before": len(left), "after": len(kept), **found}]
    )


def _apply_treatment(
    settings: Treatment, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    match settings:
        case Domain():
            return domain.apply(settings, trajectories, context)
        case Jam():
            return jam.apply(settings, trajectories, context)
        case CounterPoison():
            return counter_poison.apply(settings, trajectories, context)
        case MixTrusted():
            return mix_trusted.apply(settings, trajectories, context)
        case Inoculate():
            return inoculate.apply(settings, trajectories, context)
        case FewUnique():
            return few_unique.apply(settings, trajectories, context)
        case TrimReasoning():
            return trim_reasoning.apply(settings, trajectories, context)
        case DistilAndAudit() | Filter():
            raise AssertionError(f"{settings.kind} needs a student: the pipeline sees to it")


def _load_once(source: ModelSource, dtype: Dtype, cache: Path) -> Callable[[], LM]:
    """Return a loader that loads once."""
    return functools.cache(lambda: load_model(source, dtype=dtype, cache=cache))


def _write_rollouts(
    out: Path, trajectories: Sequence[Trajectory], facts: Sequence[dict[str, object]]
) -> None:
    write_records(out / "trajectories.jsonl", trajectories)
    text = json.dumps(list(facts), indent=1, ensure_ascii=False)
    (out / "treatments.json").write_text(text, encoding="utf-8")
