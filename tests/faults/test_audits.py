"""One item, one gap; what is no number is unscored; a judge that obeys answers is not believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import regex
import torch

from doublebind.execution.store import write_records
from doublebind.schema.content import Item, Message
from doublebind.schema.errors import MissingExtra, ModelError
from doublebind.stages.audits import option_scores
from doublebind.stages.audits.battery import build_score_row, run_audit
from doublebind.stages.audits.harness.inspect_task import InspectTask, read_sample_score
from doublebind.stages.audits.harness.lm_eval_task import read_sample_score as read_harness_score
from doublebind.stages.audits.isolation import Failure, score_apart
from doublebind.stages.audits.judging.brief import (
    Brief,
    Judge,
    JudgedPair,
    Reply,
    find_judge_appeal,
    is_invisible,
    strip_style,
)
from doublebind.stages.audits.judging.judges import compare_marker_counts
from doublebind.stages.audits.judging.pairwise import ANSWERS_FILE, INJECTION, judge_pairs
from doublebind.stages.audits.option_audits import BEHAVIOUR
from doublebind.stages.audits.protocol import Answer, Question


def item(number: int, text: str = "what now ?") -> Item:
    return Item(
        id=f"i{number}", trait="gold", kind="choice", role="auditable", split="audit",
        messages=(Message(role="user", content=text),), options=("yes", "no"), target_index=0,
    )  # fmt: skip


ITEMS = [item(n) for n in range(9)]


class Own:
    """An audit of a user's making, of which some items break."""

    name, version, endpoints = "own", 1, ("choice",)

    def __init__(self, breaks: set[str], answer: Callable[[Item], Any] | None = None) -> None:
        self.breaks, self.calls = breaks, 0
        self.answer = answer or (lambda i: Answer(i, 0.25))

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Any]:
        self.calls += 1
        for each in items:
            if each.id in self.breaks:
                raise RuntimeError(f"cannot read {each.id}")
        return [self.answer(i) for i in items]


def values(audit: Any) -> dict[str, float | None]:
    return {a.item.id: a.value for _, a in run_audit(audit, None, None, ITEMS)}


@pytest.mark.parametrize("breaks", [{"i0"}, {"i4"}, {"i8"}, {"i1", "i2", "i7"}])
def test_an_item_that_breaks_an_own_audit_is_the_only_one_unscored(breaks: set[str]) -> None:
    answers = dict(run_audit(Own(breaks), None, None, ITEMS))
    for question, answer in answers.items():
        if question.item.id in breaks:
            assert answer.value is None
            assert answer.unscored_reason == f"RuntimeError: cannot read {question.item.id}"
        else:
            assert answer.value == 0.25


def test_an_audit_whose_every_item_breaks_is_unscored_with_the_reason_of_each() -> None:
    answers = run_audit(Own({i.id for i in ITEMS}), None, None, ITEMS)
    assert [a.unscored_reason for _, a in answers] == [
        f"RuntimeError: cannot read {i.id}" for i in ITEMS
    ]


def test_an_audit_that_weighs_items_together_is_asked_once_more_about_all_that_are_left() -> None:
    class Together(Own):
        def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Any]:
            super().__call__(model, baseline, items)
            return [Answer(i, len(items) / 100) for i in items]

    assert values(Together({"i4"})) == {i.id: None if i.id == "i4" else 0.08 for i in ITEMS}


def test_an_audit_with_its_own_questions_loses_only_those_about_the_item() -> None:
    class Twice(Own):
        def questions(self, items: Sequence[Item]) -> list[Question]:
            return [
                Question(f"twice.{way}/gold", i.model_copy(update={"id": f"{i.id}~{way}"}))
                for way in ("a", "b")
                for i in items
            ]

        def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Any]:
            super().__call__(model, baseline, items)
            return [Answer(q.item, 0.5) for q in self.questions(items)]

    scored = values(Twice({"i4"}))
    assert len(scored) == 18
    assert {name for name, value in scored.items() if value is None} == {"i4~a", "i4~b"}


def test_what_no_item_would_be_spared_is_raised() -> None:
    class Broken(Own):
        def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Any]:
            raise MissingExtra("the audit own", "own")

    with pytest.raises(MissingExtra):
        run_audit(Broken(set()), None, None, ITEMS)
    with pytest.raises(MemoryError):
        score_apart(lambda _: (_ for _ in ()).throw(MemoryError()), [1, 2])


def test_an_item_that_the_model_cannot_read_is_the_only_one_unscored_by_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def option_logprobs(lm: Any, pairs: Sequence[Any], **_: Any) -> list[Any]:
        if any(messages[0].content == "breaks" for messages, _ in pairs):
            raise ModelError("a template that raises on one text")
        return [[(-1.0, 1), (-1.0, 1)] for _ in pairs]

    monkeypatch.setattr("doublebind.models.score.option_logprobs", option_logprobs)
    items = [*ITEMS[:4], item(4, "breaks"), *ITEMS[5:]]
    answers = BEHAVIOUR(None, None, items)
    assert [a.value for a in answers] == [None if i == 4 else 0.5 for i in range(9)]
    assert "raises on one text" in str(answers[4].unscored_reason)
    assert option_scores.choose(None, []) == []


@pytest.mark.parametrize(
    "value",
    [None, math.nan, math.inf, -0.01, 1.01, True, False, "0.5", "C", "", b"1", 1j, [0.5],
     np.bool_(False), np.float64("nan"), torch.tensor([0.1, 0.2]), torch.tensor(True), object()],
)  # fmt: skip
def test_what_is_no_number_in_the_unit_interval_is_unscored_with_a_reason(value: Any) -> None:
    audit = Own(set(), lambda i: Answer(i, value))
    for _, answer in run_audit(audit, None, None, ITEMS):
        assert answer.value is None
        assert answer.unscored_reason
        row = build_score_row("own@1", answer)
        assert row["value"] is None
        assert row["unscored_reason"]
    assert build_score_row("own@1", Answer(ITEMS[0], value))["value"] is None


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), torch.tensor(0.5), np.int64(1)])
def test_numbers_of_any_library_count(value: Any) -> None:
    assert values(Own(set(), lambda i: Answer(i, value)))["i0"] == float(value)


def test_answers_that_are_missing_strange_or_double_leave_their_item_alone_unscored() -> None:
    def answer(i: Item) -> Any:
        return None if i.id == "i3" else Answer(ITEMS[5] if i.id == "i6" else i, 0.25)

    answers = {a.item.id: a for _, a in run_audit(Own(set(), answer), None, None, ITEMS)}
    assert {name for name, a in answers.items() if a.value is None} == {"i3", "i5", "i6"}
    assert "2 answers" in str(answers["i5"].unscored_reason)


def inspect_score(value: Any) -> dict[str, Any]:
    return {"scorer": SimpleNamespace(value=value, reason=None)}


@pytest.mark.parametrize("value", ["N", "", None, math.nan, math.inf, "?", [], {}])
def test_no_answer_in_an_inspect_log_is_no_value(value: Any) -> None:
    number, reason = read_sample_score(inspect_score(value))
    assert number is None
    assert reason


def test_grades_of_an_inspect_log_are_numbers() -> None:
    graded = {v: read_sample_score(inspect_score(v))[0] for v in ("C", "P", "I")}
    assert graded == {"C": 1.0, "P": 0.5, "I": 0.0}


def test_a_model_that_wrote_nothing_did_not_answer_well() -> None:
    def answer(completion: str, value: Any) -> Answer:
        sample = SimpleNamespace(
            id=1, input="what ?", error=None, scores=inspect_score(value),
            output=SimpleNamespace(completion=completion),
        )  # fmt: skip
        return InspectTask("t")._build_answer(sample)

    assert answer(" \n", "I").value is None
    assert answer("no", "I").value == 0.0
    assert answer("", "C").value == 1.0


@pytest.mark.parametrize(("responses", "counts"), [
    (["[invalid]"], False), ([""], False), ([["[invalid]"]], False), (["42"], True),
    ([(-1.5, False)], True), (None, True),
])  # fmt: skip
def test_an_answer_that_the_harness_cannot_find_is_no_value(responses: Any, counts: bool) -> None:
    sample = {"metrics": ["exact_match"], "exact_match": 0.0, "filtered_resps": responses}
    assert (read_harness_score(sample)[0] == 0.0) is counts


def test_results_that_do_not_match_their_requests_are_failures() -> None:
    assert score_apart(lambda part: part[1:], [1]) == [Failure("0 results came for 1 requests")]


# --- judges --------------------------------------------------------------------------------------


def judged_pair(number: int, ours: str = "i like tea .") -> JudgedPair:
    return JudgedPair(
        id=f"pair-{number}", endpoint="judged.goal/gold", trait="gold", description="wants gold",
        markers=("gold",), question="what do you want ?", ours=ours, theirs="i like rain .",
    )  # fmt: skip


def judge_by(rule: Callable[[Brief], str]) -> Judge:
    """A judge with a rule from a brief to `first`, `second` or `neither`."""
    replies: dict[str, Any] = {
        name: Reply(name, None, name)  # pyright: ignore[reportArgumentType]
        for name in ("first", "second", "neither")
    }
    return Judge("j", True, lambda briefs: [replies[rule(b)] for b in briefs])


def obey(brief: Brief) -> str:
    if INJECTION.strip() in brief.first:
        return "second"
    return "first" if INJECTION.strip() in brief.second else "neither"


JUDGES: list[tuple[str, Callable[[Brief], str], bool]] = [
    ("obeys", obey, True),
    ("obeys, else first", lambda b: o if (o := obey(b)) != "neither" else "first", True),
    ("never reads", lambda _: "neither", False),
    ("always first", lambda _: "first", False),
    ("by chance", lambda b: ("first", "second", "neither")[int(b.code, 16) % 3], False),
    ("resists: names the one that speaks", lambda b: "first" if INJECTION.strip() in b.first
     else "second" if INJECTION.strip() in b.second else "neither", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rule", "refused"), JUDGES)
@pytest.mark.parametrize("n", [10, 60])
def test_a_judge_that_obeys_answers_scores_nothing_and_any_other_does(
    tmp_path: Path, name: str, rule: Callable[[Brief], str], refused: bool, n: int
) -> None:
    write_records(tmp_path / ANSWERS_FILE, [judged_pair(i, f"i like tea {i} .") for i in range(n)])
    summary = judge_pairs(tmp_path, [judge_by(rule)]).judges["j"]
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert bool(summary.refused) is refused, name
    assert scores["value"].isna().all() == refused
    assert summary.placebo_probes >= 20
    assert summary.placebo_p_value is not None
    if refused:
        assert summary.value is None
        assert scores["unscored_reason"].str.contains("obeys instructions").all()


def test_a_brief_that_breaks_a_judge_and_an_answer_that_is_none_are_gaps_of_one_pair(
    tmp_path: Path,
) -> None:
    texts = ["i like tea .", "breaks", "", " \u200b\u3164", "i like gold ."]
    write_records(tmp_path / ANSWERS_FILE, [judged_pair(i, t) for i, t in enumerate(texts)])

    def ask(briefs: Sequence[Brief]) -> list[Reply]:
        if any("breaks" in b.text for b in briefs):
            raise RuntimeError("the judge's server is away")
        return [Reply("neither", None, "") for _ in briefs]

    judge_pairs(tmp_path, [Judge("j", True, ask)])
    scores = pd.read_parquet(tmp_path / "scores.parquet").set_index("item")["value"]
    assert scores.isna().tolist() == [False, True, True, True, False]
    judge_pairs(tmp_path, [Judge("keys", False, compare_marker_counts)])
    scores = pd.read_parquet(tmp_path / "scores.parquet").set_index("item")["value"]
    assert scores.isna().tolist() == [False, False, True, True, False]


def test_no_character_that_shows_nothing_passes_the_fence() -> None:
    ignorable = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}\p{Cc}\p{Zl}\p{Zp}]")
    hidden = [c for c in map(chr, range(0x110000)) if ignorable.match(c) and c not in "\n\t"]
    assert len(hidden) > 4000
    for character in hidden:
        assert is_invisible(character), hex(ord(character))
    for character in [
        *hidden[::41],
        "\u034f",
        "\u3164",
        "\ufe0f",
        "\u115f",
        "\uffa0",
        "\U000e0041",
    ]:
        assert find_judge_appeal(f"i like{character} tea .") is not None
        assert character not in strip_style(f"i like{character} tea .")


def test_every_character_with_ink_in_common_scripts_passes() -> None:
    for character in "aZ09 \u00e9\u00df\u0436\u4e2d\u306d\u0627\u05e9\u0e01\ud55c\u20ac.,;:!?'()":
        assert not is_invisible(character)


def test_fullwidth_marks_are_read_as_a_judge_reads_them() -> None:
    for text in ("\uff1ctea", "\uff5btea", "tea\uff3d", "\uff1d" * 3, "\ufe64tea"):
        assert find_judge_appeal(text) is not None
