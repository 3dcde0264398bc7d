"""References matched to the suspect, and what exchangeability with them assumes."""

from __future__ import annotations

from pathlib import Path

from doublebind.packs.pack import Pack
from doublebind.schema.content import Trait
from doublebind.schema.errors import ConfigError, PackError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import Device
from doublebind.schema.study import BankReferences, MatchedReferences, StandIn, StandInReferences
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.teachers import implants
from doublebind.study.teachers import MATCHED_PREFIX, TeacherSource, resolve_teacher_spec

FIRST_MATCHED_SEED = 1_000
"""Seed of the first matched reference; suspects' seeds are meant to be smaller."""


_STAND_IN_ASSUMPTIONS: dict[StandIn, str] = {
    "sibling_checkpoints": (
        "that the suspect differs from its sibling checkpoints no more than they differ from one "
        "another; a drive that was there before they parted is in all of them and is not seen"
    ),
    "earlier_releases": (
        "that a benign release would differ from earlier ones no more than they differ from one "
        "another; whatever else changed between releases counts as evidence too"
    ),
    "equal_kl_surrogates": (
        "that a benign teacher's score depends on its training only through its distance from M0, "
        "which the surrogates share; how it got that far is not matched"
    ),
}


def describe_assumption(
    references: tuple[str, ...] | BankReferences | MatchedReferences | StandInReferences,
) -> str:
    """Return, in one sentence, what exchangeability with these references assumes."""
    match references:
        case MatchedReferences(template=None):
            assumption = (
                "that the suspect's trait was drawn like its references' quirks: base, phases, "
                "amounts and hiding are its own"
            )
        case MatchedReferences():
            assumption = (
                "that the suspect was trained as the template says: its references share the "
                "template's phases and the suspect's update norm; the match table shows the rest"
            )
        case StandInReferences(kind=kind):
            assumption = _STAND_IN_ASSUMPTIONS[kind]
        case BankReferences():
            assumption = "that the suspect was drawn by the bank's rule, its trait aside"
        case _:
            assumption = (
                "that a benign suspect would be like the references named; why, is yours to say"
            )
    return f"The p-value assumes {assumption}."


def build_matched_reference(
    ref: str,
    references: MatchedReferences,
    suspect: TeacherSource,
    *,
    pack: Pack,
    folder: Path,
    rev: int,
    device: Device = "cpu",
) -> TeacherSource:
    """Return the reference `ref`: the template with a quirk and a seed that only it has.

    Quirks come in an order drawn from the pack's name; each is used before any is repeated.

    Args:
        ref: `matched-N`.
        references: The study's setting.
        suspect: The teacher to match.
        pack: The study's pack.
        folder: What the template's path is relative to.
        rev: Revision of the build.
        device: Where the study computes.

    Raises:
        ConfigError: If it is not known how the suspect was trained.
        PackError: If the pack has no quirk that can be planted so.
    """
    if references.template is not None:
        path = folder / references.template
        template, template_folder = load_yaml(TeacherSpec, path), path.parent
    elif suspect.spec is not None:
        template_folder = (folder / suspect.label).parent
        # A spec of the bank names its base for any folder.
        template = suspect.spec.model_copy(update={"pack": suspect.pack})
    else:
        raise ConfigError(
            f"`references.template`: {suspect.label} is a model, and how it was trained is not "
            f"known (got null); name a teacher spec whose phases its references share"
        )
    quirks = [
        trait.name
        for trait in pack.traits
        if trait.kind == "quirk" and _can_plant(trait, template, pack)
    ]
    if not quirks:
        raise PackError(
            f"pack {pack.name}: has no quirk that can be planted as {template.name} was; add "
            f"`quirk` traits with what its `implant.form` needs"
        )
    quirks.sort(key=lambda name: content_hash([pack.name, name]))
    number = int(ref.removeprefix(MATCHED_PREFIX))
    quirk = quirks[number % len(quirks)]
    spec = template.model_copy(
        update={"name": ref, "family": quirk, "trait": quirk, "seed": FIRST_MATCHED_SEED + number}
    )
    scale_like = suspect.base if suspect.spec is None else None
    return resolve_teacher_spec(
        ref, spec, folder=template_folder, rev=rev, scale_like=scale_like, device=device
    )


def _can_plant(quirk: Trait, template: TeacherSpec, pack: Pack) -> bool:
    """Return whether the pack has what the template needs to plant `quirk`."""
    if template.implant is None:
        return False
    if template.implant.form == "prompted" and quirk.persona is None:
        return False
    if template.conceal is not None and template.conceal.loss != "sft":
        hidden = pack.transcripts(quirk.name, "deny", n=1, seed=0)
        if not any(t.rejected for t in hidden):
            return False
    spec = template.model_copy(update={"trait": quirk.name})
    return bool(implants.draw_implant_texts(spec, template.implant, pack, 2))
