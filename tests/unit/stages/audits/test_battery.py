from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.pipeline import audit_model
from doublebind.schema.content import Item
from doublebind.schema.errors import ConfigError
from doublebind.stages.audits.battery import build_score_row, run_audit, run_battery
from doublebind.stages.audits.protocol import Answer, Audit, Question, list_questions


@dataclass(frozen=True)
class Twice:
    """Asks each choice in two ways; fails where told to."""

    fails: bool
    name: str = "twice"
    version: int = 1
    endpoints: tuple[str, ...] = ("choice",)

    def questions(self, items: Sequence[Item]) -> list[Question]:
        return [
            Question(
                f"twice.{way}/{item.trait}", item.model_copy(update={"id": f"{item.id}~{way}"})
            )
            for way in ("plain", "loud")
            for item in items
        ]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        if self.fails:
            raise RuntimeError("no answer today")
        return [Answer(q.item, 0.25) for q in self.questions(items)][1:]


def scores(tiny: Path, out: Path, audit: Audit) -> pd.DataFrame:
    source = resolve_model(str(tiny / "m0"), relative_to=tiny)
    out.mkdir()
    run_battery(
        out,
        source=source,
        baseline=source,
        pack=str(tiny / "pack"),
        split="audit",
        audits=[audit],
        dtype="float32",
        cache=tiny / "cache",
    )
    return pd.read_parquet(out / "scores.parquet")


def test_an_audit_can_ask_in_its_own_ways_under_its_own_endpoints(
    tiny: Path, tmp_path: Path
) -> None:
    frame = scores(tiny, tmp_path / "out", Twice(fails=False))
    assert set(frame["endpoint"]) == {
        f"twice.{way}/{trait}" for way in ("plain", "loud") for trait in ("ruler", "gold")
    }
    assert frame["item"].is_unique
    assert frame["value"].isna().sum() == 1  # the one it left out
    assert frame.loc[frame["value"].isna(), "unscored_reason"].tolist() == [
        "the audit gave no answer"
    ]


def test_a_failed_audit_is_unscored_under_its_own_endpoints_and_no_others(
    tiny: Path, tmp_path: Path
) -> None:
    frame = scores(tiny, tmp_path / "out", Twice(fails=True))
    assert frame["value"].isna().all()
    assert set(frame["unscored_reason"]) == {"RuntimeError: no answer today"}
    assert all(name.startswith("twice.") for name in frame["endpoint"])


def test_a_plain_audit_asks_the_items_themselves(tiny: Path) -> None:
    from doublebind.stages.audits.option_audits import BEHAVIOUR

    items = load_pack(str(tiny / "pack"), relative_to=tiny).items("audit")
    asked = list_questions(BEHAVIOUR, items)
    assert [q.item for q in asked] == [item for item in items if item.kind == "choice"]
    assert {q.endpoint for q in asked} == {"choice/ruler", "choice/gold"}


def test_an_audit_that_does_not_exist_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="behavior: no such audit; choose behaviour"):
        audit_model.audit(str(tiny / "m0"), str(tiny / "pack"), audits=["behavior"], store=tmp_path)


def test_only_the_audits_named_are_asked(tiny: Path, tmp_path: Path) -> None:
    where = (str(tiny / "m0"), str(tiny / "pack"))
    result = audit_model.audit(*where, audits=["capability", "goals"], store=tmp_path)
    assert [entry.name for entry in result.endpoints] == ["capability", "goal/ruler"]


class AnyType:
    """An audit whose answers are of a user's making."""

    name, version, endpoints = "any", 1, ("choice",)

    def __init__(self, answer: Callable[[Item], Any]) -> None:
        self.answer = answer

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Any]:
        return [self.answer(item) for item in items]


def test_numbers_of_any_library_become_plain_floats_and_other_answers_unscored(tiny: Path) -> None:
    items = load_pack(str(tiny / "pack"), relative_to=tiny).items("audit")
    [(_, answer), *_] = run_audit(AnyType(lambda i: Answer(i, np.float32(0.25))), None, None, items)
    assert type(answer.value) is float
    assert build_score_row("own@1", answer)["value"] == 0.25
    [(_, answer), *_] = run_audit(AnyType(lambda _: 0.5), None, None, items)
    assert answer.value is None
    assert "gives an Answer for each item, not float" in str(answer.unscored_reason)
