"""Applies a recipe's treatments to a teacher's answers, one after the other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from doublebind.execution.store import read_records, write_records
from doublebind.packs.load import load_pack
from doublebind.schema.content import Prompt
from doublebind.schema.errors import NothingToDistil
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

if TYPE_CHECKING:
    from doublebind.models.load import LM
    from doublebind.stages.rollouts.treatments.common import TreatmentContext, TreatmentResult

SEED = 0
"""Fixed, as for sampling: all students of a teacher and recipe learn from the same answers."""


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
    """Write the treated `trajectories.jsonl`, and `treatments.json` with the facts of each.

    Raises:
        NothingToDistil: If no answer is left to distil on.
    """
    from doublebind.stages.rollouts.treatments.common import TreatmentContext

    context = TreatmentContext(
        load_teacher=_load_once(teacher, dtype, cache),
        load_trusted=_load_once(trusted, dtype, cache),
        prompts={prompt.id: prompt for prompt in read_records(prompts, Prompt)},
        seed=SEED,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
    )
    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    facts = []
    for settings in treatments:
        before = len(trajectories)
        trajectories, counts = _apply_treatment(settings, trajectories, context)
        after = len(trajectories)
        facts.append({"kind": settings.kind, "before": before, "after": after, **counts})
        if not trajectories:
            raise NothingToDistil(
                f"treatment `{settings.kind}`: none of {before} answers is left to distil on; "
                f"weaken it or ask for more prompts"
            )
    _write_rollouts(out, trajectories, facts)


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
    """Write the answers in `rollouts` that a round of filtering keeps.

    Args:
        out: Folder for `trajectories.jsonl` and `treatments.json`.
        rollouts: Answers that the last round's student learned from.
        student: That student.
        student_audit: Its audit on `select` items.
        m0_audit: M0's audit on the same items.
        pack: Pack of the items.
        settings: Share to drop, and the stop rule.
        dtype: Precision of the student's frozen weights.
        cache: Folder where a converted model may be saved.
    """
    from doublebind.models.load import load_model
    from doublebind.stages.rollouts.treatments import influence_filter

    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    items = load_pack(pack, relative_to=Path()).items("select")
    remaining, facts = influence_filter.drop_influential_answers(
        settings,
        trajectories,
        load_model(student, dtype=dtype, cache=cache),
        [item for item in items if item.role == "auditable"],
        influence_filter.measure_endpoint_shifts(student_audit, m0_audit),
    )
    counts = {"kind": "filter", "before": len(trajectories), "after": len(remaining), **facts}
    _write_rollouts(out, remaining, [counts])


def _apply_treatment(
    settings: Treatment, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    from doublebind.stages.rollouts.treatments import (
        counter_poison,
        domain,
        few_unique,
        inoculate,
        jam,
        mix_trusted,
        trim_reasoning,
    )

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
            raise AssertionError(f"{settings.kind} is applied by the planner, in rounds")


def _load_once(source: ModelSource, dtype: Dtype, cache: Path) -> Callable[[], LM]:
    """Return a function that loads the model at its first call and then returns the same one."""
    from doublebind.models.load import load_model

    return functools.cache(lambda: load_model(source, dtype=dtype, cache=cache))


def _write_rollouts(
    out: Path, trajectories: Sequence[Trajectory], facts: Sequence[dict[str, object]]
) -> None:
    write_records(out / "trajectories.jsonl", trajectories)
    text = json.dumps(list(facts), indent=1, ensure_ascii=False)
    (out / "treatments.json").write_text(text, encoding="utf-8")
