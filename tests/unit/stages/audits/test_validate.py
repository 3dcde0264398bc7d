"""Audits that a user brings are looked over before anything is computed with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_study import write_study

import doublebind
from doublebind.schema.errors import ConfigError
from doublebind.stages.audits.validate import check_audits


@dataclass(frozen=True)
class Own:
    name: str = "own"
    version: Any = 1
    endpoints: Any = ("choice",)
    extra: Any = None

    def __call__(
        self, model: Any, baseline: Any, items: Sequence[doublebind.Item]
    ) -> list[doublebind.Answer]:
        return [doublebind.Answer(item, 0.25) for item in items]


@dataclass(frozen=True)
class NotOne:
    name: str = "half"
    version: int = 1


def ask(model: Any, baseline: Any, items: Any) -> list[doublebind.Answer]:
    return []


def bare() -> Any:
    function = partial(ask)
    function.name, function.version, function.endpoints = "f", 1, ("choice",)  # type: ignore[attr-defined]
    return function


def local() -> Any:
    @dataclass(frozen=True)
    class Inner(Own):
        pass

    return Inner()


def test_an_audit_of_the_right_shape_passes() -> None:
    check_audits(
        [Own(), Own(name="another", extra={"cue": ["a", 1]})], ["behaviour"], in_workers=True
    )


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (Own, r"is a class; pass an object of it, `Own\(\)`"),
        (NotOne(), "lacks `endpoints`, `__call__`"),
        (bare(), "define a class at the top of a module"),
        (local(), "define a class at the top of a module"),
        (Own(version="1"), "`version` is '1'"),
        (Own(endpoints="choice"), "make it a tuple of kinds"),
        (Own(endpoints=()), "make it a tuple of kinds"),
        (Own(endpoints=("choices",)), "'choices' is no kind of item"),
        (Own(extra=object()), "must be plain data"),
        (Own(name="behaviour"), "two are called `behaviour`"),
    ],
)
def test_what_could_not_be_keyed_is_refused_in_one_line(audit: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        check_audits([audit], ["behaviour"], in_workers=False)
    assert len(error.value.problems) == 1


def test_a_run_refuses_it_before_it_starts(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study")
    with pytest.raises(ConfigError, match="is a class"):
        doublebind.run(path, tmp_path / "run", store=tmp_path / "store", audits=[Own])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()
