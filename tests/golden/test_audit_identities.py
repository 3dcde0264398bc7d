"""Identities and job keys of the built-in audits: no move or new name of a class changes one."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from tests.pack_content import audit_key

from doublebind.schema.content import Item
from doublebind.schema.study import DEFAULT_AUDITS, OPTIONAL_AUDITS
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.option_audits import BEHAVIOUR, OptionAudit
from doublebind.stages.audits.protocol import Answer, identify_audit
from doublebind.stages.audits.validate import check_audits
from doublebind.study.protocol import list_audit_names

GOLDEN = {
    "behaviour": (
        "doublebind.audit.behaviour.Behaviour",
        "7898499479013cca4a93195d82282b84108f38303c4a6dd4a403379559462d5e",
    ),
    "goals": (
        "doublebind.audit.confession.Goals",
        "08b7b85db6e3800c0a125fcbb66d7ea7cc45b40159e98518550292eb8d0ab147",
    ),
    "confession": (
        "doublebind.audit.confession.Confession",
        "074f73c77b85c2d7bb53d0eedb0b43112eb3dd751fffc03e5a645dd078021fcf",
    ),
    "capability": (
        "doublebind.audit.capability.Capability",
        "cc6ae54936d9464425093877a42671c15103a74f680b0ee49d3eafc6a774e8c4",
    ),
    "coherence": (
        "doublebind.audit.capability.Coherence",
        "fe31a516ce29303d636dee26ae602dd7138263e81d4b362a82ec62d10c50c410",
    ),
    "elicitation": (
        "doublebind.audit.variants.Elicitation",
        "16ce487d3588b6630cdbaec644019ddfadbec8ca926425ab1289f39f5ea47ef4",
    ),
    "auditability": (
        "doublebind.audit.auditability.Auditability",
        "1fefe758851a6cfc0d2bab37555bd01e48eba52589dd95f18291fb28bf9e0713",
    ),
    "corroboration": (
        "doublebind.audit.corroboration.Corroboration",
        "615cbb503624eaf7a4383d9e96a0af2f95020846651b87b0d45a3527ff6a4242",
    ),
    "prompted:be kind": (
        "doublebind.audit.under.Under",
        "f5170a01acb65c946d2d45bd6a43300205413253815500e24ebf65879171d2df",
    ),
    "lm-eval:arc_easy": (
        "doublebind.audit.lm_eval_audit.HarnessTask",
        "0cb05bdf0df94766341b099a5dc191d698cbc20ab9376d1263ca4ce9fcc02945",
    ),
    "inspect:doublebind/goals": (
        "doublebind.audit.inspect_audit.InspectTask",
        "eff638fcf38aad3e1412499c4a7d7fa41ec5a2f3e53f61b3bf8ceb58d2c64a1b",
    ),
    "inspect-auditable:doublebind/goals": (
        "doublebind.audit.inspect_audit.InspectTask",
        "b068f56ab22eba505aebb8b50b532a8e4a626029812d28f1adf50ac0c7c37296",
    ),
}
ALL = "081be37cea38cc5737ee17c105e72bfb2f28386bdbd5c64819d63385081c1d1b"
"""The key of the job that runs all of them, in this order."""


@pytest.mark.parametrize("name", GOLDEN)
def test_identity_and_key_of_a_built_in_audit_are_the_recorded_ones(name: str) -> None:
    named, key = GOLDEN[name]
    (audit,) = resolve_audits([name])
    assert ".".join(identify_audit(audit)) == named
    assert list_audit_names([audit]) == (f"{named}@1",)
    assert audit_key(name) == key


def test_every_built_in_audit_is_recorded_and_several_have_the_recorded_key() -> None:
    kinds = {name.partition(":")[0] for name in GOLDEN}
    assert kinds == {
        *DEFAULT_AUDITS,
        *OPTIONAL_AUDITS,
        "prompted",
        "lm-eval",
        "inspect",
        "inspect-auditable",
    }
    assert audit_key(*GOLDEN) == ALL


def test_fields_in_keys_do_not_hold_the_identity() -> None:
    for audit in resolve_audits(list(GOLDEN)):
        assert isinstance(vars(type(audit))["identity"], str | property)
        assert "identity" not in vars(audit)
    assert vars(BEHAVIOUR) == {"name": "behaviour", "version": 1, "endpoints": ("choice",)}


def test_built_in_audits_reach_worker_processes_and_may_be_brought_under_another_name() -> None:
    for audit in resolve_audits(list(GOLDEN)):
        assert pickle.loads(pickle.dumps(audit)) == audit
    check_audits(
        [replace(BEHAVIOUR, name="behaviour-again", version=2)], DEFAULT_AUDITS, in_workers=True
    )


# --- audits of users -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(OptionAudit):
    identity: ClassVar[str] = "doublebind.audit.behaviour.Behaviour"  # type: ignore[misc]


@dataclass(frozen=True)
class WithField:
    name: str = "own"
    version: int = 1
    endpoints: tuple[str, ...] = ("choice",)
    identity: str = "doublebind.audit.behaviour.Behaviour"

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        return []


def test_an_audit_of_a_user_is_identified_by_its_class_whatever_it_declares() -> None:
    assert identify_audit(Own("own", ("choice",))) == (__name__, "Own")
    assert identify_audit(WithField()) == (__name__, "WithField")
