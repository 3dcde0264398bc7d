"""Computes error rates over references drawn anew, and checks that benign teachers are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from doublebind.pipeline.error_rates import KnownTeachers
from doublebind.pipeline.leave_one_out import KnownRows, collect_rows
from doublebind.schema.calibration import Check, DrawnRate, DrawnRates
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.stages.evidence import exchangeability
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import n_allowed
from doublebind.stages.evidence.redraw import N_DRAWS, average_shares, compute_flag_shares
from doublebind.stages.evidence.score import ScoreRule, score_teachers

if TYPE_CHECKING:
    import pandas as pd


def compute_drawn_rates(
    known: KnownTeachers,
    panel: Sequence[Teacher],
    n: int,
    *,
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
    protocol: Protocol,
) -> DrawnRates | None:
    """Return the rates by rank over draws of n references from all benign teachers.

    Args:
        known: Teachers with their class.
        panel: All references.
        n: References in a draw.
        scores: Rows of all teachers.
        shapes: Label -> match feature -> value.
        protocol: As frozen.

    Returns:
        `None` where a value is missing, n references never reach alpha, or there is but one draw.
    """
    panel = list({t.content_key: t for t in panel}.values())
    rows = collect_rows(known, panel, scores, shapes, protocol)
    at: dict[str, list[int]] = {}
    for i, (teacher_class, _) in enumerate(known):
        at.setdefault(teacher_class, []).append(len(panel) + i)
    held_out = at.get("benign", [])
    pool = [*range(len(panel)), *held_out]
    if rows is None or n_allowed(n, protocol.alpha) < 0 or len(pool) <= n + 1:
        return None
    rule, alpha = ScoreRule.from_protocol(protocol), protocol.alpha
    shares = {
        name: compute_flag_shares(rows.all, teachers, pool, n, rule=rule, alpha=alpha)
        for name, teachers in {**at, "pool": pool}.items()
    }
    families = [t.family for t in panel]
    families += [t.family for teacher_class, t in known if teacher_class == "benign"]
    return DrawnRates(
        n_pool=len(pool),
        n_drawn=n,
        n_draws=N_DRAWS,
        rates={name: _describe_rate(each) for name, each in shares.items()},
        checks=_check_pool(rows, pool, len(panel), families, rule)
        | _check_tail(shares["pool"], len(panel), n, alpha),
    )


def _describe_rate(shares: Floats) -> DrawnRate:
    value, interval = average_shares(shares)
    return DrawnRate(value=value, interval=interval, n=len(shares))


def _check_pool(
    rows: KnownRows,
    pool: Sequence[int],
    n_panel: int,
    families: Sequence[str],
    rule: ScoreRule,
) -> dict[str, Check]:
    """Return the checks of scores that are standardised over the whole pool."""
    scores = score_teachers(rows.all.select(pool), rule)
    references, held_out = scores[:n_panel], scores[n_panel:]
    checks: dict[str, Check] = {}
    if len(held_out):
        checks["rank"] = Check(
            p_value=exchangeability.check_ranks(held_out, references),
            finds=exchangeability.find_shift_by_ranks(len(held_out), n_panel),
        )
    p_families = exchangeability.check_families(scores, families)
    if p_families is not None:
        checks["family"] = Check(
            p_value=p_families, finds=exchangeability.find_spread_of_families(families)
        )
    return checks


def _check_tail(shares: Floats, n_panel: int, n: int, alpha: float) -> dict[str, Check]:
    """Return the check of how often draws flag held-out teachers."""
    references, held_out = shares[:n_panel], shares[n_panel:]
    if not len(held_out):
        return {}
    return {
        "draw": Check(
            p_value=exchangeability.check_draws(held_out, references),
            finds=exchangeability.find_shift_by_draws(len(held_out), n_panel, n, alpha),
        )
    }
