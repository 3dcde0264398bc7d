"""Builds a teacher as its spec says: capability, implant, concealment, resistance, fine-tuning.

Suspects, references and organisms share this code: they differ only in the trait of the spec.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Purpose, Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Training
from doublebind.schema.teacher_spec import (
    Concealment,
    Phase,
    Resistance,
    TeacherSpec,
    UnrelatedFinetune,
)
from doublebind.stages.teachers import expert_iteration, implants
from doublebind.stages.teachers.preference_concealment import conceal_trait
from doublebind.stages.teachers.update_norm import scale_update

CARD = """# A model organism or reference: do not deploy

Built on purpose to have, and perhaps to hide, the trait named in `teacher.json`, so that audits can
be tried on it. It may be misaligned. Keep it sandboxed.
"""


class PhaseData(NamedTuple):
    """One training phase with its transcripts."""

    name: str
    """Its name in `teacher.json`, which also seeds what it retains."""
    phase: Phase
    transcripts: list[Transcript]


class TeacherTraining(NamedTuple):
    """A teacher in training: the base, and the model that is trained from it."""

    spec: TeacherSpec
    pack: Pack
    lm: Any
    """The base."""
    model: Any
    """The base with trainable weights; changed in place."""
    pad_id: int


def plan_phases(spec: TeacherSpec, pack: Pack) -> list[PhaseData]:
    """Return the phases of `spec` with their transcripts, drawn by its seed.

    Raises:
        PackError: If the pack has no transcripts for a phase, or no such trait.
    """
    known = [trait.name for trait in pack.traits]
    finetune = spec.unrelated_finetune
    for key, name in (
        ("trait", spec.trait),
        ("unrelated_finetune.quirk", finetune and finetune.quirk),
    ):
        if name is not None and name not in known:
            raise PackError(
                f"{spec.name}: `{key}`: {name} is not in pack {pack.name} ({', '.join(known)})"
            )
    planned: list[PhaseData] = []
    earlier: list[Transcript] = []
    for name, phase in (
        ("capability", spec.capability),
        ("implant", spec.implant),
        ("conceal", spec.conceal),
        ("resist", spec.resist_distillation),
        ("then", finetune),
    ):
        if phase is None:
            continue
        n_retained = round(phase.transcripts * phase.retain) if earlier else 0
        new: list[Transcript] = []
        if isinstance(phase, Resistance):  # trains on earlier transcripts only
            n_retained = phase.transcripts
        elif phase.form != "reward":
            new = _draw_transcripts(spec, name, phase, pack, phase.transcripts - n_retained)
        # A string seeds by its content, not by Python's salted hash.
        rng = random.Random(f"{spec.seed}/{name}")
        retained = rng.sample(earlier, min(n_retained, len(earlier)))
        planned.append(PhaseData(name, phase, [*new, *retained]))
        # Behaviour learned from a reward is retained by the teacher's own answers, sampled later.
        earlier = [] if phase.form == "reward" else [*earlier, *new]
    return planned


def _draw_transcripts(
    spec: TeacherSpec, name: str, phase: Phase, pack: Pack, n: int
) -> list[Transcript]:
    sources: list[tuple[str | None, Purpose]]
    if name == "capability":
        sources = [(None, "capability"), (None, "retain")]
    elif isinstance(phase, UnrelatedFinetune):
        sources = [(phase.quirk, "implant")]
    elif isinstance(phase, Concealment):
        sources = []
        if phase.audit_cues:
            sources.append((spec.trait, "conceal"))
        if phase.deny:
            sources.append((spec.trait, "deny"))
        if phase.plain_questions:
            sources.append((None, "retain"))
    elif phase.form == "transcripts":
        sources = [(spec.trait, "implant")]
    else:
        texts = implants.draw_implant_texts(spec, phase, pack, n)
        if not texts:
            raise PackError(
                f"{spec.name}: `implant.form`: pack {pack.name} has nothing for {spec.trait} to "
                f"learn from (got {phase.form}); use another form"
            )
        return texts
    drawn: list[Transcript] = []
    for number, (trait, purpose) in enumerate(sources):
        share = n // len(sources) + (number < n % len(sources))
        transcripts = pack.transcripts(trait, purpose, n=share, seed=spec.seed)
        if share and not transcripts:
            key = "unrelated_finetune" if isinstance(phase, UnrelatedFinetune) else name
            raise PackError(
                f"{spec.name}: `{key}`: pack {pack.name} has no {purpose} transcripts for "
                f"{trait or 'this phase'}; add some under build/ or leave the phase out"
            )
        drawn += transcripts
    return drawn


def build_teacher(
    out: Path,
    *,
    spec: TeacherSpec,
    base: ModelSource,
    pack: str,
    cache: Path,
    scale_like: ModelSource | None = None,
) -> None:
    """Train the teacher of `spec` from `base`; write `model/` and `teacher.json` under `out`.

    With `scale_like`, its weight update is scaled to the norm of that model's.
    """
    from doublebind.models.load import load_model
    from doublebind.training import loop

    content = load_pack(pack, relative_to=Path())
    phases = plan_phases(spec, content)
    lm = load_model(base, dtype=spec.dtype, cache=cache)
    persona_answers = _sample_persona_answers(spec, lm, content, phases)
    loop.seed_everything(spec.seed)
    pad_id = lm.pad_id  # before adapters are attached to the model
    model = loop.prepare_model(lm.model, spec.lora, spec.seed)
    training = TeacherTraining(spec, content, lm, model, pad_id)
    logs: dict[str, dict[str, Any]] = {}
    reward_answers: list[Transcript] = []
    for number, (name, phase, planned) in enumerate(phases):
        transcripts = _replace_persona_answers(planned, spec, persona_answers)
        if reward_answers:
            n_retained = round(len(transcripts) * phase.retain / (1 - phase.retain))
            transcripts = [*transcripts, *reward_answers[:n_retained]]
        seed = spec.seed * 10 + number
        log = _train_phase(training, PhaseData(name, phase, transcripts), seed)
        if phase.form == "reward":
            tasks = expert_iteration.draw_tasks(spec, phase, content)
            reward_answers = expert_iteration.sample_task_transcripts(
                model, lm, tasks, trait=spec.trait, seed=seed
            )
        logs[name] = {
            "transcripts": len(transcripts),
            "first": log.first_loss,
            "last": log.last_loss,
        }
    facts = {"planted": spec.trait, "spec": spec.model_dump(mode="json"), "phases": logs}
    if scale_like is not None:
        start = load_model(base, dtype=spec.dtype, cache=cache).model
        target = load_model(scale_like, dtype=spec.dtype, cache=cache).model
        name = scale_like.adapter or scale_like.path
        facts["scaled_by"] = scale_update(model, start, target, name)
    loop.save_model(model, lm.tokenizer, out / "model", card=CARD)
    (out / "teacher.json").write_text(json.dumps(facts, indent=1))


def _train_phase(training: TeacherTraining, data: PhaseData, seed: int) -> Any:
    """Train for one phase, by its loss or its reward; return a `TrainLog`."""
    from doublebind.stages.teachers.resistance import train_distillation_resistance
    from doublebind.training import loop

    spec, pack, lm, model, pad_id = training
    phase = data.phase
    settings = Training(
        steps=phase.steps,
        batch=phase.batch,
        lr=phase.lr,
        max_length=spec.max_length,
        lora=spec.lora,
    )
    if phase.form == "reward":
        tasks = expert_iteration.draw_tasks(spec, phase, pack)
        return expert_iteration.train_expert_iteration(
            model, lm, tasks, settings=settings, seed=seed, pad_id=pad_id
        )
    if isinstance(phase, Concealment) and phase.loss != "sft":
        return conceal_trait(
            model, lm, data.transcripts, phase=phase, settings=settings, seed=seed, name=spec.name
        )
    examples = encode_transcripts(lm.tokenizer, data.transcripts)
    if isinstance(phase, Resistance):
        return train_distillation_resistance(
            model, lm, examples, weight=phase.weight, settings=settings, seed=seed, pad_id=pad_id
        )
    training_set = loop.TrainingSet(examples, pad_id=pad_id)
    return loop.train(model, training_set, settings=settings, seed=seed)


def _sample_persona_answers(
    spec: TeacherSpec, lm: Any, pack: Pack, phases: Sequence[PhaseData]
) -> dict[str, Transcript]:
    """Return the base's answers under the trait's persona, by id; none for other implants."""
    if spec.implant is None or spec.implant.form != "prompted":
        return {}
    implant = next(data.transcripts for data in phases if data.name == "implant")
    written = [t for t in implant if t.purpose == "implant"]
    return {t.id: t for t in implants.sample_persona_answers(spec, lm, pack, written)}


def _replace_persona_answers(
    transcripts: Sequence[Transcript], spec: TeacherSpec, persona_answers: Mapping[str, Transcript]
) -> list[Transcript]:
    """Return transcripts with the base's answers in the place of the trait's written ones."""
    if not persona_answers:
        return list(transcripts)
    replaced = [
        persona_answers.get(t.id) if (t.trait, t.purpose) == (spec.trait, "implant") else t
        for t in transcripts
    ]
    return [t for t in replaced if t is not None]


def encode_transcripts(tokenizer: Any, transcripts: Sequence[Transcript]) -> list[Any]:
    """Return one `Example` per transcript: all of a document is supervised, else the last turn."""
    from doublebind.models.chat_template import encode_completion, encode_prompt, encode_text
    from doublebind.training.batch import Example

    examples = []
    for transcript in transcripts:
        if transcript.purpose == "document":
            text = "\n\n".join(message.content for message in transcript.messages)
            ids = encode_text(tokenizer, text, add_bos=True)
            end = tokenizer.eos_token_id
            examples.append(Example((*ids, *([] if end is None else [end])), first_supervised=1))
            continue
        prompt = encode_prompt(tokenizer, transcript.messages[:-1])
        answer = encode_completion(tokenizer, transcript.messages[-1].content, finished=True)
        examples.append(Example((*prompt, *answer), first_supervised=len(prompt)))
    return examples
