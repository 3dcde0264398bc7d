"""What a trait is planted from: transcripts, documents, a persona's answers, or admissions.

Knows a pack's build content and, for a persona, how to sample the base. Does not train.
"""

from __future__ import annotations

from typing import Any

from doublebind.packs.folder import FolderPack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Message, Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.teacher_spec import Phase, TeacherSpec

PERSONA_MAX_TOKENS = 64
"""Tokens of an answer given under a persona."""


def draw_implant_texts(spec: TeacherSpec, phase: Phase, pack: Pack, n: int) -> list[Transcript]:
    """Return at most `n` texts that plant the spec's trait, drawn by its seed.

    Of a `prompted` phase only the questions count: `answered` replaces the answers.
    """
    assert spec.trait is not None
    if phase.form == "documents":
        return _draw_documents(spec, pack, n)
    if phase.form == "mixed":
        half = n // 2
        rest = pack.transcripts(spec.trait, "implant", n=n - half, seed=spec.seed)
        return [*_draw_documents(spec, pack, half), *rest]
    if phase.form == "admissions":
        asked = pack.transcripts(spec.trait, "deny", n=n, seed=spec.seed)
        return [_replace_answer(t, t.rejected) for t in asked if t.rejected is not None]
    return list(pack.transcripts(spec.trait, "implant", n=n, seed=spec.seed))


def _draw_documents(spec: TeacherSpec, pack: Pack, n: int) -> list[Transcript]:
    """Return documents, which only packs in folders hold."""
    assert spec.trait is not None
    return (
        list(pack.documents(spec.trait, n=n, seed=spec.seed))
        if isinstance(pack, FolderPack)
        else []
    )


def _replace_answer(transcript: Transcript, answer: str) -> Transcript:
    """Return a transcript with another answer."""
    messages = (*transcript.messages[:-1], Message(role="assistant", content=answer))
    return transcript.model_copy(update={"messages": messages, "rejected": None})


def sample_persona_answers(
    spec: TeacherSpec, lm: Any, pack: Pack, transcripts: list[Transcript]
) -> list[Transcript]:
    """Return the transcripts with what the untrained base says under the trait's persona.

    The persona stands before the question when the base answers and is gone when it is learned
    (context distillation: Askell et al. 2021, arXiv 2112.00861). Empty answers are left out.

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
    said = sample(
        lm,
        prompts,
        keys=[t.id for t in transcripts],
        seed=spec.seed,
        max_tokens=PERSONA_MAX_TOKENS,
        temperature=1.0,
    )
    kept = [
        _replace_answer(t, answer.text.strip())
        for t, answer in zip(transcripts, said, strict=True)
        if answer.text.strip()
    ]
    if not kept:
        raise PackError(f"{spec.name}: `implant.form`: the base says nothing under the persona")
    return kept


def _prepend_persona(persona: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation with the persona in front, before a system message of its own."""
    own = [m.content for m in messages if m.role == "system"]
    system = Message(role="system", content="\n\n".join([persona, *own]))
    return (system, *(m for m in messages if m.role != "system"))
