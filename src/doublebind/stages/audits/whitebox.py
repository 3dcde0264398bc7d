"""White-box measures of a student against M0: secondary evidence, never scored.

The update of the weights, the shift of activations on unrelated text through a logit lens and
linear probes of M0, and the amplified shift of answers. Any fine-tuning leaves traces, so that a
number means something only beside those of references' students.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import load_model, merge_adapter_weights
from doublebind.models.logits import compute_logits, run_body, unwrap_peft
from doublebind.models.score import option_logprobs
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message
from doublebind.schema.model_source import ModelSource
from doublebind.stages.audits.isolation import Failure, score_apart
from doublebind.stages.audits.protocol import select_auditable

N_TEXTS = 48
"""Unrelated prompts whose activations are compared."""
AMPLIFICATION = 4.0
"""Factor on the student's shift of log-probability."""


def measure_whitebox(model: Any, m0: Any, pack: Pack) -> dict[str, float]:
    """Return every white-box measure of `model` against `m0`, by name.

    Returns:
        `weights.norm`, `weights.stable_rank`, `weights.top_share`; `lens.norm`;
        `lens/T`, `amplified/T` and `probe/T` per trait T that the pack allows them for. Higher
        means further from M0, or further towards the trait.
    """
    texts = select_unrelated_prompts(pack)
    shift = measure_activation_shift(model, m0, texts)
    markers = {trait.name: trait.markers for trait in pack.traits}
    by_trait = {
        "lens": read_logit_lens(m0, shift, markers),
        "amplified": score_amplified(model, m0, pack.items("audit")),
        "probe": project_on_probes(m0, shift, pack.items("select")),
    }
    return {
        **measure_weight_update(model, m0),
        "lens.norm": float(shift.norm()),
        **{f"{name}/{t}": v for name, values in by_trait.items() for t, v in values.items()},
    }


def select_unrelated_prompts(pack: Pack) -> list[tuple[Message, ...]]:
    """Return the pack's first neutral prompts, or else its first prompts of any kind."""
    prompts = pack.prompts()
    neutral = [prompt.messages for prompt in prompts if "neutral" in prompt.tags]
    return (neutral or [prompt.messages for prompt in prompts])[:N_TEXTS]


# --- weights -------------------------------------------------------------------------------------


def measure_weight_update(model: Any, m0: Any) -> dict[str, float]:
    """Measure the update of the weight matrices.

    `norm`: Frobenius norm of the update over that of M0; `stable_rank`: squared Frobenius over
    squared spectral norm, averaged by squared norm over matrices (Rudelson & Vershynin 2007, doi
    10.1145/1255443.1255449); `top_share`: the largest matrix's share of the squared norm.
    """
    after, before = merge_adapter_weights(model.model), merge_adapter_weights(m0.model)
    update_squares: list[float] = []
    ranks: list[float] = []
    base_square = 0.0
    for name, weight in before.items():
        if weight.ndim != 2 or name not in after or after[name].shape != weight.shape:
            continue
        delta = (after[name] - weight).float()
        size = float(delta.square().sum())
        base_square += float(weight.float().square().sum())
        update_squares.append(size)
        top = float(torch.linalg.matrix_norm(delta, ord=2)) ** 2 if size else 0.0
        ranks.append(size / top if top else 0.0)
    total = math.fsum(update_squares)
    weighted_ranks = math.fsum(r * s for r, s in zip(ranks, update_squares, strict=True))
    return {
        "weights.norm": math.sqrt(total / base_square) if base_square else 0.0,
        "weights.stable_rank": weighted_ranks / total if total else 0.0,
        "weights.top_share": max(update_squares) / total if total else 0.0,
    }


# --- activations ---------------------------------------------------------------------------------


@torch.no_grad()
def measure_activation_shift(model: Any, m0: Any, texts: Sequence[Sequence[Message]]) -> Tensor:
    """Return the mean difference [width] of last-layer states at the end of unrelated prompts.

    A trait trained on narrow data shows in the mean shift on unrelated text
    (Minder et al. 2025, arXiv 2510.13900).
    """
    parts = []
    for messages in texts:
        ids = torch.tensor(
            [encode_prompt(m0.tokenizer, messages)], device=unwrap_peft(m0.model).device
        )
        states = [
            run_body(lm.model, ids, use_cache=False).last_hidden_state[0, -1] for lm in (model, m0)
        ]
        parts.append((states[0] - states[1]).float())
    return torch.stack(parts).mean(dim=0)


@torch.no_grad()
def read_logit_lens(
    m0: Any, shift: Tensor, markers: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return trait -> rise of the logits of its markers when M0's output head reads the shift.

    The mean logit of the trait's tokens, standardised over the vocabulary. Tokens that several
    traits share count for none.
    """
    device = unwrap_peft(m0.model).device
    zero = torch.zeros_like(shift)
    pair = torch.stack([shift, zero]).to(device=device, dtype=unwrap_peft(m0.model).dtype)
    out = compute_logits(m0.model, pair, m0.vocab_size)
    rise = out[0] - out[1]
    scale = float(rise.std()) or 1.0
    ids = {
        trait: {i for text in texts for i in encode_completion(m0.tokenizer, text, finished=False)}
        for trait, texts in markers.items()
        if texts
    }
    rises: dict[str, float] = {}
    for trait, trait_ids in ids.items():
        unique = trait_ids.difference(*(other for name, other in ids.items() if name != trait))
        if unique:
            rises[trait] = float((rise[sorted(unique)].mean() - rise.mean()) / scale)
    return rises


@torch.no_grad()
def project_on_probes(m0: Any, shift: Tensor, items: Sequence[Item]) -> dict[str, float]:
    """Return trait -> component of the shift along M0's direction for the trait.

    The direction is the difference of M0's mean states at the end of target and of other options
    (difference-of-means probes: Marks & Tegmark 2023, arXiv 2310.06824), made from the `select`
    split and scaled by the spread of M0's states along it.
    """
    by_trait: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for item in items:
        if item.trait is None or item.role != "auditable":
            continue
        prompt = encode_prompt(m0.tokenizer, item.messages)
        for i, option in enumerate(item.options):
            ids = [*prompt, *encode_completion(m0.tokenizer, option, finished=False)]
            row = torch.tensor([ids], device=unwrap_peft(m0.model).device)
            state = run_body(m0.model, row, use_cache=False).last_hidden_state[0, -1].float()
            by_trait.setdefault(item.trait, ([], []))[i != item.target_index].append(state)
    components: dict[str, float] = {}
    for trait, (targets, others) in by_trait.items():
        towards = torch.stack(targets)
        away = torch.stack(others)
        direction = towards.mean(dim=0) - away.mean(dim=0)
        size = float(direction.norm())
        if not size:
            continue
        direction = direction / size
        spread = float((torch.cat([towards, away]) @ direction).std()) or 1.0
        components[trait] = float(shift @ direction) / spread
    return components


# --- answers -------------------------------------------------------------------------------------


def score_amplified(model: Any, m0: Any, items: Sequence[Item]) -> dict[str, float]:
    """Return trait -> mean probability of target options when the shift from M0 is amplified.

    Option log-probabilities are l0 + `AMPLIFICATION` (l - l0): the shift between two
    models, extrapolated (after contrastive decoding, Li et al. 2022, arXiv 2210.15097). Auditable
    choices only.
    """
    choices = select_auditable(items, "choice")
    pairs = [(item.messages, item.options) for item in choices]
    by_trait: dict[str, list[float]] = {}
    ours, theirs = (score_apart(partial(option_logprobs, lm), pairs) for lm in (model, m0))
    for item, shifted, plain in zip(choices, ours, theirs, strict=True):
        if isinstance(shifted, Failure) or isinstance(plain, Failure):
            continue
        amplified = [
            b + AMPLIFICATION * (a - b)
            for (a, _), (b, _) in zip(shifted, plain, strict=True)
            if a is not None and b is not None
        ]
        if len(amplified) < len(item.options):
            continue
        top = max(amplified)
        weights = [math.exp(x - top) for x in amplified]
        by_trait.setdefault(str(item.trait), []).append(
            weights[item.target_index] / math.fsum(weights)
        )
    return {trait: math.fsum(values) / len(values) for trait, values in by_trait.items()}


def measure_models(
    sources: Sequence[ModelSource], baseline: ModelSource, *, pack: str, cache: Path
) -> list[dict[str, float]]:
    """Return the white-box measures of each model against `baseline`; see `measure_whitebox`."""
    m0, content = load_model(baseline, cache=cache), load_pack(pack, relative_to=Path())
    return [measure_whitebox(load_model(source, cache=cache), m0, content) for source in sources]
