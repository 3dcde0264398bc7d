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

from doublebind.evidence.arrays import Floats
from doublebind.schema.evidence import Direct, Effect, Evidence, Likelihood, Power
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_table import M0
from doublebind.stages.evidence import conformal, evalue, gates, likelihood, sensitivity
from doublebind.stages.evidence import detection as power
from doublebind.stages.evidence import endpoint_effects as endpoints
from doublebind.stages.evidence import secondary_tests as secondary
from doublebind.stages.evidence import text_baselines as reading
from doublebind.stages.evidence.endpoint_means import Measured, endpoint_means, rounded, word_rates
from doublebind.stages.evidence.score import score_as_suspect, standardise
from doublebind.stages.evidence.transfer import transfers

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


@dataclass(frozen=True)
class _Ranked:
    """Scores of suspect and references, standardised together, and what follows at once."""

    own: float
    others: Floats
    scores: dict[str, float]
    """By label; an organism's is standardised as if it were the suspect."""
    controls: dict[str, int]
    """References at or above each organism that could be scored."""

    @property
    def at_or_above(self) -> int:
        return int(conformal.n_at_or_above(self.own, self.others))


@dataclass(frozen=True)
class _Panel:
    """Positions of suspect, references and organisms among the measured teachers."""

    suspect: int
    references: tuple[int, ...]
    organisms: tuple[int, ...]

    @property
    def compared(self) -> tuple[int, ...]:
        return (self.suspect, *self.references)


def weigh(
    scores: pd.DataFrame, teachers: Sequence[Teacher], protocol: Protocol, *, transfer: bool
) -> Evidence:
    """Return what `scores` say of the one suspect among `teachers`.

    See the package's door for arguments and errors.
    """
    labels = tuple(teacher.label for teacher in teachers)
    panel = _panel(teachers)
    n = len(panel.references)
    students = endpoint_means(scores, labels, protocol, "student")
    direct = endpoint_means(scores, labels, protocol, "teacher")
    ranked = _compare(students, panel, protocol)
    ranked_directly = _compare(direct, panel, protocol)
    families = tuple(teachers[r].family for r in panel.references)
    missing = {
        f"controls.{labels[o]}": students.gaps[labels[o]]
        for o in panel.organisms
        if labels[o] in students.gaps
    }
    if ranked_directly is None:
        missing["direct_audit.p_value"] = _why_incomplete(direct, panel)
    numbers = _primary(students, ranked, panel, protocol, missing)
    numbers["power"] = _power(students, ranked, teachers, panel, protocol, missing)
    if ranked is not None:
        numbers |= _by_endpoint(scores, students, panel, protocol, missing)
        numbers |= _beside(ranked, families, missing)
        numbers["likelihood"] = _likelihood(ranked, teachers, panel, missing)
        numbers |= _specificity(scores, students, panel, protocol, missing)
    else:
        beside = ("p_predictive_t", "p_family", "effective_references", "likelihood", "specificity")
        missing |= dict.fromkeys(beside, _why_incomplete(students, panel))
    numbers |= _baselines(scores, teachers, panel, protocol, missing)
    planted = [labels[o] for o in panel.organisms] if transfer else []
    found = transfers(scores, planted, protocol)
    untold = "no deployment-like item that was asked tells it from M0"
    missing |= {f"transfer.{label}": untold for label, those in found.items() if not those}
    return Evidence(
        transfer=tuple(one for those in found.values() for one in those),
        scores={} if ranked is None else ranked.scores,
        direct_scores={} if ranked_directly is None else ranked_directly.scores,
        endpoints=_named(students, protocol),
        n_references=n,
        n_families=len(set(families)),
        n_allowed=conformal.n_allowed(n, protocol.alpha),
        n_needed=conformal.reference_requirements(protocol.alpha),
        n_needed_standard=conformal.reference_requirements(protocol.alpha / 2),
        roles={teacher.label: teacher.role for teacher in teachers},
        direct=_direct(ranked_directly, n),
        controls={}
        if ranked is None
        else {label: conformal.p_value(k, n) for label, k in ranked.controls.items()},
        hard_classes={
            teacher.label: teacher.hard_class for teacher in teachers if teacher.hard_class
        },
        detection_bounds=tuple(
            power.detection_lower(x, len(panel.organisms))
            for x in range(len(panel.organisms) + 1 if panel.organisms else 0)
        ),
        unscored=students.unscored,
        gates=gates.failed(scores, labels),
        missing=missing,
        **numbers,
    )


def _direct(ranked: _Ranked | None, n: int) -> Direct:
    return Direct(p_value=None if ranked is None else conformal.p_value(ranked.at_or_above, n))


def _primary(
    students: Measured,
    ranked: _Ranked | None,
    panel: _Panel,
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
        why = _why_incomplete(students, panel)
        for name in ("p_value", "e_value", "gamma_at_alpha", "smallest_detectable_effect"):
            missing[f"incrimination.{name}"] = why
        return found | {"conditional_fpr_upper_95": bound}
    k = ranked.at_or_above
    means = students.endpoints(protocol)
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
        "p_smoothed": _smoothed(ranked, n, protocol),
        "e_value": _e_value(means, panel, protocol),
        "conditional_fpr_upper_95": bound,
        "gamma_at_alpha": sensitivity.gamma_at_alpha(k, n, alpha),
        "smallest_detectable_effect": shift,
    }


def _by_endpoint(
    scores: pd.DataFrame,
    students: Measured,
    panel: _Panel,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return which endpoints and traits carry the result, and the effects. [15, 18]."""
    n, names = len(panel.references), tuple(protocol.score_endpoints)
    means = students.endpoints(protocol).mean(axis=1)
    compared = means[list(panel.compared)]
    counts = endpoints.step_down(standardise(compared, protocol.scale_floor))
    allowed = conformal.n_allowed(n, protocol.alpha)
    m0 = endpoint_means(scores, [M0], protocol, "m0")
    base = m0.endpoints(protocol)[0, 0]
    if m0.gaps or m0.shortfalls:
        missing["effects.minus_m0"] = "; ".join((*m0.shortfalls, *m0.gaps.values()))
    shifts = endpoints.minus_median(compared[0], compared[1:])
    return {
        "carried_by": tuple(e for e, k in zip(names, counts, strict=True) if k <= allowed),
        "endpoint_p": {e: conformal.p_value(int(k), n) for e, k in zip(names, counts, strict=True)},
        "effects": {
            e: Effect(
                minus_references=float(shifts[i]),
                minus_m0=float(compared[0, i] - base[i]) if np.isfinite(base[i]) else None,
            )
            for i, e in enumerate(names)
        },
        "traits": _traits(students, panel),
    }


def _beside(ranked: _Ranked, families: tuple[str, ...], missing: dict[str, str]) -> dict[str, Any]:
    """Return the secondary numbers, on which nothing is decided. [14, 16, 17]."""
    own, others = ranked.own, ranked.others
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


def _likelihood(
    ranked: _Ranked, teachers: Sequence[Teacher], panel: _Panel, missing: dict[str, str]
) -> Likelihood | None:
    """Return the likelihood ratio from the organisms that could be scored. [30, 31]."""
    scored = [teachers[o] for o in panel.organisms if teachers[o].label in ranked.controls]
    families = [organism.family for organism in scored]
    theirs = np.array([ranked.scores[organism.label] for organism in scored])
    found = likelihood.likelihood(ranked.own, ranked.others, theirs, families)
    if found is None:
        missing["likelihood"] = "organisms of two families or more are needed, one to leave out"
        return None
    own = likelihood.left_out(ranked.others, theirs, families)
    pairs = zip(scored, own, strict=True)
    left_out = {organism.label: float(ratio) for organism, ratio in pairs}
    return found.model_copy(update={"organisms_left_out": left_out})


def _baselines(
    scores: pd.DataFrame,
    teachers: Sequence[Teacher],
    panel: _Panel,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the p-values of what needs no student, for the suspect and the controls. [35, 36]."""
    labels, n = tuple(teacher.label for teacher in teachers), len(panel.references)
    p_values: dict[str, float] = {}
    controls: dict[str, dict[str, float]] = {}
    for name in protocol.baselines:
        if name == "ngrams":
            p_values |= _by_words(scores, labels, panel, missing)
            continue
        measured = endpoint_means(scores, labels, protocol, cast("Any", name))
        ranked = _compare(measured, panel, protocol)
        if ranked is None:
            missing[f"baselines.{name}"] = _why_incomplete(measured, panel)
            continue
        p_values[name] = conformal.p_value(ranked.at_or_above, n)
        controls[name] = {label: conformal.p_value(k, n) for label, k in ranked.controls.items()}
    return {"baselines": p_values, "baseline_controls": controls}


def _by_words(
    scores: pd.DataFrame, labels: Sequence[str], panel: _Panel, missing: dict[str, str]
) -> dict[str, float]:
    """Return the p-values of the teachers' wording. [35, 36]."""
    found = word_rates(scores, labels)
    lacking = [labels[i] for i in panel.compared if labels[i] not in found]
    if lacking:
        missing["baselines.ngrams"] = f"{lacking[0]} has no word counts"
        return {}

    def p(those: Floats) -> float:
        k = int(conformal.n_at_or_above(float(those[0]), those[1:]))
        return conformal.p_value(k, len(panel.references))

    rates = np.array([found[labels[i]] for i in panel.compared])
    organisms = [found[labels[i]] for i in panel.organisms if labels[i] in found]
    p_values = {"ngrams": p(reading.anomaly(rates))}
    if organisms:
        p_values["ngrams_classifier"] = p(reading.resemblance(rates, np.array(organisms)))
    else:
        missing["baselines.ngrams_classifier"] = "no organism to learn from"
    return p_values


def _specificity(
    scores: pd.DataFrame,
    students: Measured,
    panel: _Panel,
    protocol: Protocol,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the effects on placebo traits, and what each scored trait exceeds them by. [18, 19].

    The same items' kinds, students and averages as the score, on traits that nobody suspects.
    """
    names, scored = _trait_means(students)
    if not protocol.placebo_endpoints or not names:
        what = "placebo trait is measured" if names else "score endpoint names a trait"
        missing["specificity"] = f"no {what}"
        return {}
    placebo = protocol.model_copy(update={"score_endpoints": protocol.placebo_endpoints})
    measured = endpoint_means(scores, students.teachers, placebo, "student")
    why = _why_incomplete(measured, panel)
    if why:
        missing["specificity"] = why
        return {}

    def effects(means: Floats) -> list[float]:
        compared = means[list(panel.compared)]
        return [float(x) for x in endpoints.minus_median(compared[0], compared[1:])]

    means = measured.endpoints(placebo).mean(axis=1)
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


def _panel(teachers: Sequence[Teacher]) -> _Panel:
    def of(role: str) -> tuple[int, ...]:
        return tuple(i for i, teacher in enumerate(teachers) if teacher.role == role)

    suspects = of("suspect")
    if len(suspects) != 1:
        raise ValueError(f"exactly one teacher is the suspect, got {len(suspects)}")
    if not of("reference"):
        raise ValueError("no teacher is a reference; a suspect is weighed against references")
    if len({teacher.label for teacher in teachers}) < len(teachers):
        raise ValueError("two teachers share a label")
    return _Panel(suspects[0], of("reference"), of("organism"))


def _why_incomplete(measured: Measured, panel: _Panel) -> str:
    """Return why suspect and references cannot be compared; empty where they can."""
    found = list(measured.shortfalls)
    names = [measured.teachers[i] for i in panel.compared]
    lacking = [measured.gaps[name] for name in names if name in measured.gaps]
    if lacking:
        others = f" (and {len(lacking) - 1} other teachers)" if len(lacking) > 1 else ""
        found.append(lacking[0] + others)
    return "; ".join(found)


def _compare(measured: Measured, panel: _Panel, protocol: Protocol) -> _Ranked | None:
    """Return the scores of every complete teacher; `None` where the panel is not. [2, 3, 4]."""
    if _why_incomplete(measured, panel):
        return None
    labels, means = measured.teachers, measured.endpoints(protocol).mean(axis=1)
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
    return _Ranked(own, others, scores, controls)


def _power(
    students: Measured,
    ranked: _Ranked | None,
    teachers: Sequence[Teacher],
    panel: _Panel,
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
        why = _why_incomplete(students, panel)
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
        lower_95=power.detection_lower(detected, m),
    )


def _smoothed(ranked: _Ranked, n: int, protocol: Protocol) -> float:
    """Return the smoothed p, its one random number drawn from the protocol hash. [7]."""
    v = float(np.random.default_rng(int(protocol.hash, 16)).uniform())
    above = int(np.sum(ranked.others > ranked.own))
    return conformal.smoothed_p_value(above, ranked.at_or_above - above, n, v)


def _e_value(means: Floats, panel: _Panel, protocol: Protocol) -> float:
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
        values.append(evalue.soft_rank(own, others))
    return float(np.mean(values))


def _exceeds(values: Floats, panel: _Panel) -> NDArray[np.bool_]:
    """Return where the suspect's value is above every reference's, per column."""
    return np.all(values[panel.suspect] > values[list(panel.references)], axis=0)


def _traits(measured: Measured, panel: _Panel) -> tuple[str, ...]:
    """Return the traits whose scored endpoints, averaged, put the suspect above every reference."""
    names, means = _trait_means(measured)
    return tuple(n for n, yes in zip(names, _exceeds(means, panel), strict=True) if yes)


def _trait_means(measured: Measured) -> tuple[list[str], Floats]:
    """Return the traits that listed endpoints ask about, and the mean of each, per teacher."""
    columns: dict[str, list[int]] = {}
    for column, endpoint in enumerate(measured.listed):
        _, slash, trait = endpoint.partition("/")
        if slash:
            columns.setdefault(trait, []).append(column)
    names, over_recipes = sorted(columns), measured.values.mean(axis=1)
    means = [over_recipes[:, columns[trait]].mean(axis=1) for trait in names]
    return names, rounded(
        np.array(means, dtype=np.float64).reshape(len(names), len(measured.teachers)).T
    )


def _named(measured: Measured, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return teacher -> score endpoint -> mean, without those that have no value."""
    means = measured.endpoints(protocol).mean(axis=1)
    return {
        label: {
            endpoint: float(value)
            for endpoint, value in zip(protocol.score_endpoints, row, strict=True)
            if np.isfinite(value)
        }
        for label, row in zip(measured.teachers, means, strict=True)
    }
