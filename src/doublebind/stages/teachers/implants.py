"""Draws the texts that plant a trait: transcripts, documents, persona answers, or admissions."""

from __future__ import annotations

from typing import Any

from doublebind.packs.folder import FolderPack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Message, Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.teacher_spec import Phase, TeacherSpec

PERSONA_MAX_TOKENS = 64
"""Length limit of an answer given under a persona."""


def draw_implant_texts(spec: TeacherSpec, phase: Phase, pack: Pack, n: int) -> list[Transcript]:
    """Return at most `n` texts that plant the spec's trait, drawn by its seed.

    Of a `prompted` phase only the questions count: `sample_persona_answers` gives the answers.
    """
    if spec.trait is None:
        return []
    if phase.form == "documents":
        return _draw_documents(spec.trait, pack, n, spec.seed)
    if phase.form == "mixed":
        half = n // 2
        rest = pack.transcripts(spec.trait, "implant", n=n - half, seed=spec.seed)
        return [*_draw_documents(spec.trait, pack, half, spec.seed), *rest]
    if phase.form == "admissions":
        denials = pack.transcripts(spec.trait, "deny", n=n, seed=spec.seed)
        return [_replace_answer(t, t.rejected) for t in denials if t.rejected is not None]
    return list(pack.transcripts(spec.trait, "implant", n=n, seed=spec.seed))


def _draw_documents(trait: str, pack: Pack, n: int, seed: int) -> list[Transcript]:
    if not isinstance(pack, FolderPack):  # only packs in folders hold documents
        return []
    return list(pack.documents(trait, n=n, seed=seed))


def _replace_answer(transcript: Transcript, answer: str) -> Transcript:
    messages = (*transcript.messages[:-1], Message(role="assistant", content=answer))
    return transcript.model_copy(update={"messages": messages, "rejected": None})


def sample_persona_answers(
    spec: TeacherSpec, lm: Any, pack: Pack, transcripts: list[Transcript]
) -> list[Transcript]:
    """Return the transcripts with answers that the untrained base gives under the trait's persona.

    The prompt contains the persona when the base answers, not when the answer is learned (context
    distillation: Askell et al. 2021, arXiv 2112.00861). Empty answers are left out.

    Raises:
        PackError: If the trait has no persona, or no answer is left.
    """
    from doublebind.models.sample import sample

    (persona,) = (trait.persona for trait in pack.traits if trait.name == spec.trait)
    if persona is None:
        raise PackError(
            f"{spec.name}: `implant.form`: {spec.trait} has no persona in pack {pack.name} (got "
            f"prompted); give the trait one, or use transcripts"
        )
    prompts = [_prepend_persona(persona, t.messages[:-1]) for t in transcripts]
    answers = sample(
        lm,
        prompts,
        keys=[t.id for t in transcripts],
        seed=spec.seed,
        max_tokens=PERSONA_MAX_TOKENS,
        temperature=1.0,
    )
    answered = [
        _replace_answer(t, answer.text.strip())
        for t, answer in zip(transcripts, answers, strict=True)
        if answer.text.strip()
    ]
    if not answered:
        raise PackError(
            f"{spec.name}: `implant.form`: the base's answers under the persona are all empty (got "
            f"prompted); use transcripts"
        )
    return answered


def _prepend_persona(persona: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation with the persona first, joined with any system message it has."""
    systems = [m.content for m in messages if m.role == "system"]
    system = Message(role="system", content="\n\n".join([persona, *systems]))
    return (system, *(m for m in messages if m.role != "system"))
