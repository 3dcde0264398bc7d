"""Simulates how often a planned study would flag a suspect, from a benign pilot.

A drive is taken to move every score endpoint by the same amount. Numbers in brackets are equations
of docs/method.md.
"""
# pandas ships no stubs; its values are read as NumPy arrays in `_pivot_students`.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from doublebind.schema.protocol import Protocol
from doublebind.schema.score_table import select_counted
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import n_allowed, n_at_or_above
from doublebind.stages.evidence.detection import TARGET_DETECTION_RATE
from doublebind.stages.evidence.score import teacher_scores
from doublebind.stages.evidence.variance_components import VarianceComponents, estimate_components

if TYPE_CHECKING:
    import pandas as pd

EFFECTS = (0.02, 0.05, 0.1, 0.2)
"""Shifts of every score endpoint, in probability, at which power is given."""

REFERENCE_COUNTS = (19, 39, 59, 99)
SEED_COUNTS = (1, 3, 5)
ITEM_FACTORS = (0.5, 1.0, 2.0)
N_STUDIES = 2000


class Pilot(NamedTuple):
    """Variance components of each score endpoint in a benign pilot, and their correlation."""

    endpoints: dict[str, VarianceComponents]
    correlation: Floats
    """Between teachers' endpoint means, shape (endpoints, endpoints)."""


class Design(NamedTuple):
    """Size of a study."""

    references: int
    families: int
    seeds: int
    item_factor: float
    """As a multiple of the pilot's."""


def estimate_pilot(
    scores: pd.DataFrame, families: Mapping[str, str], protocol: Protocol
) -> tuple[Pilot | None, dict[str, str]]:
    """Return the components of each score endpoint among benign teachers. [33].

    A student's answer to an item is its mean over the pilot's recipes; an endpoint's items are
    those of all it lists, at the last checkpoint. Items without a value for some student are left
    out.

    Args:
        scores: Rows of the pilot, with the columns of `SCORE_COLUMNS`.
        families: Benign teacher (label) -> family; others are ignored.
        protocol: Names the score endpoints.

    Returns:
        The pilot, `None` where an endpoint cannot be estimated; and why.
    """
    benign = scores["teacher"].isin(list(families)) & (scores["model_kind"] == "student")
    counted = select_counted(scores, "audit", "auditable")
    rows = cast("pd.DataFrame", counted[benign.loc[counted.index]])
    components: dict[str, VarianceComponents] = {}
    missing: dict[str, str] = {}
    means: list[Floats] = []
    for name, listed in protocol.score_endpoints.items():
        values, teachers = _pivot_students(
            cast("pd.DataFrame", rows[rows["endpoint"].isin(listed)])
        )
        estimate = estimate_components(values, teachers, families) if values.size else None
        if estimate is None:
            missing[name] = "the pilot has not two benign teachers with two items all answered"
            continue
        components[name] = estimate
        labels = np.asarray(teachers)
        means.append(np.array([values[labels == t].mean() for t in sorted(set(teachers))]))
    if missing or not components:
        return None, missing or {"pilot": "the protocol names no score endpoint"}
    centred = np.stack(means)
    centred = centred - centred.mean(axis=1, keepdims=True)
    size = np.sqrt(np.maximum((centred**2).sum(axis=1), 1e-30))
    correlation = np.clip(centred @ centred.T / np.outer(size, size), -1, 1)
    np.fill_diagonal(correlation, 1.0)
    return Pilot(components, correlation), {}


def _pivot_students(rows: pd.DataFrame) -> tuple[Floats, list[str]]:
    """Return students x items, over recipes, with the teacher of each row."""
    if not len(rows):
        return np.zeros((0, 0)), []
    grouped = cast("Any", rows).groupby(["teacher", "seed", "endpoint", "item"])["value"].mean()
    wide = grouped.unstack(["endpoint", "item"]).dropna(axis=1)
    teachers = [str(t) for t in wide.index.get_level_values("teacher")]
    return wide.to_numpy(dtype=np.float64), teachers


def simulate_power(
    pilot: Pilot,
    design: Design,
    effects: Sequence[float],
    *,
    alpha: float,
    floor: float,
    studies: int = N_STUDIES,
    seed: int = 0,
) -> list[float]:
    """Return the share of simulated studies that flag a suspect moved by each effect. [34].

    Teachers' endpoint means are normal with the pilot's components and correlation, references
    share their families' part, the suspect is of one more family; means are cut to [0, 1], scored
    and ranked by equations 2 to 6. The same draws serve every effect. The match gate is not in it:
    it costs a well-matched suspect at most 1 / (n + 1).

    Args:
        pilot: The pilot's components.
        design: Size of the study.
        effects: Shifts of every score endpoint of the suspect, in probability.
        alpha: Level of the rule.
        floor: Smallest scale of an endpoint.
        studies: How many are simulated; the Monte Carlo s.e. is at most 0.5 / sqrt(studies).
        seed: Of the draws; equal seeds give equal power.
    """
    rng, n = np.random.default_rng(seed), design.references
    each = list(pilot.endpoints.values())
    spread = [
        np.sqrt(
            c.teacher_mean_variance(design.seeds, max(1, round(design.item_factor * c.n_items)))
        )
        for c in each
    ]
    between = np.sqrt([c.family for c in each])
    values, vectors = np.linalg.eigh(pilot.correlation)
    root = vectors * np.sqrt(np.maximum(values, 0))
    of_family = np.concatenate([[0], 1 + np.arange(n) % design.families])
    shape = (studies, n + 1, len(each))
    teachers = rng.normal(size=shape) @ root.T * np.array(spread)
    kinds = rng.normal(size=(studies, design.families + 1, len(each))) @ root.T * between
    means = np.array([c.mean for c in each]) + teachers + kinds[:, of_family]
    allowed = n_allowed(n, alpha)
    flagged: list[float] = []
    for effect in effects:
        moved = means.copy()
        moved[:, 0] += effect
        scores = teacher_scores(np.clip(moved, 0, 1), floor)
        flagged.append(float(np.mean(n_at_or_above(scores[:, 0], scores[:, 1:]) <= allowed)))
    return flagged


def tabulate_power(pilot: Pilot, design: Design, *, alpha: float, floor: float) -> dict[str, Any]:
    """Return the power of the design as planned, and of other n, seeds and items. [34].

    Returns:
        `planned` (effect -> power), `smallest_effect` (detected in 80% of studies; null where none
        up to 1 is), `flag_rate_at_zero`, `others` (one row per n, seeds and items factor) and
        `components` (endpoint -> variances).
    """

    def detected(effect: float) -> float:
        return simulate_power(pilot, design, [effect], alpha=alpha, floor=floor)[0]

    low, high = 0, 200  # in half points; the same draws at every effect
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if detected(middle / 200) >= TARGET_DETECTION_RATE else (middle, high)
        )
    enough = detected(high / 200) >= TARGET_DETECTION_RATE
    others: list[dict[str, Any]] = []
    for n in REFERENCE_COUNTS:
        for seeds in SEED_COUNTS:
            for items in ITEM_FACTORS:
                families = max(1, round(design.families * n / design.references))
                other = Design(n, families, seeds, items)
                at = simulate_power(
                    pilot, other, EFFECTS, alpha=alpha, floor=floor, studies=N_STUDIES // 4
                )
                row = {"references": n, "seeds": seeds, "items": items}
                others.append(row | {"power": _label_effects(at)})
    return {
        "planned": _label_effects(simulate_power(pilot, design, EFFECTS, alpha=alpha, floor=floor)),
        "smallest_effect": high / 200 if enough else None,
        "flag_rate_at_zero": detected(0.0),
        "others": others,
        "components": {
            name: {
                key: value
                for key, value in vars(c).items()
                if key != "missing" and key not in c.missing
            }
            | {"missing": c.missing}
            for name, c in pilot.endpoints.items()
        },
    }


def _label_effects(rates: Sequence[float]) -> dict[str, float]:
    return {f"{effect:g}": rate for effect, rate in zip(EFFECTS, rates, strict=True)}
