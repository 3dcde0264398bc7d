"""Calibrates again with something left out: families of references, a drive's own items, recipes.

Knows teachers of known truth and their scores. Weighs nobody for a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.stages.evidence.intervals import clustered_rate_interval

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


def compute_leave_one_out_rates(
    known: Sequence[tuple[str, Teacher]],
    references: Callable[[int], Sequence[Teacher]],
    panel: Sequence[Teacher],
    planted: Mapping[str, str | None],
    scores: pd.DataFrame,
    protocol: Protocol,
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Return rates with something left out, and whom the procedure finds without the own drive.

    Args:
        known: Teachers of known truth with their class: `organism`, `benign`, `near_miss`.
        references: The references that the i-th of them is weighed against.
        panel: All references there are.
        planted: Label -> the drive that was planted.
        scores: Rows of all.
        protocol: Alpha, endpoints and what else was frozen.

    Returns:
        `n_panel`, `n_families`; `fpr_family_out`, of references weighed without their family;
        `fresh_rank_p`, of held-out benign teachers against the panel, and `fresh_limit`, the most
        of them that chance flags; `tpr_by_recipe`, from one recipe's students alone. Then, for each
        organism, whether it is flagged without the score endpoints of its own drive, as if nobody
        had thought of it. Where a measurement is incomplete, or there is nobody, a rate is absent.
    """
    from doublebind.stages.evidence import leave_one_out as evidence

    panel = list({t.content_key: t for t in panel}.values())
    families = [t.family for t in panel]
    floor, alpha = protocol.scale_floor, protocol.alpha
    found: dict[str, Any] = {"n_panel": len(panel), "n_families": len(set(families))}
    means = _compute_endpoint_means(scores, [*panel, *(t for _, t in known)], protocol)
    if means is None:
        return found, {}
    own, rest = means[: len(panel)], means[len(panel) :]
    out = evidence.flag_without_family(own, families, floor, alpha)
    found |= _compute_rate("fpr_family_out", out, families)
    fresh = [i for i, (kind, _) in enumerate(known) if kind == "benign"]
    if fresh:
        found["fresh_rank_p"] = evidence.held_out_p_value(rest[fresh], own, floor)
        n = min(len(references(i)) for i in fresh)
        found["fresh_limit"] = evidence.max_flagged_by_chance(len(fresh), n, alpha)
    place = {t.content_key: i for i, t in enumerate(panel)}
    names = list(protocol.score_endpoints)
    blind: dict[str, bool] = {}
    for i, (kind, teacher) in enumerate(known):
        drive = planted.get(teacher.label)
        left = [k for k, name in enumerate(names) if not _asks_about(protocol, name, drive)]
        if kind != "organism" or drive is None or not 0 < len(left) < len(names):
            continue
        against = [place[t.content_key] for t in references(i) if t.content_key in place]
        seen = evidence.is_flagged(rest[i, left], own[against][:, left], floor, alpha)
        if seen is not None:
            blind[teacher.label] = seen
    found["tpr_by_recipe"] = _compute_rates_by_recipe(known, references, panel, scores, protocol)
    return found, blind


def _compute_rates_by_recipe(
    known: Sequence[tuple[str, Teacher]],
    references: Callable[[int], Sequence[Teacher]],
    panel: Sequence[Teacher],
    scores: pd.DataFrame,
    protocol: Protocol,
) -> dict[str, Any]:
    from doublebind.stages.evidence.leave_one_out import is_flagged

    found: dict[str, Any] = {}
    place = {t.content_key: i for i, t in enumerate(panel)}
    for recipe in protocol.recipes:
        alone = protocol.model_copy(update={"recipes": (recipe,)})
        means = _compute_endpoint_means(scores, [*panel, *(t for _, t in known)], alone)
        if means is None:
            continue
        seen: list[bool | None] = []
        families = [teacher.family for kind, teacher in known if kind == "organism"]
        for i, (kind, _) in enumerate(known):
            if kind == "organism":
                against = means[
                    [place[t.content_key] for t in references(i) if t.content_key in place]
                ]
                own = means[len(panel) + i]
                seen.append(is_flagged(own, against, protocol.scale_floor, protocol.alpha))
        found |= _compute_rate(str(recipe["name"]), seen, families)
    return found


def _compute_endpoint_means(
    scores: pd.DataFrame, teachers: Sequence[Teacher], protocol: Protocol
) -> NDArray[np.float64] | None:
    """Return the mean of each score endpoint, (teachers, endpoints); `None` if one is missing."""
    from doublebind.stages.evidence.endpoint_means import compute_endpoint_means

    measured = compute_endpoint_means(scores, [t.label for t in teachers], protocol, "student")
    if measured.gaps or measured.shortfalls:
        return None
    return measured.score_endpoint_means(protocol).mean(axis=1)


def _asks_about(protocol: Protocol, name: str, drive: str | None) -> bool:
    """Return whether a score endpoint asks about a drive."""
    return any(part.partition("/")[2] == drive for part in protocol.score_endpoints[name])


def _compute_rate(
    name: str, seen: Sequence[bool | None], families: Sequence[str]
) -> dict[str, Any]:
    known = [(flag, kind) for flag, kind in zip(seen, families, strict=True) if flag is not None]
    return {name: clustered_rate_interval(*zip(*known, strict=True))} if known else {}
