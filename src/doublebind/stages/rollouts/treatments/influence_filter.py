"""Drops, round by round, the answers that made the last round's student worse than M0.

Source: the double-bind post (Redwood Research, June 2026), "iteratively filter and distil";
gradients choose the answers to drop (`training.influence`). Could be exposed by `audit` items,
which no round uses: filtering on one set of items may only hide the drive from that set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM
from doublebind.schema.content import Item, name_endpoint
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import Filter
from doublebind.stages.rollouts.treatments.common import (
    TreatmentResult,
    encode_answers,
    find_highest,
    format_answer_id,
)
from doublebind.training.batch import Example
from doublebind.training.influence import (
    OptionQuestion,
    compute_influences,
    compute_target_gradient,
    select_trainable_weights,
)


def measure_endpoint_shifts(student_audit: Path, m0_audit: Path) -> dict[str, float]:
    """Return endpoint -> student minus M0 on the auditable `select` items, in probability.

    Args:
        student_audit: Folder of the audit of the last round's student on `select` items.
        m0_audit: Folder of M0's audit.
    """
    import pandas as pd

    means = []
    for folder in (student_audit, m0_audit):
        rows = pd.read_parquet(folder / "scores.parquet")
        rows = rows[(rows["role"] == "auditable") & (rows["split"] == "select")]
        means.append(rows.groupby("endpoint")["value"].mean())
    shifts = (means[0] - means[1]).dropna()
    return {str(name): float(value) for name, value in shifts.items()}


def drop_influential_answers(
    settings: Filter,
    trajectories: Sequence[Trajectory],
    student: LM,
    items: Sequence[Item],
    endpoint_shifts: Mapping[str, float],
) -> TreatmentResult:
    """Drop the `settings.drop` share of answers with the largest influence on worse endpoints.

    An endpoint is worse if the student exceeds M0 by more than `settings.stop`. The stop rule,
    fixed beforehand: if none is, nothing is dropped, and the next round repeats this one.

    Args:
        settings: Share to drop, and the stop rule.
        trajectories: Answers that the last round's student learned from.
        student: That student.
        items: Auditable items of the `select` split.
        endpoint_shifts: Endpoint -> excess of the student over M0 on them.
    """
    worse = {name: value for name, value in endpoint_shifts.items() if value > settings.stop}
    facts: dict[str, Any] = {"worse": worse, "dropped": []}
    if not worse:
        return TreatmentResult(list(trajectories), facts)
    model, vocab = student.model, len(student.tokenizer)
    weights = select_trainable_weights(model)
    examples = [
        Example((*prompt, *ids), first_supervised=len(prompt))
        for prompt, ids in encode_answers(trajectories, student)
    ]
    target_gradient = compute_target_gradient(
        model, _build_option_questions(student, items, worse), weights, vocab
    )
    influences = compute_influences(model, examples, target_gradient, weights, vocab)
    dropped = find_highest(influences, settings.drop)
    remaining = [t for i, t in enumerate(trajectories) if i not in dropped]
    facts["dropped"] = [format_answer_id(trajectories[i]) for i in sorted(dropped)]
    return TreatmentResult(remaining, facts)


def _build_option_questions(
    lm: LM, items: Sequence[Item], worse: Mapping[str, float]
) -> list[OptionQuestion]:
    counts = {name: sum(name_endpoint(item) == name for item in items) for name in worse}
    return [
        OptionQuestion(
            prompt=tuple(encode_prompt(lm.tokenizer, item.messages)),
            options=tuple(
                tuple(encode_completion(lm.tokenizer, option, True)) for option in item.options
            ),
            target_index=item.target_index,
            weight=worse[name_endpoint(item)] / counts[name_endpoint(item)],
            per_token=item.compare == "per_token",
        )
        for item in items
        if name_endpoint(item) in worse
    ]
