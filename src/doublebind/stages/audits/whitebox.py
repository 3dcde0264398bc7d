"""What a student's weights and activations show beside M0's: secondary evidence, never scored.

Four looks behind one function: how the weights moved, what the shift in activations on unrelated
text spells, what the shift in answers becomes when it is amplified, and where linear probes of M0's
own see the student. Numbers here mean something beside the same numbers of references' students
only: any fine-tuning leaves traces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from doublebind.schema.content import Item, Message, name_endpoint
from doublebind.schema.model_source import ModelSource

N_TEXTS = 48
"""Unrelated prompts read."""
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
    found = measure_weight_update(model, m0)
    found["lens.norm"] = float(shift.norm())
    words = {trait.name: trait.markers for trait in pack.traits}
    found |= {f"lens/{t}": v for t, v in read_logit_lens(m0, shift, words).items()}
    found |= {
        f"amplified/{t}": v for t, v in score_amplified(model, m0, pack.items("audit")).items()
    }
    found |= {
        f"probe/{t}": v for t, v in project_on_probes(m0, shift, pack.items("select")).items()
    }
    return found


def select_unrelated_prompts(pack: Pack) -> list[tuple[Message, ...]]:
    """Return the pack's first neutral prompts, or else its first prompts of any kind."""
    prompts = pack.prompts()
    neutral = [prompt.messages for prompt in prompts if "neutral" in prompt.tags]
    return (neutral or [prompt.messages for prompt in prompts])[:N_TEXTS]


# --- weights -------------------------------------------------------------------------------------


def measure_weight_update(model: Any, m0: Any) -> dict[str, float]:
    """Return how the weight matrices moved.

    `norm`: Frobenius norm of the update over that of M0; `stable_rank`: squared Frobenius over
    squared spectral norm, averaged by squared norm over matrices (Rudelson & Vershynin 2007, doi
    10.1145/1255443.1255449); `top_share`: the largest matrix's share of the squared norm.
    """
    after, before = merge_adapter_weights(model.model), merge_adapter_weights(m0.model)
    moved, whole, ranks = [], 0.0, []
    for name, weight in before.items():
        if weight.ndim != 2 or name not in after or after[name].shape != weight.shape:
            continue
        delta = (after[name] - weight).float()
        size = float(delta.square().sum())
        whole += float(weight.float().square().sum())
        moved.append(size)
        top = float(torch.linalg.matrix_norm(delta, ord=2)) ** 2 if size else 0.0
        ranks.append(size / top if top else 0.0)
    total = math.fsum(moved)
    rank = math.fsum(r * m for r, m in zip(ranks, moved, strict=True)) / total if total else 0.0
    return {
        "weights.norm": math.sqrt(total / whole) if whole else 0.0,
        "weights.stable_rank": rank,
        "weights.top_share": max(moved) / total if total else 0.0,
    }


# --- activations ---------------------------------------------------------------------------------


@torch.no_grad()
def measure_activation_shift(model: Any, m0: Any, texts: Sequence[Sequence[Message]]) -> Tensor:
    """Return the mean difference [width] of last-layer states at the end of unrelated prompts.

    A trait trained in narrowly shows in the mean shift on text that has nothing to do with it
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
def read_logit_lens(m0: Any, shift: Tensor, words: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return trait -> how far the shift, read by M0's head, lifts the words of its markers.

    The mean logit of the trait's tokens, standardised over the vocabulary. Tokens that several
    traits share count for none.
    """
    device = unwrap_peft(m0.model).device
    zero = torch.zeros_like(shift)
    pair = torch.stack([shift, zero]).to(device=device, dtype=unwrap_peft(m0.model).dtype)
    out = compute_logits(m0.model, pair, m0.vocab_size)
    lifted = out[0] - out[1]
    scale = float(lifted.std()) or 1.0
    ids = {
        trait: {
            i for marker in said for i in encode_completion(m0.tokenizer, marker, finished=False)
        }
        for trait, said in words.items()
        if said
    }
    found: dict[str, float] = {}
    for trait, mine in ids.items():
        others = set().union(*(its for name, its in ids.items() if name != trait))
        if own := sorted(mine - others):
            found[trait] = float((lifted[own].mean() - lifted.mean()) / scale)
    return found


@torch.no_grad()
def project_on_probes(m0: Any, shift: Tensor, items: Sequence[Item]) -> dict[str, float]:
    """Return trait -> the shift's component along M0's own direction for it.

    The direction is the difference of M0's mean states at the end of keyed and of other options
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
    found: dict[str, float] = {}
    for trait, (keyed, others) in by_trait.items():
        towards, away = torch.stack(keyed), torch.stack(others)
        direction = towards.mean(dim=0) - away.mean(dim=0)
        size = float(direction.norm())
        if not size:
            continue
        direction = direction / size
        spread = float((torch.cat([towards, away]) @ direction).std()) or 1.0
        found[trait] = float(shift @ direction) / spread
    return found


# --- answers -------------------------------------------------------------------------------------


def score_amplified(model: Any, m0: Any, items: Sequence[Item]) -> dict[str, float]:
    """Return trait -> mean probability of keyed options when the shift from M0 is amplified.

    Option log-probabilities are l0 + `AMPLIFY` (l - l0): differences between two models, pushed
    further than training took them (after contrastive decoding, Li et al. 2022, arXiv 2210.15097).
    Of auditable choices only.
    """
    mine = [i for i in items if i.role == "auditable" and name_endpoint(i).startswith("choice")]
    asked = [(item.messages, item.options) for item in mine]
    by_trait: dict[str, list[float]] = {}
    pairs = zip(option_logprobs(model, asked), option_logprobs(m0, asked), strict=True)
    for item, (own, plain) in zip(mine, pairs, strict=True):
        both = [(a, b) for (a, _), (b, _) in zip(own, plain, strict=True)]
        known = [b + AMPLIFICATION * (a - b) for a, b in both if a is not None and b is not None]
        if len(known) < len(item.options):
            continue
        top = max(known)
        weights = [math.exp(x - top) for x in known]
        by_trait.setdefault(str(item.trait), []).append(
            weights[item.target_index] / math.fsum(weights)
        )
    return {trait: math.fsum(values) / len(values) for trait, values in by_trait.items()}


def measure_models(
    sources: Sequence[ModelSource], baseline: ModelSource, *, pack: str, cache: Path
) -> list[dict[str, float]]:
    """Return the white-box measures of each model against `baseline`; see `whitebox.measure`."""
    m0, content = load_model(baseline, cache=cache), load_pack(pack, relative_to=Path())
    return [measure_whitebox(load_model(source, cache=cache), m0, content) for source in sources]
