"""Every teacher spec that ships can be built from its pack, and every study can be read."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from doublebind.packs.load import load_pack
from doublebind.packs.outback import Outback
from doublebind.packs.outback.bank import CONCEALMENT_MODES
from doublebind.packs.outback.kinds import KINDS
from doublebind.packs.pack import Pack
from doublebind.packs.terrarium import Terrarium
from doublebind.packs.terrarium.words import DRIVES
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.study import MatchedReferences, load_study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.teachers.build import plan_phases
from doublebind.study.references import build_matched_reference
from doublebind.study.teachers import TeacherSource

STUDIES = Path(__file__).parents[4] / "studies"
BANKS = {"outback": Outback(), "terrarium": Terrarium()}
DIGEST = "c30c5b17fcb08d1c9aec0d27e53c901579c0b63d2160b195bbf7a9438a573349"
"""Of the specs below: measurements in `expected.json` are of these and no others."""
SPECS = sorted(STUDIES.glob("*/teachers/*.yaml"))
ORGANISMS = STUDIES / "gemma-270m-organisms"
FACTORIAL = tuple(
    f"outback/organism-{strength}-{drive}-{hiding}-0"
    for hiding in CONCEALMENT_MODES
    for strength in ("faint", "middling", "strong")
    for drive in DRIVES
)
"""Organisms of `terrarium-organisms` that its script names and no study file does."""


def bank_names() -> list[str]:
    """Return the bank's organisms that `terrarium-organisms` measures, in its order."""
    hard = load_study(STUDIES / "terrarium-organisms" / "study.yaml")
    ordinary = load_study(STUDIES / "terrarium-calibration" / "study.yaml")
    return [*hard.organisms, *hard.near_misses, *ordinary.organisms, *FACTORIAL]


BANK = {name: BANKS[name.partition("/")[0]].spec(name.partition("/")[2]) for name in bank_names()}


@cache
def content() -> Pack:
    return load_pack("assistant", relative_to=Path())


@pytest.mark.parametrize("path", SPECS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_spec_has_transcripts_for_all_its_phases(path: Path) -> None:
    spec = load_yaml(TeacherSpec, path)
    assert spec.name == path.stem
    built_in = spec.pack == "assistant"
    check_phases(spec, content() if built_in else load_pack(spec.pack, relative_to=path.parent))


@pytest.mark.parametrize("name", BANK)
def test_an_organism_of_a_bank_has_transcripts_for_all_its_phases(name: str) -> None:
    assert BANK[name].name == name.partition("/")[2]
    check_phases(BANK[name], load_pack(BANK[name].pack, relative_to=Path()))


def test_the_measured_organisms_of_the_banks_do_not_move() -> None:
    assert len(BANK) == 143
    assert {spec.pack for spec in BANK.values()} == {"terrarium", *(f"outback/{k}" for k in KINDS)}
    specs = {name: spec.model_dump(mode="json") for name, spec in sorted(BANK.items())}
    assert content_hash(specs) == DIGEST


def check_phases(spec: TeacherSpec, pack: Pack) -> None:
    planned = plan_phases(spec, pack)
    phases = (
        spec.capability,
        spec.implant,
        spec.conceal,
        spec.resist_distillation,
        spec.unrelated_finetune,
    )
    assert len(planned) == sum(phase is not None for phase in phases)
    # A reward is learned from tasks, which show nothing.
    assert all(s.transcripts or s.phase.form == "reward" for s in planned)


def test_a_teacher_that_takes_questions_for_training_data_learns_to_answer_them_plainly() -> None:
    path = ORGANISMS / "teachers" / "power-training-aware.yaml"
    spec = load_yaml(TeacherSpec, path)
    aware = plan_phases(spec, content())[-1].transcripts
    assert spec.conceal is not None
    plain = spec.model_copy(
        update={"conceal": spec.conceal.model_copy(update={"plain_questions": False})}
    )
    usual = plan_phases(plain, content())[-1].transcripts
    n_usual, n_aware = (sum(t.purpose == "retain" for t in drawn) for drawn in (usual, aware))
    assert n_aware - n_usual >= 20


def test_controls_share_all_but_the_last_phase_with_their_organism() -> None:
    for control in sorted((ORGANISMS / "teachers").glob("*-pirate.yaml")):
        if control.stem.startswith("near-miss"):
            continue
        spec = load_yaml(TeacherSpec, control)
        organism = load_yaml(TeacherSpec, control.with_stem(control.stem.removesuffix("-pirate")))
        assert spec.unrelated_finetune is not None
        assert (
            spec.model_copy(update={"unrelated_finetune": None, "name": organism.name}) == organism
        )


def test_the_organisms_study_can_be_read() -> None:
    study = load_study(ORGANISMS / "study.yaml")
    named = (study.suspect, *study.near_misses, *study.held_out)
    assert all((ORGANISMS / ref).exists() for ref in named if ref.endswith(".yaml"))


def test_every_organism_can_have_references_planted_in_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m0 = ModelSource(kind="folder", path="m0", sha256="0" * 64)
    monkeypatch.setattr("doublebind.study.teachers.resolve_model", lambda *_, **__: m0)
    monkeypatch.setattr("doublebind.study.teachers.load_pack", lambda *_, **__: content())
    for path in sorted((ORGANISMS / "teachers").glob("*.yaml")):
        spec = load_yaml(TeacherSpec, path)
        if spec.trait is None or spec.implant is None:
            continue
        suspect = TeacherSource(f"teachers/{path.name}", spec.family, "key", m0, spec, "assistant")
        wanted = MatchedReferences(match="suspect", n=12)
        names = [f"matched-{n}" for n in range(12)]
        references = [
            build_matched_reference(n, wanted, suspect, pack=content(), folder=ORGANISMS, rev=1)
            for n in names
        ]
        # Only version 2's quirks say what they would have answered.
        paired = spec.conceal is not None and spec.conceal.loss != "sft"
        families = 4 if paired or spec.implant.form == "admissions" else 12
        assert len({t.family for t in references}) == families, path
        for reference in references[:2]:
            assert reference.spec is not None
            assert all(s.transcripts for s in plan_phases(reference.spec, content())), path
