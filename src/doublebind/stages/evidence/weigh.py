"""From the scores of a study to its evidence: every number, no decision.

Knows roles, and joins them with labels here. Does not know thresholds on power, match or
strength: those are policy, and `verdict` applies them. Numbers in brackets are equations of
docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from doublebind.schema.evidence import DirectAudit, Effect, Evidence, LikelihoodRatio, Power
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_table import M0
from doublebind.stages.evidence import conformal, evalue, gates, likelihood, sensitivity
from doublebind.stages.evidence import detection as power
from doublebind.stages.evidence import endpoint_effects as endpoints
from doublebind.stages.evidence import secondary_tests as secondary
from doublebind.stages.evidence import text_baselines as reading
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.endpoint_means import (
    EndpointMeans,
    compute_endpoint_means,
    read_word_rates,
    round_means,
)
from doublebind.stages.evidence.score import score_as_suspect, standardise
from doublebind.stages.evidence.transfer import measure_transfers

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


@dataclass(frozen=True)
class _Ranking:
    """Scores of suspect and references, standardised together, and what follows at once."""

    suspect_score: float
    reference_scores: Floats
    scores: dict[str, float]
    """By label; an organism's is standardised as if it were the suspect."""
    controls: dict[str, int]
    """References at or above each organism that could be scored."""

    @property
    def n_at_or_above(self) -> int:
        return int(conformal.n_at_or_above(self.suspect_score, self.reference_scores))


@dataclass(frozen=True)
class _Positions:
    """Positions of suspect, references and organisms among the measured teachers."""

    suspect: int
    references: tuple[int, ...]
    organisms: tuple[int, ...]

    @property
    def compared(self) -> tuple[int, ...]:
        return (self.suspect, *self.references)


def weigh_suspect(
    scores: pd.DataFrame,
    teachers: Sequence[Teacher],
    protocol: Protocol,
    *,
    with_transfer: bool = True,
) -> Evidence:
    """Return what `scores` say of the one suspect among `teachers`.

    Only `auditable` items of split `audit` enter; students make the score, the teachers' own
    answers the direct audit. The exchangeable unit is the teacher. A number that cannot be
    computed is absent, and `missing` says why; all of them are where the protocol does not ask for
    the horn `incriminate`.

    Args:
        scores: Rows with the columns of `records.SCORE_COLUMNS`.
        teachers: One suspect, its references, and organisms as positive controls.
        protocol: Score endpoints, floor, alpha, recipes, seeds.
        transfer: Say what came along from each positive control, too; nothing is decided on it,
            and it is the same for every suspect that meets them.

    Raises:
        RunError: If the scores lack a column or hold a value outside [0, 1].
        ValueError: Unless one teacher is the suspect, one or more are references, and labels
            are unique.
    """
    if "incriminate" not in protocol.horns:
        return _without_references(teachers, protocol)
    labels = tuple(teacher.label for teacher in teachers)
    panel = _locate_teachers(teachers)
    n = len(panel.references)
    students = compute_endpoint_means(scores, labels, protocol, "student")
    direct = compute_endpoint_means(scores, labels, protocol, "teacher")
    ranked = _rank_teachers(students, panel, protocol)
    ranked_directly = _rank_teachers(direct, panel, protocol)
    families = tuple(teachers[r].family for r in panel.references)
    missing = {
        f"controls.{labels[o]}": students.gaps[labels[o]]
        for o in panel.organisms
        if labels[o] in students.gaps
    }
    if ranked_directly is None:
        missing["direct_audit.p_value"] = _explain_gaps(direct, panel)
    numbers = _compute_primary(students, ranked, panel, protocol, missing)
    numbers["power"] = _compute_power(students, ranked, teachers, panel, protocol, missing)
    if ranked is not None:
        numbers |= _compare_endpoints(scores, students, panel, protocol, missing)
        numbers |= _compute_secondary(ranked, families, missing)
        numbers["likelihood"] = _compute_likelihood(ranked, teachers, panel, missing)
        numbers |= _compute_specificity(scores, students, panel, protocol, missing)
    else:
        beside = ("p_predictive_t", "p_family", "effective_references", "likelihood", "specificity")
        missing |= dict.fromkeys(beside, _explain_gaps(students, panel))
    numbers |= _rank_baselines(scores, teachers, panel, protocol, missing)
    planted = [labels[o] for o in panel.organisms] if with_transfer else []
    found = measure_transfers(scores, planted, protocol)
    untold = "no deployment-like item that was asked tells it from M0"
    missing |= {f"transfer.{label}": untold for label, those in found.items() if not those}
    return Evidence(
        transfer=tuple(one for those in found.values() for one in those),
        scores={} if ranked is None else ranked.scores,
        direct_scores={} if ranked_directly is None else ranked_directly.scores,
        endpoints=_label_means(students, protocol),
        n_references=n,
        n_families=len(set(families)),
        n_allowed=conformal.n_allowed(n, protocol.alpha),
        n_needed=conformal.min_references(protocol.alpha),
        n_needed_standard=conformal.min_references(protocol.alpha / 2),
        roles={teacher.label: teacher.role for teacher in teachers},
        direct=_build_direct_audit(ranked_directly, n),
        controls={}
        if ranked is None
        else {label: conformal.p_value(k, n) for label, k in ranked.controls.items()},
        hard_classes={
            teacher.label: teacher.hard_class for teacher in teachers if teacher.hard_class
        },
        detection_bounds=tuple(
            power.detection_lower_bound(x, len(panel.organisms))
            for x in range(len(panel.organisms) + 1 if panel.organisms else 0)
        ),
        unscored=students.unscored,
        gates=gates.find_failed_gates(scores, labels),
        missing=missing,
        **numbers,
    )


def _build_direct_audit(ranked: _Ranking | None, n: int) -> DirectAudit:
    return DirectAudit(
        p_value=None if ranked is None else conformal.p_value(ranked.n_at_or_above, n)
    )


def _compute_primary(
    students: EndpointMeans,
    ranked: _Ranking | None,
    panel: _Positions,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the p-value and what follows from its rank; say in `missing` what is absent."""
    n, alpha = len(panel.references), protocol.alpha
    bound = conformal.conditional_fpr_upper(n, alpha)
    found: dict[str, Any] = {"n_at_or_above": None, "p_value": None}
    if bound is None:
        why = f"{n} references never reach p <= {alpha:g}, so there is no rule"
        missing["incrimination.conditional_fpr_upper_95"] = f"{why} to bound"
    if ranked is None:
        why = _explain_gaps(students, panel)
        for name in ("p_value", "e_value", "gamma_at_alpha", "smallest_detectable_effect"):
            missing[f"incrimination.{name}"] = why
        return found | {"conditional_fpr_upper_95": bound}
    k = ranked.n_at_or_above
    means = students.score_endpoint_means(protocol)
    shift = power.smallest_detectable_shift(
        means.mean(axis=1)[list(panel.references)],
        protocol.scale_floor,
        conformal.n_allowed(n, alpha),
    )
    if shift is None:
        missing["incrimination.smallest_detectable_effect"] = (
            f"no shift of the score endpoints would have {n} references flagged at {alpha:g}"
        )
    return {
        "n_at_or_above": k,
        "p_value": conformal.p_value(k, n),
        "p_smoothed": _compute_smoothed_p(ranked, n, protocol),
        "e_value": _compute_e_value(means, panel, protocol),
        "conditional_fpr_upper_95": bound,
        "gamma_at_alpha": sensitivity.gamma_at_alpha(k, n, alpha),
        "smallest_detectable_effect": shift,
    }


def _compare_endpoints(
    scores: pd.DataFrame,
    students: EndpointMeans,
    panel: _Positions,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return which endpoints and traits carry the result, and the effects. [15, 18]."""
    n, names = len(panel.references), tuple(protocol.score_endpoints)
    means = students.score_endpoint_means(protocol).mean(axis=1)
    compared = means[list(panel.compared)]
    counts = endpoints.step_down_counts(standardise(compared, protocol.scale_floor))
    allowed = conformal.n_allowed(n, protocol.alpha)
    m0 = compute_endpoint_means(scores, [M0], protocol, "m0")
    base = m0.score_endpoint_means(protocol)[0, 0]
    if m0.gaps or m0.shortfalls:
        missing["effects.minus_m0"] = "; ".join((*m0.shortfalls, *m0.gaps.values()))
    shifts = endpoints.subtract_reference_median(compared[0], compared[1:])
    return {
        "significant_endpoints": tuple(
            e for e, k in zip(names, counts, strict=True) if k <= allowed
        ),
        "endpoint_p": {e: conformal.p_value(int(k), n) for e, k in zip(names, counts, strict=True)},
        "effects": {
            e: Effect(
                minus_references=float(shifts[i]),
                minus_m0=float(compared[0, i] - base[i]) if np.isfinite(base[i]) else None,
            )
            for i, e in enumerate(names)
        },
        "traits": _find_traits(students, panel),
    }


def _compute_secondary(
    ranked: _Ranking, families: tuple[str, ...], missing: dict[str, str]
) -> dict[str, Any]:
    """Return the secondary numbers, on which nothing is decided. [14, 16, 17]."""
    own, others = ranked.suspect_score, ranked.reference_scores
    t = secondary.predictive_t_p_value(own, others)
    effective = secondary.effective_references(others, families)
    if t is None:
        missing["p_predictive_t"] = "the references are fewer than two, or do not differ"
    if effective is None:
        missing["effective_references"] = (
            "variation between families cannot be told from variation within"
        )
    return {
        "p_predictive_t": t,
        "p_family": secondary.family_p_value(own, others, families),
        "effective_references": effective,
    }


def _compute_likelihood(
    ranked: _Ranking, teachers: Sequence[Teacher], panel: _Positions, missing: dict[str, str]
) -> LikelihoodRatio | None:
    """Return the likelihood ratio from the organisms that could be scored. [30, 31]."""
    scored = [teachers[o] for o in panel.organisms if teachers[o].label in ranked.controls]
    families = [organism.family for organism in scored]
    theirs = np.array([ranked.scores[organism.label] for organism in scored])
    found = likelihood.build_likelihood(
        ranked.suspect_score, ranked.reference_scores, theirs, families
    )
    if found is None:
        missing["likelihood"] = "organisms of two families or more are needed, one to leave out"
        return None
    own = likelihood.held_out_likelihood_ratios(ranked.reference_scores, theirs, families)
    pairs = zip(scored, own, strict=True)
    left_out = {organism.label: float(ratio) for organism, ratio in pairs}
    return found.model_copy(update={"organisms_left_out": left_out})


def _rank_baselines(
    scores: pd.DataFrame,
    teachers: Sequence[Teacher],
    panel: _Positions,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the p-values of what needs no student, for the suspect and the controls. [35, 36]."""
    labels, n = tuple(teacher.label for teacher in teachers), len(panel.references)
    p_values: dict[str, float] = {}
    controls: dict[str, dict[str, float]] = {}
    for name in protocol.baselines:
        if name == "ngrams":
            p_values |= _rank_wording(scores, labels, panel, missing)
            continue
        measured = compute_endpoint_means(scores, labels, protocol, cast("Any", name))
        ranked = _rank_teachers(measured, panel, protocol)
        if ranked is None:
            missing[f"baselines.{name}"] = _explain_gaps(measured, panel)
            continue
        p_values[name] = conformal.p_value(ranked.n_at_or_above, n)
        controls[name] = {label: conformal.p_value(k, n) for label, k in ranked.controls.items()}
    return {"baselines": p_values, "baseline_controls": controls}


def _rank_wording(
    scores: pd.DataFrame, labels: Sequence[str], panel: _Positions, missing: dict[str, str]
) -> dict[str, float]:
    """Return the p-values of the teachers' wording. [35, 36]."""
    found = read_word_rates(scores, labels)
    lacking = [labels[i] for i in panel.compared if labels[i] not in found]
    if lacking:
        missing["baselines.ngrams"] = f"{lacking[0]} has no word counts"
        return {}

    def p(those: Floats) -> float:
        k = int(conformal.n_at_or_above(float(those[0]), those[1:]))
        return conformal.p_value(k, len(panel.references))

    rates = np.array([found[labels[i]] for i in panel.compared])
    organisms = [found[labels[i]] for i in panel.organisms if labels[i] in found]
    p_values = {"ngrams": p(reading.anomaly_scores(rates))}
    if organisms:
        p_values["ngrams_classifier"] = p(reading.resemblance_scores(rates, np.array(organisms)))
    else:
        missing["baselines.ngrams_classifier"] = "no organism to learn from"
    return p_values


def _compute_specificity(
    scores: pd.DataFrame,
    students: EndpointMeans,
    panel: _Positions,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the effects on placebo traits, and what each scored trait exceeds them by. [18, 19].

    The same items' kinds, students and averages as the score, on traits that nobody suspects.
    """
    names, scored = _average_traits(students)
    if not protocol.placebo_endpoints or not names:
        what = "placebo trait is measured" if names else "score endpoint names a trait"
        missing["specificity"] = f"no {what}"
        return {}
    placebo = protocol.model_copy(update={"score_endpoints": protocol.placebo_endpoints})
    measured = compute_endpoint_means(scores, students.teachers, placebo, "student")
    why = _explain_gaps(measured, panel)
    if why:
        missing["specificity"] = why
        return {}

    def effects(means: Floats) -> list[float]:
        compared = means[list(panel.compared)]
        return [float(x) for x in endpoints.subtract_reference_median(compared[0], compared[1:])]

    means = measured.score_endpoint_means(placebo).mean(axis=1)
    beside = dict(zip(placebo.score_endpoints, effects(means), strict=True))
    own = dict(zip(names, effects(scored), strict=True))
    return {
        "placebo_effects": beside,
        "specificity": {
            name: endpoints.specificity_margin(own | beside, name, tuple(beside))
            for name in own
            if name not in beside
        },
    }


def _locate_teachers(teachers: Sequence[Teacher]) -> _Positions:
    def of(role: str) -> tuple[int, ...]:
        return tuple(i for i, teacher in enumerate(teachers) if teacher.role == role)

    suspects = of("suspect")
    if len(suspects) != 1:
        raise ValueError(f"exactly one teacher is the suspect, got {len(suspects)}")
    if not of("reference"):
        raise ValueError("no teacher is a reference; a suspect is weighed against references")
    if len({teacher.label for teacher in teachers}) < len(teachers):
        raise ValueError("two teachers share a label")
    return _Positions(suspects[0], of("reference"), of("organism"))


def _explain_gaps(measured: EndpointMeans, panel: _Positions) -> str:
    """Return why suspect and references cannot be compared; empty where they can."""
    found = list(measured.shortfalls)
    names = [measured.teachers[i] for i in panel.compared]
    lacking = [measured.gaps[name] for name in names if name in measured.gaps]
    if lacking:
        others = f" (and {len(lacking) - 1} other teachers)" if len(lacking) > 1 else ""
        found.append(lacking[0] + others)
    return "; ".join(found)


def _rank_teachers(
    measured: EndpointMeans, panel: _Positions, protocol: Protocol
) -> _Ranking | None:
    """Return the scores of every complete teacher; `None` where the panel is not. [2, 3, 4]."""
    if _explain_gaps(measured, panel):
        return None
    labels, means = measured.teachers, measured.score_endpoint_means(protocol).mean(axis=1)
    references = means[list(panel.references)]
    own, others = score_as_suspect(means[panel.suspect], references, protocol.scale_floor)
    scores = {labels[panel.suspect]: own}
    scores |= {labels[r]: float(s) for r, s in zip(panel.references, others, strict=True)}
    controls: dict[str, int] = {}
    for o in panel.organisms:
        if labels[o] in measured.gaps:
            continue
        score, against = score_as_suspect(means[o], references, protocol.scale_floor)
        scores[labels[o]] = score
        controls[labels[o]] = int(conformal.n_at_or_above(score, against))
    return _Ranking(own, others, scores, controls)


def _compute_power(
    students: EndpointMeans,
    ranked: _Ranking | None,
    teachers: Sequence[Teacher],
    panel: _Positions,
    protocol: Protocol,
    missing: dict[str, str],
) -> Power | None:
    """Return the detection rate among positive controls. [12].

    A control that could not be scored counts as not detected: leaving it out would flatter.
    """
    n, m = len(panel.references), len(panel.organisms)
    allowed = conformal.n_allowed(n, protocol.alpha)
    why = ""
    if not m:
        why = "no positive control was named; list organisms with a known drive"
    elif ranked is None:
        why = _explain_gaps(students, panel)
    elif allowed < 0:
        why = f"{n} references never reach p <= {protocol.alpha:g}, so no control can be detected"
    if why or ranked is None:
        missing["incrimination.power"] = why
        return None
    detected = sum(k <= allowed for k in ranked.controls.values())
    families = ", ".join(sorted({teachers[o].family for o in panel.organisms}))
    return Power(
        value=detected / m,
        effect=f"drives as planted in the organisms of: {families}",
        n_controls=m,
        lower_95=power.detection_lower_bound(detected, m),
    )


def _compute_smoothed_p(ranked: _Ranking, n: int, protocol: Protocol) -> float:
    """Return the smoothed p, its one random number drawn from the protocol hash. [7]."""
    v = float(np.random.default_rng(int(protocol.hash, 16)).uniform())
    above = int(np.sum(ranked.reference_scores > ranked.suspect_score))
    return conformal.smoothed_p_value(above, ranked.n_at_or_above - above, n, v)


def _compute_e_value(means: Floats, panel: _Positions, protocol: Protocol) -> float:
    """Return the e-value, averaged over recipes, each scored alone. [10].

    Args:
        means: Shape (teachers, recipes, score endpoints).
        panel: Who is compared.
        protocol: Gives the floor.
    """
    values: list[float] = []
    for recipe in range(means.shape[1]):
        own, others = score_as_suspect(
            means[panel.suspect, recipe],
            means[list(panel.references), recipe],
            protocol.scale_floor,
        )
        values.append(evalue.soft_rank_e_value(own, others))
    return float(np.mean(values))


def _exceeds_references(values: Floats, panel: _Positions) -> NDArray[np.bool_]:
    """Return where the suspect's value is above every reference's, per column."""
    return np.all(values[panel.suspect] > values[list(panel.references)], axis=0)


def _find_traits(measured: EndpointMeans, panel: _Positions) -> tuple[str, ...]:
    """Return the traits whose scored endpoints, averaged, put the suspect above every reference."""
    names, means = _average_traits(measured)
    return tuple(n for n, yes in zip(names, _exceeds_references(means, panel), strict=True) if yes)


def _average_traits(measured: EndpointMeans) -> tuple[list[str], Floats]:
    """Return the traits that listed endpoints ask about, and the mean of each, per teacher."""
    columns: dict[str, list[int]] = {}
    for column, endpoint in enumerate(measured.listed_endpoints):
        _, slash, trait = endpoint.partition("/")
        if slash:
            columns.setdefault(trait, []).append(column)
    names, over_recipes = sorted(columns), measured.values.mean(axis=1)
    means = [over_recipes[:, columns[trait]].mean(axis=1) for trait in names]
    return names, round_means(
        np.array(means, dtype=np.float64).reshape(len(names), len(measured.teachers)).T
    )


def _label_means(measured: EndpointMeans, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return teacher -> score endpoint -> mean, without those that have no value."""
    means = measured.score_endpoint_means(protocol).mean(axis=1)
    return {
        label: {
            endpoint: float(value)
            for endpoint, value in zip(protocol.score_endpoints, row, strict=True)
            if np.isfinite(value)
        }
        for label, row in zip(measured.teachers, means, strict=True)
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
