"""Records of `calibration.json`: teachers of known truth, their decisions, and the error rates."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from doublebind.schema.evidence import Interval, Outcome, RecipeResult
from doublebind.schema.hashing import Record, optional_field
from doublebind.schema.verdict import Horn

TeacherClass = Literal["organism", "benign", "near_miss"]


class Rate(Record):
    """A share of teachers, k of n."""

    value: float
    interval: tuple[float, float]
    """Two-sided 95% Clopper-Pearson interval over teachers."""
    k: int
    n: int
    n_clusters: int | None = optional_field()
    """Families of the teachers."""
    clustered: tuple[float, float] | None = optional_field()
    """Two-sided 95% interval that allows for teachers of one family failing together."""
    baseline: str | None = optional_field()
    """Name of the baseline, where the rate is that of the best one."""


class NoRate(Record):
    """A share of no teachers at all."""

    n: Literal[0] = 0


Share = Rate | NoRate


class PairedDifference(Record):
    """Share that students detect minus share that a baseline detects, on the same teachers."""

    over: str
    """Name of the baseline."""
    value: float
    interval: tuple[float, float]
    n: int


class MethodResult(Record):
    """A method that needs no students of the teacher, and what it gives for that teacher."""

    p_value: float
    flagged: bool
    """Whether p <= alpha."""


class TeacherResult(Record):
    """A teacher of known truth, weighed as if it were the suspect."""

    teacher: str
    family: str
    teacher_class: TeacherClass = Field(serialization_alias="class")
    organism_class: str | None = optional_field()
    """Of an organism: its hard class, or `ordinary`."""
    decision: Literal["incriminated", "not_incriminated", "inconclusive"]
    traits: tuple[str, ...]
    """Score endpoints on which it stands out at alpha."""
    n_references: int
    p_value: float | None = optional_field()
    flagged: bool | None = optional_field()
    """Whether p <= alpha, by rank alone."""
    methods: dict[str, MethodResult] = {}
    """`direct` (the direct audit) or a baseline -> its result; in the JSON `p_value_NAME` and
    `flagged_NAME`."""
    flagged_unknown_drive: bool | None = optional_field()
    """Whether an organism is flagged without the score endpoints of its own drive."""

    @property
    def incriminated(self) -> bool:
        """Whether the decision is `incriminated`; a key of the JSON."""
        return self.decision == "incriminated"

    @model_serializer(mode="wrap")
    def _flatten(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = dump(self)
        for name, method in row.pop("methods").items():
            row |= {f"{key}_{name}": value for key, value in method.items()}
        return row | {"incriminated": self.incriminated}


class DetectionRates(Record):
    """Rates of the incrimination decisions."""

    n_organisms: int
    n_fresh_benign: int
    tpr_known_drive: Rate | None = optional_field()
    """Organisms that are incriminated, match gate included."""
    fresh_flagged: Rate | None = optional_field()
    """Held-out benign teachers that are incriminated."""
    near_misses: Rate | None = optional_field()
    """Near misses that are incriminated."""
    by_method: dict[str, Rate] = {}
    """`tpr_METHOD` (organisms), `fresh_flagged_METHOD` (benign) and `near_misses_METHOD` -> share
    flagged by rank; beside the other keys in the JSON. METHOD is `by_rank`, `direct` (the direct
    audit), a baseline, or `unknown_drive` (without the endpoints of the organism's own drive)."""
    not_incriminated: Rate | None = optional_field()
    """Benign teachers whose decision is `not_incriminated`."""
    tpr_by_class: dict[str, Rate]
    """Class of organism -> incriminated."""
    by_family: dict[str, Rate]
    """Family -> incriminated."""
    tpr_best_reading_baseline: Rate | None = optional_field()
    """Organisms flagged by the baseline that flags most; chosen afterwards, in its favour."""
    gain: PairedDifference | None = optional_field()
    gain_unknown_drive: PairedDifference | None = optional_field()

    @model_serializer(mode="wrap")
    def _flatten(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = dump(self)
        return row | row.pop("by_method")


class LeaveOneOutRates(Record):
    """Rates with a family, a recipe or a drive's own endpoints left out."""

    n_panel: int
    n_families: int
    fpr_family_out: Rate | None = optional_field()
    """References flagged by the references of all other families."""
    fresh_rank_p: float | None = optional_field()
    """One-sided p-value that held-out benign teachers score above the references."""
    fresh_limit: int | None = optional_field()
    """Most held-out benign teachers that chance flags, 99 times of 100."""
    tpr_by_recipe: dict[str, Rate] | None = optional_field()
    """Recipe -> organisms flagged from its students alone."""


class DrawnRate(Record):
    """Mean share, over teachers, of draws of references that flag a teacher by rank."""

    value: float
    interval: tuple[float, float]
    """Two-sided 95% interval over teachers."""
    n: int
    """Teachers."""


class Check(Record):
    """A check of exchangeability, and what it would have found."""

    p_value: float
    finds: float | None = optional_field()
    """Smallest departure that the check finds in 80% of cases, in s.d. of benign scores: a shift of
    the held-out teachers, or a spread between families. Absent where 4 are not enough."""


class DrawnRates(Record):
    """Rates over references drawn anew, by rank, from one pool of benign teachers."""

    n_pool: int
    """References and held-out benign teachers."""
    n_drawn: int
    """References in a draw."""
    n_draws: int
    """Draws per teacher."""
    rates: dict[str, DrawnRate]
    """`organism`, `benign` (held-out), `near_miss`, and `pool`: every benign teacher of the pool
    against draws of the others."""
    checks: dict[str, Check]
    """`rank`, `draw`: whether held-out benign teachers score, or are flagged, above references;
    `family`: whether families of benign teachers differ."""


class OracleShift(Interval):
    """The largest shift of the students above M0 on oracle items, and its drive."""

    drive: str


class CertificateResult(Record):
    """The replacement decision on a teacher's students of one recipe."""

    teacher: str
    family: str
    teacher_class: TeacherClass = Field(serialization_alias="class")
    organism_class: str | None = optional_field()
    recipe: str
    decision: Literal["within_margin", "not_within_margin", "inconclusive"]
    reasons: tuple[str, ...]
    upper: float | None = optional_field()
    """Largest 95% upper bound over score endpoints, in probability."""
    further: dict[str, Outcome] | None = optional_field()
    """Kind of further training -> its outcome."""
    tau_c: Interval | None = optional_field()
    tau_b: Interval | None = optional_field()
    """Absent where the teacher does not differ from M0."""
    oracle: OracleShift | None = optional_field()
    beyond: dict[str, float] | None = optional_field()
    """Drive -> shift on oracle items, where it exceeds the margin."""
    exceeds_asked: bool | None = optional_field()
    """Whether a drive in `beyond` is one that a score endpoint asks about."""
    comparable: bool | None = optional_field()
    """Of an organism: whether its drive transfers under the untreated recipe."""

    @property
    def exceeds(self) -> bool:
        """Whether a drive exceeds the margin on oracle items; a key of the JSON with `oracle`."""
        return bool(self.beyond)

    @property
    def false_certificate(self) -> bool:
        """Whether the decision is `within_margin` though a drive exceeds it; likewise a key."""
        return self.exceeds and self.decision == "within_margin"

    @model_serializer(mode="wrap")
    def _add_properties(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = dump(self)
        if self.oracle is not None:
            row |= {"exceeds": self.exceeds, "false_certificate": self.false_certificate}
        return row


class FalseCertificates(Record):
    """Students within the margin that exceed it on oracle items."""

    students: int
    """Students within the margin."""
    wrong_students: int
    teachers: Share
    """Teachers with at least one wrong certificate, on any drive."""
    on_asked_drives: Share
    """The same, on drives that a score endpoint asks about."""


class ReplacementRates(Record):
    """Rates of the replacement decisions."""

    competed: tuple[RecipeResult, ...]
    chosen: str
    """The recipe that won."""
    margin: float
    treatments: tuple[CertificateResult, ...]
    false_certificates: dict[str, FalseCertificates]
    """Class of teacher, or class of organism -> its false certificates."""
    outcomes: dict[TeacherClass, dict[Horn, Share]]
    replacement_if_not_incriminated: dict[TeacherClass, Share]
    common_mode: Share
    """Organisms that are not incriminated and whose certificate is false: one blind battery fails
    twice."""


class Calibration(Record):
    """Teachers of known truth, and the error rates of the decisions on them."""

    protocol_hash: str
    alpha: float
    n_references: int
    """References that each teacher is weighed against."""
    leave_one_out: LeaveOneOutRates
    """In the JSON, its keys stand beside the others; likewise for the next two."""
    detection: DetectionRates
    drawn: DrawnRates | None = optional_field()
    """Absent where the benign teachers are too few to draw from."""
    replacement: ReplacementRates | None = None
    teachers: tuple[TeacherResult, ...]

    def list_rates(self) -> dict[str, Rate]:
        """Return the rates by their key in the JSON."""
        parts = [self.leave_one_out, self.detection, self.replacement]
        rates = {name: rate for part in parts if part for name, rate in part}
        rates = {name: rate for name, rate in rates.items() if isinstance(rate, Rate)}
        return rates | self.detection.by_method

    @model_serializer(mode="wrap")
    def _flatten(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = dump(self)
        for name in ("leave_one_out", "detection", "replacement"):
            row |= row.pop(name) or {}
        return row
