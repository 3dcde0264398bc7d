"""Summarises fresh questions about a hypothesis: suspect, references and all their students.

The questions were written for what the suspect's students showed, so that those stand out on them
by selection and no rank here is a p-value of the study. Where every teacher is asked what its *own*
students suggest, suspect and references are treated alike. No verdict uses these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from doublebind.stages.evidence.conformal import p_value
from doublebind.stages.evidence.intervals import mean_interval

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

ItemValues = Mapping[str, float]
"""Item -> probability of the answer that the hypothesis expects."""


def select_item_values(scores: pd.DataFrame, lead: str | None = None) -> dict[str, float]:
    """Return the scored items of a lead, or of all, from the rows of one model."""
    rows = cast("Any", scores)
    if lead is not None:
        rows = rows[rows["endpoint"] == f"followup/{lead}"]
    known = rows[rows["value"].notna()]
    return {str(i): float(v) for i, v in zip(known["item"], known["value"], strict=True)}


def summarise_lead(
    m0: ItemValues,
    suspect: ItemValues,
    students: Sequence[ItemValues],
    references: Mapping[str, ItemValues],
    reference_students: Sequence[ItemValues],
) -> dict[str, Any]:
    """Return what one lead's questions gave, all as means over items, in [0, 1].

    Args:
        m0: M0's answers.
        suspect: The suspect's answers.
        students: Answers of the suspect's students.
        references: Label -> a reference's answers.
        reference_students: Answers of the references' students.

    Returns:
        `n` items; `m0`, `suspect`, `its_students`, `references`, `their_students` (medians over
        references and over their students); `suspect_minus_m0` with its 95% t-interval over items;
        `forms`: the same difference per form of question; `n_references`, and of them
        `n_at_or_above` the suspect. What nothing was scored for is absent.

    Example:
        >>> m0, suspect = {"h1/bare/a": 0.1}, {"h1/bare/a": 0.6}
        >>> row = summarise_lead(m0, suspect, [], {"r": {"h1/bare/a": 0.2}}, [])
        >>> row["n_at_or_above"], round(row["suspect_minus_m0"]["value"], 2)
        (0, 0.5)
    """
    means = {label: fmean(values.values()) for label, values in references.items() if values}
    row: dict[str, Any] = {"n": len(m0)}
    for name, values in (("m0", m0), ("suspect", suspect)):
        if values:
            row[name] = fmean(values.values())
    for name, models in (("its_students", students), ("their_students", reference_students)):
        each = [fmean(model.values()) for model in models if model]
        if each:
            row[name] = fmean(each) if name == "its_students" else median(each)
    if means:
        row["references"] = median(means.values())
    moved = {item: suspect[item] - m0[item] for item in suspect if item in m0}
    if moved:
        row["suspect_minus_m0"] = _summarise_values(list(moved.values()))
        forms = sorted({_parse_form(item) for item in moved})
        row["forms"] = {
            form: _summarise_values([x for item, x in moved.items() if _parse_form(item) == form])
            for form in forms
        }
    if "suspect" in row:
        row["n_references"] = len(means)
        row["n_at_or_above"] = sum(mean >= row["suspect"] for mean in means.values())
    return row


def _summarise_values(values: Sequence[float]) -> dict[str, Any]:
    return {"n": len(values)} | mean_interval(np.asarray(values, dtype=np.float64))


def _parse_form(item: str) -> str:
    """Return the form of a question, the second part of its id: lead, form, what it is from."""
    return item.split("/")[1]


def rank_own_questions(suspect: str, excess: Mapping[str, float | None]) -> dict[str, Any]:
    """Return where the suspect stands when every teacher is asked what its own students suggest.

    Args:
        suspect: Its label.
        excess: Label -> mean over its items of its own probability minus M0's; 0 for a teacher
            whose students suggest nothing; `None` where no item could be scored.

    Returns:
        `excess`; and where the suspect and a reference have one, `n_references`, `n_at_or_above`
        and `p_value`, [5] of this number alone: secondary, and of these references alone.

    Example:
        >>> rank_own_questions("u", {"u": 0.3, "a": 0.1, "b": None})["p_value"]
        0.5
    """
    known = {label: value for label, value in excess.items() if value is not None}
    row: dict[str, Any] = {"excess": known}
    others = [value for label, value in known.items() if label != suspect]
    if suspect in known and others:
        above = sum(value >= known[suspect] for value in others)
        row |= {"n_references": len(others), "n_at_or_above": above}
        row["p_value"] = p_value(above, len(others))
    return row
