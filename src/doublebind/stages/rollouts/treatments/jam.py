"""Rewrites answers so that signals carried by the choice of words or symbols break.

Source: subliminal signals live in a model's own choices among likely tokens (Cloud et al. 2025,
arXiv 2507.14805) and are weakened by another model's rewriting; the double-bind post (Redwood
Research, June 2026), "jam subliminal signals". Could be exposed by behaviour items (what an answer
says openly survives) and by capability items (what rewriting damages).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from doublebind.models.chat_template import decode_completion
from doublebind.models.load import LM
from doublebind.models.sample import sample
from doublebind.schema.content import Message
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import Jam
from doublebind.stages.rollouts.treatments import (
    TreatmentContext,
    TreatmentResult,
    encode_answers,
    format_answer_id,
    rewrite_answer,
)

PARAPHRASE_PROMPT = "Rewrite the following text in your own words, keeping its meaning:\n\n{text}"
"""What the trusted model is asked; the text stands alone, without its prompt."""


def apply(
    settings: Jam, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Return the answers rewritten as `settings.how` says.

    `normalise` maps Unicode to its compatibility form (NFKC), drops what is not shown, and
    collapses white space. `resample` draws a share of each answer's tokens anew from the trusted
    model, given the teacher's words before them. `paraphrase` asks the trusted model to say it in
    other words; for models that follow instructions. An answer of which nothing is left, or whose
    cleaned-up text spells control tokens, is dropped.
    """
    match settings.how:
        case "normalise":
            return _normalise_answers(trajectories, context)
        case "resample":
            tokens = _resample_tokens(settings.share, trajectories, context)
            texts = [decode_completion(context.load_trusted().tokenizer, ids) for ids in tokens]
        case "paraphrase":
            asks = [PARAPHRASE_PROMPT.format(text=t.completion) for t in trajectories]
            said = sample(
                context.load_trusted(),
                [(Message(role="user", content=ask),) for ask in asks],
                keys=[f"jam/{format_answer_id(t)}" for t in trajectories],
                seed=context.seed,
                max_tokens=context.max_tokens,
                temperature=context.temperature,
            )
            texts, tokens = [s.text for s in said], [s.tokens for s in said]
    jammed = [
        t.model_copy(update={"completion": text, "tokens": tuple(ids)})
        for t, text, ids in zip(trajectories, texts, tokens, strict=True)
        if ids
    ]
    changed = sum(text != t.completion for t, text in zip(trajectories, texts, strict=True))
    return TreatmentResult(jammed, {"changed": changed, "dropped": len(trajectories) - len(jammed)})


def _normalise_answers(
    trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    tokenizer = context.load_teacher().tokenizer
    kept: list[Trajectory] = []
    changed = 0
    for t in trajectories:
        text = normalise_text(t.completion)
        if text == t.completion:
            kept.append(t)
            continue
        changed += 1
        cleaned = rewrite_answer(t, text, tokenizer) if text else None
        if cleaned is not None:
            kept.append(cleaned)
    return TreatmentResult(kept, {"changed": changed, "dropped": len(trajectories) - len(kept)})


def normalise_text(text: str) -> str:
    """Return `text` in compatibility form, without invisible characters or doubled spaces."""
    shown = unicodedata.normalize("NFKC", text)
    shown = "".join(c for c in shown if c in "\n\t" or unicodedata.category(c)[0] != "C")
    lines = (" ".join(line.split()) for line in shown.splitlines())
    return "\n".join(lines).strip()


def _resample_tokens(
    share: float, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> list[list[int]]:
    """Return each answer's tokens with a share of them drawn from the trusted model.

    Which tokens, and the uniform number that each is drawn by, come from (seed, answer) alone.
    The end of an answer stays where it is.
    """
    lm = context.load_trusted()
    found: list[list[int]] = []
    for t, (prompt, ids) in zip(trajectories, encode_answers(trajectories, lm), strict=True):
        rng = np.random.default_rng([context.seed, *format_answer_id(t).encode()])
        pick, uniform = rng.random(len(ids)) < share, rng.random(len(ids))
        if t.finished:
            pick[-1] = False
        found.append(_draw_tokens(lm, prompt, list(ids), pick, uniform))
    return found


def _draw_tokens(lm: LM, prompt: list[int], ids: list[int], pick: Any, uniform: Any) -> list[int]:
    """Draw the picked tokens by inverting the trusted model's cumulative distribution."""
    import torch

    from doublebind.models.logits import compute_logits, run_body, unwrap_peft

    if not pick.any():
        return ids
    with torch.inference_mode():
        row = torch.tensor([[*prompt, *ids]], device=unwrap_peft(lm.model).device)
        states = run_body(lm.model, row, use_cache=False).last_hidden_state[0]
        places = torch.from_numpy(np.flatnonzero(pick)).to(row.device)
        scores = compute_logits(lm.model, states[len(prompt) - 1 + places], len(lm.tokenizer))
        for end in lm.end_ids:  # an answer does not end before its teacher ended it
            scores[:, end] = -torch.inf
        cumulative = scores.softmax(-1).double().cumsum(-1)
        draws = torch.from_numpy(uniform[pick]).to(row.device)[:, None] * cumulative[:, -1:]
        new = torch.searchsorted(cumulative, draws).clamp(max=scores.shape[-1] - 1)[:, 0]
    for place, token in zip(np.flatnonzero(pick).tolist(), new.tolist(), strict=True):
        ids[place] = token
    return ids
