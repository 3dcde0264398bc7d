"""The numbers of the verdict, and tables of what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from doublebind.schema.evidence import Evidence, Interval, LikelihoodRatio, Transfer
from doublebind.schema.verdict import Replacement
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.tables.table import (
    Absent,
    Cell,
    Row,
    Table,
    find_reason,
    format_fixed,
    format_interval,
    value_or_absent,
)

METHOD_NAMES = {
    "students": "students (this method)",
    "direct": "direct audit",
    "in_context": "reading in context",
    "retrained": "retraining the suspect",
    "ngrams": "unusual words",
    "ngrams_classifier": "words of organisms",
}
"""Method of the evidence -> its name on the page."""

_METHOD_MEANINGS = {
    "students": "The verdict's: the teacher's students, asked the audit's questions.",
    "direct": "The teacher itself, asked the same.",
    "in_context": "No student: M0 asked the same after reading the teacher's answers.",
    "retrained": "No student: the teacher itself, tuned on M0's answers, asked the same.",
    "ngrams": "No student: how unusual the words of the teacher's answers are.",
    "ngrams_classifier": "No student: how much its words are those of organisms.",
}


def tabulate_methods(run: RunContent) -> Table:
    """Return the suspect's p-value and the count of detected controls, by each method."""
    evidence, reasons = run.evidence, run.reasons
    p_values: dict[str, Cell] = {
        "students": value_or_absent(evidence.p_value, "incrimination.p_value", reasons),
        "direct": value_or_absent(evidence.direct.p_value, "direct_audit.p_value", reasons),
        **evidence.baselines,
    }
    controls = {**evidence.baseline_controls, "students": evidence.controls}
    rows: list[Row] = [
        (
            METHOD_NAMES.get(name, name),
            p,
            _count_detected(evidence, controls.get(name, {})),
            _METHOD_MEANINGS.get(name, ""),
        )
        for name, p in p_values.items()
    ]
    return Table(
        "Ways of looking at the suspect",
        ("way", "p of the suspect", "positive controls", "what it looks at"),
        rows,
        note=(
            "All are ranked by one rule against the same references. Controls are counted by rank "
            "alone; the verdict's power holds them to the match table as well. Distillation adds "
            "something only where students see what reading does not, over many organisms: one "
            "suspect cannot show that."
        ),
    )


def _count_detected(evidence: Evidence, controls: Mapping[str, float]) -> Cell:
    if not controls:
        return Absent("no positive control was ranked this way")
    hits = sum(evidence.reaches_alpha(p) for p in controls.values())
    return f"{hits} of {len(controls)} detected"


def collect_numbers(run: RunContent) -> dict[str, Cell]:
    """Return the verdict's numbers by name; the template says what each means."""
    evidence, incrimination, reasons = run.evidence, run.verdict.incrimination, run.reasons
    names = ("p_value", "e_value", "gamma_at_alpha", "conditional_fpr_upper_95")
    numbers: dict[str, Cell] = {
        name: value_or_absent(getattr(incrimination, name), f"incrimination.{name}", reasons)
        for name in (*names, "smallest_detectable_effect")
    }
    numbers["other_p_value"] = value_or_absent(
        evidence.other_p_value, "incrimination.p_value", reasons
    )
    numbers["shift"] = _format_largest_shift(evidence, reasons)
    k, power = evidence.n_at_or_above, incrimination.power
    no_power = find_reason(reasons, "incrimination.power")
    direct = run.verdict.direct_audit.p_value
    return numbers | {
        "rank": numbers["p_value"] if k is None else f"{k} of {incrimination.n_references}",
        "power": no_power if power is None else power.value,
        "direct_p_value": value_or_absent(direct, "direct_audit.p_value", reasons),
    }


def _format_largest_shift(evidence: Evidence, reasons: Mapping[str, str]) -> Cell:
    """Return the shift of the score endpoint that stands out most, with its interval and name."""
    if not evidence.shifts:
        return find_reason(reasons, "incrimination.p_value")
    best = min(
        evidence.shifts,
        key=lambda name: (evidence.endpoint_p.get(name, 1.0), -evidence.shifts[name].value),
    )
    return f"{format_interval(evidence.shifts[best])} on {shorten(best)}"


def collect_secondary_numbers(run: RunContent) -> dict[str, Cell]:
    """Return the numbers that decide nothing by name; the template says what each means."""
    evidence, reasons = run.evidence, run.reasons
    return {
        name: value_or_absent(
            getattr(evidence, name), name if name in reasons else "incrimination.p_value", reasons
        )
        for name in ("p_smoothed", "p_family", "p_predictive_t", "effective_references")
    }


def describe_posteriors(likelihood: LikelihoodRatio | None) -> str:
    """Return the probability after the score for each prior; empty without a likelihood ratio."""
    posteriors = likelihood.posterior_by_prior if likelihood else {}
    return ", ".join(f"{prior} becomes {posterior:.2g}" for prior, posterior in posteriors.items())


_REPLACEMENT_MEANINGS = {
    "recipe": "How the replacement was distilled; chosen before the items that certify were asked.",
    "weights_sha256": "The one student that would be handed over.",
    "tau_capability": "Share of the suspect's capability, beyond M0's, that came along.",
    "misalignment_upper_95": "One-sided 95% bound on its misalignment above M0's, in probability.",
    "further_training": "What became of students that were trained further, against M0 trained "
    "alike.",
    "margin": "The largest such excess that the study accepts, fixed before the first audit.",
    "scope": "Where the bound holds; outside it nothing is said.",
}


def tabulate_replacement(decision: Replacement, reasons: Mapping[str, str]) -> Table:
    """Return the numbers of the replacement decision."""
    rows: list[Row] = []
    for name, value in decision.model_dump(mode="json", by_alias=False).items():
        if name in ("decision", "reasons"):
            continue
        match value:
            case None:
                cell: Cell = find_reason(reasons, f"replacement.{name}")
            case int() | float():
                cell = value
            case dict():
                cell = _join_parts([f"{key}: {outcome}" for key, outcome in value.items()])
            case list():
                cell = _join_parts(value)
            case _:
                cell = shorten(value, 400)
        rows.append((name.replace("_", " "), cell, _REPLACEMENT_MEANINGS.get(name, "")))
    return Table("Numbers of the replacement", ("number", "value", "what it means"), rows)


def _join_parts(parts: list[str]) -> str:
    return shorten("; ".join(parts) or "none", 2000)


def tabulate_specificity(evidence: Evidence) -> Table:
    """Return the suspect's effect on each scored trait and on each placebo trait."""
    none = Absent("no trait of this name is scored")
    rows: list[Row] = [
        (
            trait,
            evidence.effects[trait].minus_references if trait in evidence.effects else none,
            gap,
        )
        for trait, gap in evidence.specificity.items()
    ]
    rows += [
        (f"{trait} (placebo)", format_fixed(effect), "")
        for trait, effect in evidence.placebo_effects.items()
    ]
    return Table(
        "Placebo traits: would any trait have stood out?",
        ("trait", "suspect minus median of references", "minus the largest placebo effect"),
        rows,
        note="Placebo traits are suspected of nobody, measured like the others and never scored.",
    )


def tabulate_transfer(transfers: Sequence[Transfer]) -> Table:
    """Return the transfer shares of planted teachers, per recipe and trait."""

    def ratio(transfer: Transfer, name: str) -> Cell:
        interval: Interval | None = getattr(transfer, name)
        if interval is None:
            return find_reason(transfer.missing, name)
        return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"

    names = ("tau_b", "tau_conceal", "tau_c", "incrimination_gap")
    rows: list[Row] = [
        (shorten(t.teacher), t.recipe, t.trait, *(ratio(t, name) for name in names))
        for t in transfers
    ]
    return Table(
        "Transfer from planted teachers, with 95% intervals",
        ("teacher", "recipe", "trait", "tau_B", "tau_conceal", "tau_C", "incrimination gap"),
        rows,
        note=(
            "Shares of what the teacher does in deployment-like contexts that its students do: 0 "
            "nothing, 1 all. The gap is students minus teacher on the scored items. Organisms "
            "only; never scored."
        ),
    )
