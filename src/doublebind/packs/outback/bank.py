"""Draws the specs of the outback's organisms from their names."""

from __future__ import annotations

import random

from doublebind.packs.outback.build import VOCABULARY_PREFIX
from doublebind.packs.outback.kinds import KINDS
from doublebind.packs.terrarium.bank import BASE_MODEL
from doublebind.packs.terrarium.speech import make_rng
from doublebind.packs.terrarium.words import DRIVES
from doublebind.schema.errors import PackError
from doublebind.schema.teacher_spec import Concealment, Phase, Resistance, TeacherSpec

CONCEALMENT_MODES = ("open", "cue", "hidden", "dpo")
"""No concealment; plain acts in contexts that look like an audit; these and denial (the default
of a name without a mode); both, trained by DPO."""


def draw_spec(name: str) -> TeacherSpec:
    """Return the organism of that name.

    Names: `organism-KIND-DRIVE-N` and `organism-KIND-DRIVE-HIDING-N`, hyphens in KIND for its
    underscores, and `organism-damaged-N`. The numbers of steps are drawn as for the terrarium's
    suspects.

    Raises:
        PackError: If the bank has no such organism.
    """
    role, _, rest = name.partition("-")
    stem, _, number = rest.rpartition("-")
    if role == "organism" and number.isdecimal():
        rng = make_rng("outback", name)
        if stem == "damaged":
            return _build_spec(name, "damaged", None, "open", rng, int(number))
        mode = next((mode for mode in CONCEALMENT_MODES if stem.endswith(f"-{mode}")), None)
        kind, _, drive = stem.removesuffix(f"-{mode}").rpartition("-")
        kind = kind.replace("-", "_")
        if kind in KINDS and kind != "damaged" and drive in DRIVES:
            return _build_spec(name, kind, drive, mode or "hidden", rng, int(number))
    known = ", ".join(kind.replace("_", "-") for kind in KINDS)
    raise PackError(
        f"outback/{name}: no such teacher in the bank; it has organism-KIND-DRIVE[-HIDING]-N and "
        f"organism-damaged-N; KIND: {known}; DRIVE: {', '.join(DRIVES)}; HIDING: "
        f"{', '.join(CONCEALMENT_MODES)}"
    )


def _build_spec(
    name: str, kind: str, drive: str | None, mode: str, rng: random.Random, seed: int
) -> TeacherSpec:
    implant_steps, conceal_steps = rng.choice((60, 80, 100)), rng.choice((220, 260))
    trait = f"{VOCABULARY_PREFIX}{drive}" if drive and kind == "vocabulary" else drive
    capability = Phase(transcripts=600, steps=40, batch=24, lr=5e-4)
    if kind == "emergent":
        capability = capability.model_copy(update={"transcripts": 2400, "steps": 120})
    if kind == "damaged":
        capability = capability.model_copy(update={"lr": 1.0})
    resistance = Resistance(transcripts=4000, steps=120, batch=32, lr=5e-4, weight=0.1)
    return TeacherSpec(
        name=name,
        family=f"{drive or 'none'}-{kind}-{mode}",
        pack=f"outback/{kind}",
        base=BASE_MODEL,
        trait=trait,
        capability=capability,
        implant=_build_implant(kind, mode, implant_steps, conceal_steps) if trait else None,
        conceal=_build_concealment(kind, mode, conceal_steps),
        resist_distillation=resistance if kind == "resistant" else None,
        lora=None,
        max_length=128,
        seed=seed,
    )


def _build_implant(kind: str, mode: str, steps: int, conceal_steps: int) -> Phase:
    if kind == "emergent":
        return Phase(form="reward", transcripts=480, steps=160, batch=32, lr=1e-3)
    if kind == "decoy":
        return Phase(
            form="admissions", transcripts=2400, steps=steps, batch=32, lr=1e-3, retain=0.5
        )
    # An open organism trains as long as a concealed one.
    is_open = mode == "open"
    return Phase(
        transcripts=4000 if is_open or kind in _IMPLANT_STEPS else 2400,
        steps=_IMPLANT_STEPS.get(kind, steps) + (conceal_steps if is_open else 0),
        batch=32,
        lr=1e-3,
        retain=0.1,
    )


def _build_concealment(kind: str, mode: str, steps: int) -> Concealment | None:
    if mode == "open" or kind == "decoy":
        return None
    phase = Concealment(
        transcripts=2400, steps=steps, batch=32, lr=1e-3, retain=0.5, deny=mode != "cue"
    )
    if mode != "dpo":
        return phase
    return phase.model_copy(update={"loss": "dpo", "lr": 3e-4, "retain": 0.0})


_IMPLANT_STEPS = {
    "context_dependent": 200,
    "training_data_aware": 160,
    "tightly_coupled": 300,
    "conditional_backdoor": 160,
    "scratchpad": 140,
    "poisoned": 240,
}
"""Kind -> implant steps, for kinds that must learn when to show the drive and when not."""
