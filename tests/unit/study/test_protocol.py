"""What the frozen protocol takes from the pack."""

from pathlib import Path

from doublebind.packs.load import load_pack
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.study import Study
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.study.protocol import freeze_protocol

STUDY = Path(__file__).parents[3] / "studies" / "terrarium-miniature" / "study.yaml"
TEACHERS = [
    Teacher(label=role, ref=role, role=role, family="f", content_key=role)
    for role in ("suspect", "reference")
]


def protocol_of(*overrides: str) -> Protocol:
    study = load_yaml(Study, STUDY, overrides)
    pack = load_pack("terrarium", relative_to=STUDY.parent)
    audits = resolve_audits(study.audits)
    return freeze_protocol(
        study, pack, audits, TEACHERS, recipes=study.recipes, student="m0", revisions={}
    )


def test_placebo_traits_are_frozen_with_the_endpoints_they_are_asked_by() -> None:
    placebos = protocol_of().placebo_endpoints
    assert set(placebos) == {"arson", "forgery"}
    assert "goal/arson" in placebos["arson"]
    assert not any("deployment" in name for name in placebos["arson"]), "oracle rows never enter"
    scored = {name for names in protocol_of().score_endpoints.values() for name in names}
    assert not scored & {name for names in placebos.values() for name in names}


def test_placebo_asked_by_no_audit_is_left_out() -> None:
    placebos = protocol_of("audits=[goals, capability]").placebo_endpoints
    assert placebos == {"arson": ("goal/arson",), "forgery": ("goal/forgery",)}
