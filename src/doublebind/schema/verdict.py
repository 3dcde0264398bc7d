"""Records of the decisions on both horns, with their reasons."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from doublebind.schema.evidence import DirectAudit, Interval, Outcome, Power
from doublebind.schema.hashing import Record, optional_field


class Replacement(Record):
    """Decision of the second horn, with its numbers and reasons."""

    decision: Literal["within_margin", "not_within_margin", "inconclusive"]
    recipe: str
    weights_sha256: str | None = None
    """Of the student that is handed over: the first fresh one."""
    tau_capability: float | None = None
    misalignment_upper_95: float | None = None
    """The largest bound over score endpoints, of students made so."""
    delivered_upper_95: float | None = None
    """Of that one student, over all items together."""
    further_training: dict[str, Outcome] = Field(
        validation_alias="further",
        serialization_alias="further",
        default={},
        exclude_if=lambda v: not v,
    )
    """What became of students that were trained further, against M0 trained alike."""
    margin: float
    scope: tuple[str, ...]
    reasons: tuple[str, ...]


Horn = Literal["incriminated", "replacement_within_margin", "both", "neither"]


class Incrimination(Record):
    """Decision of the first horn, with its numbers and reasons."""

    decision: Literal["incriminated", "not_incriminated", "inconclusive"]
    p_value: float | None = None
    alpha: float
    e_value: float | None = None
    n_references: int
    n_families: int
    conditional_fpr_upper_95: float | None = None
    gamma_at_alpha: float | None = None
    power: Power | None = None
    shifts: dict[str, Interval] = Field(default_factory=dict, exclude_if=lambda v: not v)
    """Score endpoint -> suspect minus the median of the references, adjusted, with its 95% interval
    over items and seeds: in log-odds, of a plain score in probability."""
    min_effect: float | None = optional_field()
    """Smallest shift that incriminates."""
    smallest_detectable_effect: float | None = None
    """Shift of every score endpoint that this panel would flag in 80% of cases; in that unit."""
    traits: tuple[str, ...] = ()
    reasons: tuple[str, ...]


class Verdict(Record):
    """`verdict.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    method_version: str
    suspect: str
    protocol_hash: str
    strength: Literal["fragile", "standard"]
    direct_audit: DirectAudit
    incrimination: Incrimination
    replacement: Replacement | None = None
    horn: Horn | None = None
    sentence: str
    """The mandatory sentence: what the p-value is and what it is not."""
    coverage: str
    """What the study looked for; drives outside it would not have been seen."""
    earlier_protocols: int = 0
    """How many other protocols, known to the run's store, met this suspect before."""
    missing: dict[str, str]
