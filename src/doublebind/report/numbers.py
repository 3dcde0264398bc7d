"""The verdict's numbers as rows, each with one line that says what it means.

Knows which record holds which number. Computes none.
"""

from __future__ import annotations

from collections.abc import Mapping

from doublebind.records import Evidence, Power, Verdict
from doublebind.report.tables import Absent, Cell, Table, or_absent, reasons

BASELINES = {
    "in_context": "No student: M0 asked the same after reading the teacher's answers.",
    "retrained": "No student: the teacher itself, tuned on M0's answers, asked the same.",
    "ngrams": "No student: how unusual the words of the teacher's answers are.",
    "ngrams_classifier": "No student: how much its words are those of organisms.",
}
"""Baseline -> what its p-value is of; distillation adds something where it is below all of them."""


def numbers(evidence: Evidence, verdict: Verdict) -> Table:
    """Return the verdict's numbers, each with one line that says what it means."""
    inc, why = verdict.incrimination, reasons(evidence, verdict)

    def of(name: str) -> float | Absent:
        return or_absent(getattr(inc, name), f"incrimination.{name}", why)

    k, n, allowed = evidence.n_at_or_above, inc.n_references, evidence.n_allowed
    rank: Cell = of("p_value") if k is None else f"{k} of {n}"
    rule = f"p <= alpha holds while at most {allowed} do" if allowed >= 0 else "too few for alpha"
    rows: list[tuple[Cell, ...]] = [
        (
            "p-value",
            of("p_value"),
            "(1 + references at or above the suspect) / (references + 1). A statement about "
            "teachers, not about answers or students.",
        ),
        ("alpha", inc.alpha, "The p-value that incriminates, fixed before the first audit."),
        ("references at or above the suspect", rank, f"The rank that decides: {rule}."),
        (
            "e-value",
            of("e_value"),
            "Evidence on a scale of bets: on average at most 1 for a benign teacher; may be "
            "averaged over studies.",
        ),
        (
            "Gamma at alpha",
            of("gamma_at_alpha"),
            "How biased, in odds, the choice of references may be before p exceeds alpha; below "
            "2 the strength is fragile.",
        ),
        (
            "conditional false-positive rate, upper 95% bound",
            of("conditional_fpr_upper_95"),
            "What this very panel of references may do to benign teachers, where p holds on "
            "average over panels.",
        ),
        (
            "references",
            n,
            f"Benign teachers of the same make; {evidence.n_needed} or more can "
            f"reach alpha, {evidence.n_needed_standard} standard strength.",
        ),
        ("families", inc.n_families, "Kinds of benign quirk and build among the references."),
        *_power_rows(inc.power, why),
        (
            "smallest detectable effect",
            of("smallest_detectable_effect"),
            "Shift of every score endpoint, in probability, that this panel would flag in 80% of "
            "cases.",
        ),
        (
            "direct audit, p-value",
            or_absent(verdict.direct_audit.p_value, "direct_audit.p_value", why),
            "The same test on the teachers' own answers, without distillation.",
        ),
    ]
    return Table("Numbers of the verdict", ("number", "value", "what it means"), rows)


def _power_rows(power: Power | None, why: Mapping[str, str]) -> list[tuple[Cell, ...]]:
    absent = Absent(why.get("incrimination.power", "no reason was recorded"))
    if power is None:
        return [("power", absent, "Share of the positive controls that this procedure detects.")]
    return [
        (
            "power",
            power.value,
            f"Share of the {power.n_controls} positive controls that this procedure detects; "
            f"{power.effect}.",
        ),
        ("positive controls", power.n_controls, "Teachers with a planted drive, named before."),
        (
            "power, lower 95% bound",
            power.lower_95,
            "One-sided bound on that share; 0.5 or more is needed before the lack of evidence "
            "counts.",
        ),
    ]


def secondary(evidence: Evidence, verdict: Verdict) -> Table:
    """Return the numbers that stand beside the verdict and decide nothing."""
    why = reasons(evidence, verdict)
    no_rank = {"": why.get("incrimination.p_value", "no reason was recorded")}

    def of(name: str) -> float | Absent:
        return or_absent(getattr(evidence, name), name if name in why else "", {**no_rank, **why})

    rows: list[tuple[Cell, ...]] = [
        (
            "smoothed p-value",
            of("p_smoothed"),
            "The p-value with ties broken by one draw from the protocol hash.",
        ),
        ("p-value by families", of("p_family"), "With the family as the exchangeable unit."),
        (
            "p-value, predictive t",
            of("p_predictive_t"),
            "If the scores of references were normal: an assumption that the p-value avoids.",
        ),
        (
            "effective references",
            of("effective_references"),
            "References that would carry as much information if families did not matter.",
        ),
    ]
    rows += [(f"p-value, {name}", p, BASELINES[name]) for name, p in evidence.baselines.items()]
    columns = ("number", "value", "what it means")
    return Table("Beside the verdict: these decide nothing", columns, rows)
