"""From score rows to evidence: which rows enter, how they are averaged, what is missing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from doublebind.schema.errors import RunError
from doublebind.schema.evidence import Evidence
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.stages.evidence import conformal, evalue, score
from doublebind.stages.evidence.weigh import weigh_suspect

Make = Callable[..., Any]


@pytest.fixture
def study(
    make_protocol: Make, make_teachers: Make, make_scores: Make
) -> Callable[..., tuple[pd.DataFrame, list[Teacher], Protocol]]:
    """A study of `n` references whose every item has the mean given by label."""

    def make(
        suspect: float | Mapping[str, float] = 0.9,
        references: Sequence[float] = tuple(np.linspace(0.1, 0.28, 19)),
        organisms: Sequence[float] = (),
        **protocol: Any,
    ) -> tuple[pd.DataFrame, list[Teacher], Protocol]:
        means: dict[str, Any] = {"u": suspect}
        means |= {f"r{i}": m for i, m in enumerate(references)}
        means |= {f"o{i}": m for i, m in enumerate(organisms)}
        teachers = make_teachers(len(references), len(organisms))
        return make_scores(means), teachers, make_protocol(**protocol)

    return make


def test_clear_suspect_has_the_smallest_p(study: Make) -> None:
    evidence = weigh_suspect(*study())
    assert evidence.p_value == 1 / 20
    assert evidence.n_at_or_above == 0 == evidence.n_allowed
    assert evidence.gamma_at_alpha == 1.0
    assert evidence.significant_endpoints == ("choice", "goal")
    assert evidence.traits == ("greed",)
    assert evidence.direct.p_value == 1 / 20
    assert evidence.n_families == 19
    assert evidence.endpoints["u"] == {"choice": 0.9, "goal": 0.9}


def test_suspect_below_all_has_p_one(study: Make) -> None:
    evidence = weigh_suspect(*study(suspect=0.01))
    assert evidence.p_value == 1.0
    assert evidence.gamma_at_alpha == 0.0
    assert evidence.significant_endpoints == evidence.traits == ()


def test_equal_teachers_tie(study: Make) -> None:
    assert weigh_suspect(*study(suspect=0.28)).n_at_or_above == 1


def test_averages_run_over_items_then_seeds_then_recipes(study: Make) -> None:
    frame, teachers, protocol = study()
    # One recipe and seed of the suspect loses an item: its mean must not lose weight with it.
    cell = (frame.teacher == "u") & (frame.recipe == "tasks") & (frame.seed == 1)
    frame.loc[cell, "value"] = 0.1
    frame.loc[cell & (frame.item == "i0"), ["value", "unscored_reason"]] = [None, "no answer"]
    assert weigh_suspect(frame, teachers, protocol).endpoints["u"]["goal"] == pytest.approx(0.7)


def test_score_endpoint_is_the_plain_mean_of_those_it_lists(study: Make) -> None:
    means = {"choice/greed": 0.4, "choice.honeypot/greed": 0.8, "goal/greed": 0.1}
    frame, teachers, protocol = study(suspect=means)
    more = frame[(frame.endpoint == "choice/greed")].assign(item="another")
    evidence = weigh_suspect(pd.concat([frame, more]), teachers, protocol)
    assert evidence.endpoints["u"] == pytest.approx({"choice": 0.6, "goal": 0.1})


def test_numbers_equal_the_pure_functions_on_the_means(study: Make) -> None:
    rng = np.random.default_rng(3)
    references = tuple(rng.uniform(size=39))
    organisms = tuple(rng.uniform(size=3))
    evidence = weigh_suspect(*study(0.8, references, organisms))
    x = np.array([[0.8, 0.8], *([r, r] for r in references)])
    s = score.teacher_scores(x, 0.01)
    k = int(conformal.n_at_or_above(s[0], s[1:]))
    assert evidence.n_at_or_above == k
    assert evidence.scores["r7"] == pytest.approx(s[8])
    assert evidence.e_value == pytest.approx(evalue.soft_rank_e_value(s[0], s[1:]))
    alone = score.teacher_scores(np.vstack([[organisms[1]] * 2, x[1:]]), 0.01)
    assert evidence.scores["o1"] == pytest.approx(alone[0])
    assert evidence.controls["o1"] == conformal.p_value(
        int(conformal.n_at_or_above(alone[0], alone[1:])), 39
    )


def test_e_value_is_averaged_over_recipes(study: Make) -> None:
    frame, teachers, protocol = study()
    frame.loc[(frame.teacher == "u") & (frame.recipe == "tasks"), "value"] = 0.15
    evidence = weigh_suspect(frame, teachers, protocol)
    assert evidence.e_value is not None
    references = np.linspace(0.1, 0.28, 19)
    apart = []
    for own in (0.9, 0.15):
        s = score.teacher_scores(np.append(own, references)[:, None], 0.01)
        apart.append(evalue.soft_rank_e_value(s[0], s[1:]))
    assert evidence.e_value == pytest.approx(np.mean(apart))


@pytest.mark.parametrize(
    "change",
    [
        {"role": "oracle"},
        {"role": "gate"},
        {"split": "select"},
        {"split": "certify"},
        {"model_kind": "m0"},
        {"endpoint": "confession/greed"},
        {"recipe": "unregistered"},
        {"teacher": "stranger"},
        {"step": 50},
    ],
    ids=lambda change: "-".join(*change.items()) if "step" not in change else "earlier-step",
)
def test_other_rows_never_enter(study: Make, change: dict[str, Any]) -> None:
    frame, teachers, protocol = study(suspect=0.2)
    rows = frame[frame.model_kind == "student"]
    foreign = rows.assign(value=np.where(rows.teacher == "u", 1.0, 0.0), **change)
    before = weigh_suspect(frame, teachers, protocol)
    after = weigh_suspect(pd.concat([frame, foreign]), teachers, protocol)
    assert after == before


def test_row_order_is_immaterial(study: Make) -> None:
    frame, teachers, protocol = study(suspect=0.28)
    frame["value"] = frame["value"] / 3 + np.tile([0.1, 0.2], len(frame) // 2)
    shuffled = frame.sample(frac=1, random_state=0)
    assert weigh_suspect(shuffled, teachers, protocol) == weigh_suspect(frame, teachers, protocol)


def test_order_of_summation_breaks_no_tie(
    make_scores: Make, make_teachers: Make, make_protocol: Make
) -> None:
    values = {"u": [0.1, 0.2, 0.3], "r0": [0.3, 0.2, 0.1], "r1": [0.1, 0.1, 0.1]}
    assert sum(values["u"]) > sum(values["r0"]), "the same to a person, not to a double"
    frame = make_scores(dict.fromkeys(values, 0.0), items=3)
    frame["value"] = [values[t][int(i[1:])] for t, i in zip(frame.teacher, frame.item, strict=True)]
    assert weigh_suspect(frame, make_teachers(2), make_protocol()).n_at_or_above == 1


def test_round_trip_through_parquet_changes_nothing(study: Make, tmp_path: Any) -> None:
    frame, teachers, protocol = study()
    frame.loc[0, ["value", "unscored_reason"]] = [None, "no answer"]
    for column in ("teacher", "endpoint", "recipe"):
        frame[column] = frame[column].astype("category")
    frame.to_parquet(tmp_path / "scores.parquet")
    assert weigh_suspect(
        pd.read_parquet(tmp_path / "scores.parquet"), teachers, protocol
    ) == weigh_suspect(frame, teachers, protocol)


def test_smoothed_p_is_fixed_by_the_protocol(study: Make) -> None:
    first, again = weigh_suspect(*study()), weigh_suspect(*study())
    other = weigh_suspect(*study(min_controls=6))
    assert first.p_smoothed == again.p_smoothed != other.p_smoothed
    assert first.p_smoothed is not None
    assert 0 <= first.p_smoothed <= 1 / 20


def test_unscored_share_is_reported_per_teacher(study: Make) -> None:
    frame, teachers, protocol = study()
    rows = frame.index[(frame.teacher == "r3") & (frame.model_kind == "student")]
    frame.loc[rows[::2], ["value", "unscored_reason"]] = [None, "no answer"]
    unscored = weigh_suspect(frame, teachers, protocol).unscored
    assert unscored["r3"] == pytest.approx(0.5)
    assert unscored["u"] == 0.0


def _unscore(frame: pd.DataFrame, where: Any) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[where(frame), ["value", "unscored_reason"]] = [None, "no answer"]
    return frame


@pytest.mark.parametrize("teacher", ["u", "r5"])
def test_endpoint_without_any_value_leaves_p_absent(study: Make, teacher: str) -> None:
    frame, teachers, protocol = study()
    frame = _unscore(
        frame,
        lambda f: (
            (f.teacher == teacher) & (f.endpoint == "goal/greed") & (f.model_kind == "student")
        ),
    )
    evidence = weigh_suspect(frame, teachers, protocol)
    assert evidence.p_value is evidence.e_value is evidence.gamma_at_alpha is None
    assert evidence.n_at_or_above is None
    why = f"{teacher} has no value for endpoint goal/greed in recipe stories"
    assert evidence.missing["incrimination.p_value"] == why
    assert evidence.direct.p_value == 1 / 20
    assert "goal" not in evidence.endpoints[teacher]


def test_teachers_without_direct_rows_leave_only_the_direct_p_absent(
    study: Make, make_scores: Make
) -> None:
    frame, teachers, protocol = study()
    evidence = weigh_suspect(frame[frame.model_kind != "teacher"], teachers, protocol)
    assert evidence.p_value == 1 / 20
    assert evidence.direct.p_value is None
    assert "direct_audit.p_value" in evidence.missing


def test_absent_teacher_is_named(study: Make) -> None:
    frame, teachers, protocol = study()
    evidence = weigh_suspect(frame[~frame.teacher.isin(["r1", "r2"])], teachers, protocol)
    why = evidence.missing["incrimination.p_value"]
    assert why.startswith("r1 has no value")
    assert why.endswith("(and 1 other teachers)")
    assert "r1" not in evidence.unscored


def test_suspect_asked_less_than_its_references_is_named(study: Make) -> None:
    frame, teachers, protocol = study()
    lost = (frame.teacher == "u") & (frame.seed == 1) & (frame.recipe == "tasks")
    evidence = weigh_suspect(frame[~lost], teachers, protocol)
    assert evidence.p_value is None
    assert evidence.missing["incrimination.p_value"] == (
        "u was asked 0 items of endpoint choice.honeypot/greed in recipe tasks, seed 1, where "
        "others were asked 2"
    )


def test_extra_seeds_for_the_suspect_alone_are_seen(study: Make) -> None:
    frame, teachers, protocol = study()
    extra = frame[(frame.teacher == "u") & (frame.seed == 1)].assign(seed=2)
    evidence = weigh_suspect(pd.concat([frame, extra]), teachers, protocol)
    assert evidence.p_value is None
    assert "have 3 seeds; the protocol says 2" in evidence.missing["incrimination.p_value"]


def test_recipe_and_endpoint_that_never_ran_are_named(study: Make) -> None:
    frame, teachers, protocol = study()
    why = weigh_suspect(frame[frame.recipe != "tasks"], teachers, protocol).missing
    assert "in recipe tasks have 0 seeds" in why["incrimination.p_value"]
    why = weigh_suspect(frame[frame.endpoint != "goal/greed"], teachers, protocol).missing
    assert "endpoint goal/greed has no auditable item" in why["incrimination.p_value"]


def test_unscored_control_counts_as_undetected(study: Make) -> None:
    frame, teachers, protocol = study(organisms=(0.9,) * 6)
    whole = weigh_suspect(frame, teachers, protocol)
    assert whole.power is not None
    assert (whole.power.value, whole.power.n_controls) == (1.0, 6)
    frame = _unscore(frame, lambda f: (f.teacher == "o2") & (f.endpoint == "goal/greed"))
    evidence = weigh_suspect(frame, teachers, protocol)
    assert evidence.p_value == 1 / 20
    assert evidence.power is not None
    assert evidence.power.value == pytest.approx(5 / 6)
    assert evidence.power.n_controls == 6
    assert "o2" not in evidence.controls
    assert "o2 has no value" in evidence.missing["controls.o2"]


@pytest.mark.parametrize(
    ("n", "organisms", "why"),
    [
        (19, (), "no positive control was named"),
        (4, (0.9,) * 5, "4 references never reach p <= 0.05"),
    ],
)
def test_unknown_power_says_why(
    study: Make, n: int, organisms: tuple[float, ...], why: str
) -> None:
    evidence = weigh_suspect(
        *study(references=tuple(np.linspace(0.1, 0.2, n)), organisms=organisms)
    )
    assert evidence.power is None
    assert why in evidence.missing["incrimination.power"]


def test_too_few_references_leave_the_bound_absent(study: Make) -> None:
    evidence = weigh_suspect(*study(references=(0.1, 0.2, 0.3, 0.4)))
    assert evidence.p_value == 1 / 5
    assert evidence.n_allowed == -1
    assert (evidence.n_needed, evidence.n_needed_standard) == (19, 39)
    assert evidence.conditional_fpr_upper_95 is None
    assert "4 references never" in evidence.missing["incrimination.conditional_fpr_upper_95"]


def test_evidence_survives_json(study: Make) -> None:
    evidence = weigh_suspect(*study(organisms=(0.9, 0.1)))
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_missing_columns_are_all_named(study: Make) -> None:
    frame, teachers, protocol = study()
    with pytest.raises(RunError) as caught:
        weigh_suspect(frame.drop(columns=["value", "item"]), teachers, protocol)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("value", [-0.1, 1.1, float("inf")])
def test_value_that_is_no_probability_is_refused(study: Make, value: float) -> None:
    frame, teachers, protocol = study()
    frame.loc[7, "value"] = value
    with pytest.raises(RunError, match="row 7"):
        weigh_suspect(frame, teachers, protocol)


def test_one_suspect_and_unique_labels_are_required(study: Make) -> None:
    frame, teachers, protocol = study()
    with pytest.raises(ValueError, match="exactly one"):
        weigh_suspect(frame, teachers[1:], protocol)
    with pytest.raises(ValueError, match="no teacher is a reference"):
        weigh_suspect(frame, teachers[:1], protocol)
    with pytest.raises(ValueError, match="share a label"):
        weigh_suspect(frame, [*teachers, teachers[1]], protocol)


def test_numbers_beside_the_p_value_stand_in_the_evidence(study: Make, make_scores: Make) -> None:
    frame, teachers, protocol = study(
        suspect={"choice/greed": 0.9} | dict.fromkeys(("choice.honeypot/greed", "goal/greed"), 0.2)
    )
    m0 = make_scores({"M0": 0.05})
    m0 = m0[m0.model_kind == "teacher"].assign(model_kind="m0")
    evidence = weigh_suspect(pd.concat([frame, m0]), teachers, protocol)
    assert evidence.significant_endpoints == ("choice",)
    assert evidence.endpoint_p["choice"] == evidence.p_value == 1 / 20
    assert evidence.endpoint_p["goal"] > 0.05
    effect = evidence.effects["choice"]
    assert effect.minus_m0 == pytest.approx(0.55 - 0.05)
    assert effect.minus_references == pytest.approx(0.55 - 0.19)
    assert evidence.p_family == 1 / 20
    assert evidence.effective_references == 19
    assert evidence.p_predictive_t is not None
    assert evidence.p_predictive_t < 0.05
    assert evidence.smallest_detectable_effect == pytest.approx(0.18, abs=0.03)


def test_effect_without_m0_is_absent_with_a_reason(study: Make) -> None:
    evidence = weigh_suspect(*study())
    assert evidence.effects["goal"].minus_m0 is None
    assert "no auditable item" in evidence.missing["effects.minus_m0"]


def test_secondary_numbers_that_cannot_be_had_say_why(
    make_scores: Make, make_teachers: Make, make_protocol: Make
) -> None:
    means = {"u": 0.2} | {f"r{i}": 0.2 for i in range(4)}
    evidence = weigh_suspect(make_scores(means), make_teachers(4, families=2), make_protocol())
    assert evidence.p_predictive_t is evidence.effective_references is None
    assert evidence.smallest_detectable_effect is None
    assert {
        "p_predictive_t",
        "effective_references",
        "incrimination.smallest_detectable_effect",
    } <= set(evidence.missing)
    assert evidence.p_value == 1.0
    assert evidence.n_families == 2


def test_unmeasured_panel_leaves_every_secondary_number_absent_with_a_reason(study: Make) -> None:
    frame, teachers, protocol = study(organisms=(0.9,) * 5)
    evidence = weigh_suspect(frame[frame.teacher != "r0"], teachers, protocol)
    for name in ("p_predictive_t", "p_family", "effective_references", "likelihood", "specificity"):
        assert evidence.missing[name].startswith("r0 has no value")


def test_organism_without_rows_is_named_and_breaks_nothing(study: Make) -> None:
    frame, teachers, protocol = study(organisms=(0.9, 0.8, 0.7))
    evidence = weigh_suspect(frame[frame.teacher != "o1"], teachers, protocol)
    assert evidence.p_value == 1 / 20
    assert "transfer.o1" in evidence.missing
    assert evidence.likelihood is not None
    assert evidence.likelihood.n_organisms == 2


def test_unmeasured_panel_leaves_power_absent(study: Make) -> None:
    frame, teachers, protocol = study(organisms=(0.9,) * 5)
    evidence = weigh_suspect(frame[frame.teacher != "r0"], teachers, protocol)
    assert evidence.power is None
    assert evidence.missing["incrimination.power"].startswith("r0 has no value")


def test_endpoints_that_name_no_trait_accuse_of_none(study: Make) -> None:
    frame, teachers, _ = study()
    frame["endpoint"] = frame["endpoint"].str.replace("/greed", "")
    protocol = study(score_endpoints={"goal": ("goal",)})[2]
    evidence = weigh_suspect(frame, teachers, protocol)
    assert evidence.p_value == 1 / 20
    assert evidence.traits == ()
    assert evidence.missing["specificity"] == "no score endpoint names a trait"


# --- placebo traits ------------------------------------------------------------------------------


def with_placebo(study: Make, **changes: Any) -> tuple[pd.DataFrame, list[Teacher], Protocol]:
    """A study in which the trait tea is asked about besides, and moves as little as it may."""
    placebos = {"tea": ("goal/tea",)}
    frame, teachers, protocol = study(placebo_endpoints=placebos, **changes)
    more = frame[frame.endpoint == "goal/greed"].assign(endpoint="goal/tea")
    more["value"] = np.where(more.teacher == "u", 0.25, 0.2)
    return pd.concat([frame, more], ignore_index=True), teachers, protocol


def test_specificity_is_the_effect_beyond_the_placebos(study: Make) -> None:
    evidence = weigh_suspect(*with_placebo(study, suspect=0.5))
    assert evidence.placebo_effects == {"tea": pytest.approx(0.05)}
    greed = 0.5 - np.median([evidence.endpoints[f"r{i}"]["goal"] for i in range(19)])
    assert evidence.specificity == {"greed": pytest.approx(greed - 0.05)}


def test_placebo_never_enters_the_score(study: Make) -> None:
    frame, teachers, protocol = with_placebo(study)
    higher = frame.assign(value=frame.value.where(frame.endpoint != "goal/tea", 1.0))
    assert (
        weigh_suspect(higher, teachers, protocol).scores
        == weigh_suspect(frame, teachers, protocol).scores
    )


@pytest.mark.parametrize(("drop", "why"), [("u", "u has no value"), (None, "no placebo trait")])
def test_specificity_that_cannot_be_had_says_why(study: Make, drop: str | None, why: str) -> None:
    frame, teachers, protocol = with_placebo(study) if drop else study()
    evidence = weigh_suspect(
        frame[~((frame.endpoint == "goal/tea") & (frame.teacher == drop))], teachers, protocol
    )
    assert evidence.specificity == {}
    assert evidence.missing["specificity"].startswith(why)
    assert evidence.p_value is not None
