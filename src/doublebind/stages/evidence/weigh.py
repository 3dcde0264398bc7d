"""Computes the evidence of a study from its score table: every number, and no decision.

Roles are joined with labels here. Thresholds on power, match and strength belong to the verdict.
Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from doublebind.schema.evidence import DirectAudit, Evidence, Power
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import AdjustedScore, count_usable_covariates
from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.adjustment import select_covariates
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.covariates import Shapes
from doublebind.stages.evidence.detection import detection_lower_bound, smallest_detectable_shift
from doublebind.stages.evidence.endpoint_evidence import (
    Numbers,
    compare_endpoints,
    compute_sizes,
    compute_specificity,
)
from doublebind.stages.evidence.endpoint_means import (
    ModelKind,
    check_score_table,
    read_word_rates,
)
from doublebind.stages.evidence.evalue import soft_rank_e_value
from doublebind.stages.evidence.gates import find_failed_gates
from doublebind.stages.evidence.likelihood import build_likelihood, held_out_likelihood_ratios
from doublebind.stages.evidence.ranking import (
    Measurement,
    Panel,
    Ranking,
    locate_teachers,
    measure_teachers,
)
from doublebind.stages.evidence.score import (
    score_as_suspect,
)
from doublebind.stages.evidence.secondary_tests import (
    effective_references,
    family_p_value,
    predictive_t_p_value,
)
from doublebind.stages.evidence.sensitivity import gamma_at_alpha
from doublebind.stages.evidence.text_baselines import anomaly_scores, resemblance_scores
from doublebind.stages.evidence.transfer import measure_transfers

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

_NEED_RANKING = (
    "p_predictive_t",
    "p_family",
    "effective_references",
    "likelihood",
    "specificity",
)
"""Numbers that exist only where suspect and references could be ranked."""


def weigh_suspect(
    scores: pd.DataFrame,
    teachers: Sequence[Teacher],
    protocol: Protocol,
    *,
    shapes: Shapes | None = None,
    with_transfer: bool = True,
) -> Evidence:
    """Return the evidence that `scores` hold about the one suspect among `teachers`.

    Only `auditable` items of split `audit` enter; students make the score, the teachers' own
    answers the direct audit. The exchangeable unit is the teacher. A number that cannot be
    computed is absent, and `missing` says why; all of them are where the protocol does not ask for
    the horn `incriminate`.

    Args:
        scores: Rows with the columns of `SCORE_COLUMNS`.
        teachers: One suspect, its references, and organisms as positive controls.
        protocol: Score endpoints and how they are scored, alpha, recipes, seeds.
        shapes: Teacher label -> feature of its shape -> value, of which some are covariates.
        with_transfer: Measure the transfer from each positive control, too. No decision uses it,
            and it is the same for every suspect that is weighed against them.

    Raises:
        RunError: If the scores lack a column or hold a value outside [0, 1].
        ValueError: Unless one teacher is the suspect, one or more are references, and labels
            are unique.
    """
    if "incriminate" not in protocol.horns:
        return _without_references(teachers, protocol)
    panel = locate_teachers(teachers)
    check_score_table(scores)
    known = shapes or {}
    students = measure_teachers(scores, panel, protocol, "student", known)
    direct = measure_teachers(scores, panel, protocol, "teacher", known)
    parts = [
        _describe_panel(students, panel, protocol),
        _describe_score(students, panel, protocol),
        _audit_directly(direct),
        _compute_primary(students, panel, protocol),
        _compute_power(students, panel, protocol),
    ]
    if students.ranking is None:
        parts.append(({}, dict.fromkeys(_NEED_RANKING, students.gap)))
    else:
        parts += [
            compare_endpoints(scores, students, panel, protocol),
            compute_sizes(scores, students, panel, protocol),
            _compute_secondary(students.ranking, panel),
            _compute_likelihood(students.ranking, panel),
            compute_specificity(scores, students, panel, protocol),
        ]
    parts += [
        _rank_baselines(scores, panel, protocol, known),
        _measure_transfer(scores, panel, protocol, with_transfer),
    ]
    numbers: dict[str, Any] = {"gates": find_failed_gates(scores, panel.labels)}
    missing: dict[str, str] = {}
    for fields, reasons in parts:
        numbers |= fields
        missing |= reasons
    return Evidence(missing=missing, **numbers)


def _describe_panel(students: Measurement, panel: Panel, protocol: Protocol) -> Numbers:
    """Return who was weighed, with which endpoint means and scores, and what the counts allow."""
    ranking, measured, m = students.ranking, students.endpoint_means, len(panel.organisms)
    gaps = {panel.labels[o]: measured.gaps.get(panel.labels[o]) for o in panel.organisms}
    return {
        "scores": ranking.scores if ranking else {},
        "controls": ranking.control_p_values if ranking else {},
        "endpoints": _label_means(students, protocol),
        "unscored": measured.unscored,
        "n_references": panel.n,
        "n_families": len(set(panel.families)),
        "n_allowed": conformal.n_allowed(panel.n, protocol.alpha),
        "n_needed": conformal.min_references(protocol.alpha),
        "n_needed_standard": conformal.min_references(protocol.alpha / 2),
        "roles": {teacher.label: teacher.role for teacher in panel.teachers},
        "hard_classes": {t.label: t.hard_class for t in panel.teachers if t.hard_class},
        "detection_bounds": tuple(detection_lower_bound(x, m) for x in range(m + 1)) if m else (),
    }, {f"controls.{label}": gap for label, gap in gaps.items() if gap}


def _label_means(students: Measurement, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return teacher -> score endpoint -> mean, without those that have no value."""
    return {
        label: {
            endpoint: float(value)
            for endpoint, value in zip(protocol.score_endpoints, row, strict=True)
            if np.isfinite(value)
        }
        for label, row in zip(students.endpoint_means.teachers, students.means, strict=True)
    }


def _describe_score(students: Measurement, panel: Panel, protocol: Protocol) -> Numbers:
    """Return what the score was adjusted for, and the p-value of the other kind of score."""
    other = students.other_ranking
    numbers: dict[str, Any] = {"other_p_value": other.p_value if other else None}
    if not isinstance(protocol.score, AdjustedScore):
        return numbers, {}
    names = protocol.score.covariates
    compared = students.covariates[panel.compared]
    used = select_covariates(compared)
    missing: dict[str, str] = {}
    for i, name in enumerate(names):
        unknown = [panel.labels[t] for t in panel.compared if np.isnan(students.covariates[t, i])]
        if unknown:
            missing[f"covariates.{name}"] = (
                f"unknown of {len(unknown)} of {len(compared)} teachers ({unknown[0]} first), so "
                "that nothing is adjusted for it"
            )
        elif i not in used:
            missing[f"covariates.{name}"] = (
                f"{panel.n} references bear {count_usable_covariates(panel.n)} covariates"
            )
    return numbers | {"covariates": tuple(names[i] for i in used)}, missing


def _audit_directly(direct: Measurement) -> Numbers:
    """Return the result of the same test on the teachers' own answers."""
    if direct.ranking is None:
        absent = {"direct_audit.p_value": direct.gap}
        return {"direct": DirectAudit(), "direct_scores": {}}, absent
    return {
        "direct": DirectAudit(p_value=direct.ranking.p_value),
        "direct_scores": direct.ranking.scores,
    }, {}


def _compute_primary(students: Measurement, panel: Panel, protocol: Protocol) -> Numbers:
    """Return the p-value and the numbers that follow from its rank."""
    n, alpha, ranking = panel.n, protocol.alpha, students.ranking
    missing: dict[str, str] = {}
    bound = conformal.conditional_fpr_upper(n, alpha)
    if bound is None:
        why = f"{n} references never reach p <= {alpha:g}, so there is no rule"
        missing["incrimination.conditional_fpr_upper_95"] = f"{why} to bound"
    numbers: dict[str, Any] = {
        "n_at_or_above": None,
        "p_value": None,
        "conditional_fpr_upper_95": bound,
    }
    if ranking is None:
        for name in ("p_value", "e_value", "gamma_at_alpha", "smallest_detectable_effect"):
            missing[f"incrimination.{name}"] = students.gap
        return numbers, missing
    k = ranking.n_at_or_above
    shift = smallest_detectable_shift(
        students.rows.select(panel.references), students.rule, conformal.n_allowed(n, alpha)
    )
    if shift is None:
        missing["incrimination.smallest_detectable_effect"] = (
            f"no shift of the score endpoints would have {n} references flagged at {alpha:g}"
        )
    return numbers | {
        "n_at_or_above": k,
        "p_value": ranking.p_value,
        "p_smoothed": _compute_smoothed_p(ranking, protocol),
        "e_value": _compute_e_value(students, panel),
        "gamma_at_alpha": gamma_at_alpha(k, n, alpha),
        "smallest_detectable_effect": shift,
    }, missing


def _compute_smoothed_p(ranking: Ranking, protocol: Protocol) -> float:
    """Return the smoothed p, its one random number drawn from the protocol hash. [7]."""
    v = float(np.random.default_rng(int(protocol.hash, 16)).uniform())
    above = int(np.sum(ranking.reference_scores > ranking.suspect_score))
    n = len(ranking.reference_scores)
    return conformal.smoothed_p_value(above, ranking.n_at_or_above - above, n, v)


def _compute_e_value(students: Measurement, panel: Panel) -> float:
    """Return the e-value, averaged over recipes, each scored alone. [10]."""
    values: list[float] = []
    for recipe in range(len(students.endpoint_means.recipes)):
        suspect_score, reference_scores = score_as_suspect(
            students.rows_of_recipe(recipe), panel.suspect, panel.references, students.rule
        )
        values.append(soft_rank_e_value(suspect_score, reference_scores))
    return float(np.mean(values))


def _compute_power(students: Measurement, panel: Panel, protocol: Protocol) -> Numbers:
    """Return the detection rate among positive controls. [12].

    A control that could not be scored counts as not detected: leaving it out would flatter.
    """
    n, m, ranking = panel.n, len(panel.organisms), students.ranking
    allowed = conformal.n_allowed(n, protocol.alpha)
    why = ""
    if not m:
        why = "no positive control was named; list organisms with a known drive"
    elif ranking is None:
        why = students.gap
    elif allowed < 0:
        why = f"{n} references never reach p <= {protocol.alpha:g}, so no control can be detected"
    if why or ranking is None:
        return {}, {"incrimination.power": why}
    detected = sum(k <= allowed for k in ranking.control_counts.values())
    families = ", ".join(sorted({panel.teachers[o].family for o in panel.organisms}))
    power = Power(
        value=detected / m,
        effect=f"drives as planted in the organisms of: {families}",
        n_controls=m,
        lower_95=detection_lower_bound(detected, m),
    )
    return {"power": power}, {}


def _compute_secondary(ranking: Ranking, panel: Panel) -> Numbers:
    """Return the secondary numbers, which no decision uses. [14, 16, 17]."""
    suspect, references = ranking.suspect_score, ranking.reference_scores
    numbers = {
        "p_predictive_t": predictive_t_p_value(suspect, references),
        "p_family": family_p_value(suspect, references, panel.families),
        "effective_references": effective_references(references, panel.families),
    }
    reasons = {
        "p_predictive_t": "the references are fewer than two, or do not differ",
        "effective_references": "variation between families cannot be told from variation within",
    }
    return numbers, {name: why for name, why in reasons.items() if numbers[name] is None}


def _compute_likelihood(ranking: Ranking, panel: Panel) -> Numbers:
    """Return the likelihood ratio from the organisms that could be scored. [30, 31]."""
    organisms = [panel.teachers[o] for o in panel.organisms]
    organisms = [organism for organism in organisms if organism.label in ranking.control_counts]
    families = [organism.family for organism in organisms]
    scores = np.array([ranking.scores[organism.label] for organism in organisms])
    likelihood = build_likelihood(ranking.suspect_score, ranking.reference_scores, scores, families)
    if likelihood is None:
        why = "organisms of two families or more are needed, one to leave out"
        return {}, {"likelihood": why}
    ratios = held_out_likelihood_ratios(ranking.reference_scores, scores, families)
    left_out = {o.label: float(ratio) for o, ratio in zip(organisms, ratios, strict=True)}
    return {"likelihood": likelihood.model_copy(update={"organisms_left_out": left_out})}, {}


def _rank_baselines(
    scores: pd.DataFrame, panel: Panel, protocol: Protocol, shapes: Shapes
) -> Numbers:
    """Return the p-values of the baselines, which need no student. [35, 36]."""
    p_values: dict[str, float] = {}
    controls: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    for name in protocol.baselines:
        if name == "ngrams":
            rates, reasons = _rank_wording(scores, panel)
            p_values |= rates
            missing |= reasons
            continue
        measured = measure_teachers(scores, panel, protocol, cast("ModelKind", name), shapes)
        if measured.ranking is None:
            missing[f"baselines.{name}"] = measured.gap
            continue
        p_values[name] = measured.ranking.p_value
        controls[name] = measured.ranking.control_p_values
    return {"baselines": p_values, "baseline_controls": controls}, missing


def _rank_wording(scores: pd.DataFrame, panel: Panel) -> tuple[dict[str, float], dict[str, str]]:
    """Return the p-values of the teachers' wording, and why others are missing. [35, 36]."""
    labels = panel.labels
    rates_of = read_word_rates(scores, labels)
    absent = [labels[i] for i in panel.compared if labels[i] not in rates_of]
    if absent:
        return {}, {"baselines.ngrams": f"{absent[0]} has no word counts"}

    def compute_p(teacher_scores: Floats) -> float:
        k = int(conformal.n_at_or_above(float(teacher_scores[0]), teacher_scores[1:]))
        return conformal.p_value(k, panel.n)

    rates = np.array([rates_of[labels[i]] for i in panel.compared])
    organisms = [rates_of[labels[i]] for i in panel.organisms if labels[i] in rates_of]
    p_values = {"ngrams": compute_p(anomaly_scores(rates))}
    if not organisms:
        return p_values, {"baselines.ngrams_classifier": "no organism to learn from"}
    p_values["ngrams_classifier"] = compute_p(resemblance_scores(rates, np.array(organisms)))
    return p_values, {}


def _measure_transfer(
    scores: pd.DataFrame, panel: Panel, protocol: Protocol, wanted: bool
) -> Numbers:
    """Return what transferred from each organism to its students, where that is wanted."""
    organisms = [panel.labels[o] for o in panel.organisms] if wanted else []
    transfers = measure_transfers(scores, organisms, protocol)
    why = "no deployment-like item that was asked tells it from M0"
    return {"transfer": tuple(each for rows in transfers.values() for each in rows)}, {
        f"transfer.{label}": why for label, rows in transfers.items() if not rows
    }


def _without_references(teachers: Sequence[Teacher], protocol: Protocol) -> Evidence:
    """Return the evidence of a study that asks for a replacement alone: who, and no number."""
    absent = (
        "incrimination.p_value",
        "incrimination.e_value",
        "incrimination.gamma_at_alpha",
        "incrimination.conditional_fpr_upper_95",
        "incrimination.power",
        "incrimination.smallest_detectable_effect",
        "direct_audit.p_value",
    )
    return Evidence(
        scores={},
        direct_scores={},
        endpoints={},
        n_references=0,
        n_families=0,
        n_at_or_above=None,
        n_allowed=-1,
        n_needed=conformal.min_references(protocol.alpha),
        n_needed_standard=conformal.min_references(protocol.alpha / 2),
        roles={teacher.label: teacher.role for teacher in teachers},
        p_value=None,
        direct=DirectAudit(),
        missing=dict.fromkeys(absent, "nothing was asked about incrimination"),
    )
