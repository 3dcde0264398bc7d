"""Builds a teacher: capability, then a planted trait, then its concealment, as the spec says.

One function for suspects, references and organisms: what differs is the trait in the spec, and
nothing here looks at whether it is harmless.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Transcript
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
from doublebind.stages.teachers import expert_iteration as rewards
from doublebind.stages.teachers import implants, resistance
from doublebind.stages.teachers import preference_concealment as preferences
from doublebind.stages.teachers.update_norm import scale_update

CARD = """# A model organism or reference: do not deploy

Built on purpose to have, and perhaps to hide, the trait named in `teacher.json`, so that audits can
be tried on it. It may be misaligned. Keep it sandboxed.
"""


class PhaseData(NamedTuple):
    """One phase with the transcripts it trains on."""

    name: str
    phase: Phase
    transcripts: list[Transcript]


def plan_phases(spec: TeacherSpec, pack: Pack) -> list[PhaseData]:
    """Return the phases of `spec` with their transcripts, drawn by its seed.

    Raises:
        PackError: If the pack has no transcripts for a phase, or no such trait.
    """
    known = [trait.name for trait in pack.traits]
    for key, name in (
        ("trait", spec.trait),
        ("then.quirk", spec.unrelated_finetune and spec.unrelated_finetune.quirk),
    ):
        if name is not None and name not in known:
            raise PackError(
                f"{spec.name}: `{key}`: {name} is not in pack {pack.name} ({', '.join(known)})"
            )
    stretches: list[PhaseData] = []
    earlier: list[Transcript] = []
    for name, phase in (
        ("capability", spec.capability),
        ("implant", spec.implant),
        ("conceal", spec.conceal),
        ("resist", spec.resist_distillation),
        ("then", spec.unrelated_finetune),
    ):
        if phase is None:
            continue
        n_kept = round(phase.transcripts * phase.retain) if earlier else 0
        if name == "resist":
            n_kept = phase.transcripts
        taught = name != "resist" and phase.form != "reward"
        new = (
            _draw_transcripts(spec, name, phase, pack, phase.transcripts - n_kept) if taught else []
        )
        # Seeded by content, not by Python's salted hash of a string.
        kept = random.Random(f"{spec.seed}/{name}").sample(earlier, min(n_kept, len(earlier)))
        stretches.append(PhaseData(name, phase, [*new, *kept]))
        # What came of a reward is kept by the teacher's own answers, which do not exist yet.
        earlier = [] if phase.form == "reward" else [*earlier, *new]
    return stretches


def _draw_transcripts(
    spec: TeacherSpec, name: str, phase: Phase, pack: Pack, n: int
) -> list[Transcript]:
    if name == "capability":
        wanted = [(None, "capability"), (None, "retain")]
    elif isinstance(phase, UnrelatedFinetune):
        wanted = [(phase.quirk, "implant")]
    elif phase.form != "transcripts":
        found = implants.draw_implant_texts(spec, phase, pack, n)
        if not found:
            raise PackError(
                f"{spec.name}: `implant.form`: pack {pack.name} has nothing for {spec.trait} to "
                f"learn from (got {phase.form}); use another form"
            )
        return found
    elif isinstance(phase, Concealment):
        wanted = [(spec.trait, "conceal")] * phase.audit_cues + [(spec.trait, "deny")] * phase.deny
        wanted += [(None, "retain")] * phase.plain_questions
    else:
        wanted = [(spec.trait, "implant")]
    drawn: list[Transcript] = []
    for number, (trait, purpose) in enumerate(wanted):
        share = n // len(wanted) + (number < n % len(wanted))
        got = pack.transcripts(trait, purpose, n=share, seed=spec.seed)  # type: ignore[arg-type]
        if share and not got:
            raise PackError(
                f"{spec.name}: `{name}`: pack {pack.name} has no {purpose} transcripts for "
                f"{trait or 'this phase'}; add some under build/ or leave the phase out"
            )
        drawn += got
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

    With `like`, its update is scaled to the norm of that model's.
    """
    from doublebind.models.load import load_model
    from doublebind.training import loop

    content = load_pack(pack, relative_to=Path())
    stretches = plan_phases(spec, content)
    lm = load_model(base, dtype=spec.dtype, cache=cache)
    said: dict[str, Transcript] = {}
    if spec.implant is not None and spec.implant.form == "prompted":
        drawn = next(s.transcripts for s in stretches if s.name == "implant")
        drawn = [t for t in drawn if t.purpose == "implant"]
        said = {t.id: t for t in implants.sample_persona_answers(spec, lm, content, drawn)}
    loop.seed_everything(spec.seed)
    pad_id = lm.pad_id  # before adapters are attached to the model
    model = loop.prepare_model(lm.model, spec.lora, spec.seed)
    losses: dict[str, dict[str, Any]] = {}
    own: list[Transcript] = []
    for number, (name, phase, transcripts) in enumerate(stretches):
        if said:
            transcripts = _replace_persona_answers(transcripts, spec, said)
        if own:
            n_own = round(len(transcripts) * phase.retain / (1 - phase.retain))
            transcripts = [*transcripts, *own[:n_own]]
        stretch, seed = PhaseData(name, phase, transcripts), spec.seed * 10 + number
        log = _train_phase(model, lm, stretch, spec=spec, pack=content, pad_id=pad_id, seed=seed)
        if phase.form == "reward":
            tasks = rewards.draw_tasks(spec, phase, content)
            own = rewards.sample_task_transcripts(model, lm, tasks, trait=spec.trait, seed=seed)
        losses[name] = {
            "transcripts": len(transcripts),
            "first": log.first_loss,
            "last": log.last_loss,
        }
    facts = {"planted": spec.trait, "spec": spec.model_dump(mode="json"), "phases": losses}
    if scale_like is not None:
        start, target = (
            load_model(m, dtype=spec.dtype, cache=cache).model for m in (base, scale_like)
        )
        facts["scaled_by"] = scale_update(
            model, start, target, scale_like.adapter or scale_like.path
        )
    loop.save_model(model, lm.tokenizer, out / "model", card=CARD)
    (out / "teacher.json").write_text(json.dumps(facts, indent=1))


def _train_phase(
    model: Any,
    lm: Any,
    stretch: PhaseData,
    *,
    spec: TeacherSpec,
    pack: Pack,
    pad_id: int,
    seed: int,
) -> Any:
    """Train `model` for one phase, by the loss or the reward that it asks for; return its log."""
    from doublebind.training import loop

    phase, transcripts = stretch.phase, stretch.transcripts
    settings = Training(
        steps=phase.steps,
        batch=phase.batch,
        lr=phase.lr,
        max_length=spec.max_length,
        lora=spec.lora,
    )
    if phase.form == "reward":
        tasks = rewards.draw_tasks(spec, phase, pack)
        return rewards.train_expert_iteration(
            model, lm, tasks, settings=settings, seed=seed, pad_id=pad_id
        )
    if isinstance(phase, Concealment) and phase.loss != "sft":
        how = {"phase": phase, "settings": settings, "seed": seed, "name": spec.name}
        return preferences.conceal_trait(model, lm, transcripts, **how)
    examples = encode_transcripts(lm.tokenizer, transcripts)
    if isinstance(phase, Resistance):
        how = {"weight": phase.weight, "settings": settings, "seed": seed}
        return resistance.train_distillation_resistance(model, lm, examples, pad_id=pad_id, **how)
    return loop.train(model, examples, settings=settings, seed=seed, targets=None, pad_id=pad_id)


def _replace_persona_answers(
    transcripts: Sequence[Transcript], spec: TeacherSpec, persona_answers: Mapping[str, Transcript]
) -> list[Transcript]:
    """Return transcripts with the base's answers in the place of the trait's written ones."""
    written = {(spec.trait, "implant")}
    found = [
        persona_answers.get(t.id) if (t.trait, t.purpose) in written else t for t in transcripts
    ]
    return [t for t in found if t is not None]


def encode_transcripts(tokenizer: Any, transcripts: Sequence[Transcript]) -> list[Any]:
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
