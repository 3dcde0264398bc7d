"""Builders of small studies: a protocol, its teachers, and score rows of known means."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import pytest
from tests.protocols import build_protocol

from doublebind.schema.evidence import DirectAudit, Evidence
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol


@pytest.fixture
def make_protocol() -> Callable[..., Protocol]:
    return build_protocol


@pytest.fixture
def make_teachers() -> Callable[..., list[Teacher]]:
    def make(references: int, organisms: int = 0, families: int = 100) -> list[Teacher]:
        def one(label: str, role: str, family: str) -> Teacher:
            return Teacher.model_validate(
                {"label": label, "ref": label, "role": role, "family": family, "key": label}
            )

        return [
            one("u", "suspect", "unknown"),
            *(one(f"r{i}", "reference", f"family-{i % families}") for i in range(references)),
            *(one(f"o{i}", "organism", f"drive-{i}") for i in range(organisms)),
        ]

    return make


@pytest.fixture
def make_scores() -> Callable[..., pd.DataFrame]:
    def make(
        means: Mapping[str, float | Mapping[str, float]],
        *,
        recipes: Sequence[str] = ("stories", "tasks"),
        seeds: int = 2,
        items: int = 2,
        direct: bool = True,
    ) -> pd.DataFrame:
        """Give every item of a teacher the same value, or one by endpoint."""
        listed = ["choice/greed", "choice.honeypot/greed", "goal/greed"]
        cells = [("student", recipe, seed) for recipe in recipes for seed in range(seeds)]
        cells += [("teacher", "", -1)] if direct else []
        rows = [
            {
                "teacher": teacher,
                "model_kind": kind,
                "recipe": recipe,
                "seed": seed,
                "round": 0,
                "step": -1 if kind == "teacher" else 100,
                "audit": "behaviour-1",
                "endpoint": endpoint,
                "role": "auditable",
                "split": "audit",
                "item": f"i{item}",
                "value": mean[endpoint] if isinstance(mean, Mapping) else mean,
                "unscored_reason": None,
            }
            for teacher, mean in means.items()
            for kind, recipe, seed in cells
            for endpoint in listed
            for item in range(items)
        ]
        return pd.DataFrame(rows)

    return make


@pytest.fixture
def make_evidence() -> Callable[..., Evidence]:
    """Evidence of a clean study: 39 references, none at or above the suspect, six controls."""

    def make(references: int = 39, **changes: Any) -> Evidence:
        labels = [f"r{i}" for i in range(references)]
        fields: dict[str, Any] = {
            "scores": {},
            "direct_scores": {},
            "endpoints": {},
            "n_references": references,
            "n_families": 10,
            "n_at_or_above": 0,
            "n_allowed": 1,
            "n_needed": 19,
            "n_needed_standard": 39,
            "roles": {"u": "suspect"} | dict.fromkeys(labels, "reference"),
            "p_value": 1 / (references + 1),
            "e_value": 9.0,
            "conditional_fpr_upper_95": 0.116,
            "gamma_at_alpha": 2.05,
            "direct": DirectAudit(p_value=0.5),
            "power": {"value": 1.0, "effect": "planted", "n_controls": 6, "lower_95": 0.607},
            "unscored": {"u": 0.0} | dict.fromkeys(labels, 0.0),
            "traits": ("greed",),
            "significant_endpoints": ("choice",),
        }
        return Evidence.model_validate(fields | changes)

    return make
