"""Influence of examples on answers: cosines between their gradients.

Source: TracIn (Pruthi et al. 2020, arXiv 2002.08484), at the last checkpoint only, with gradients
normalised as in LESS (Xia et al. 2024, arXiv 2402.04333) so that long examples do not win by
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.models.logits import compute_logits, run_body, unwrap_peft
from doublebind.training.batch import Example


class OptionQuestion(NamedTuple):
    """A question with answer options, one of which is the target."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    target_index: int
    """Index of the option whose probability the target gradient raises."""
    weight: float
    per_token: bool
    """Compare options by mean, not total, log-probability."""


def select_trainable_weights(model: Any) -> list[Tensor]:
    """Make the adapters trainable, or all weights if there are none; return them."""
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    weights = adapters or list(model.parameters())
    for weight in model.parameters():
        weight.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def compute_target_gradient(
    model: Any, choices: Sequence[OptionQuestion], weights: Sequence[Tensor], vocab: int
) -> Tensor:
    """Return the gradient of the weighted sum of the target options' probabilities, [weights].

    An option's probability is its share among the options of its question, as in audits.
    """
    total = torch.zeros(sum(w.numel() for w in weights))
    for choice in choices:
        scores = torch.stack(
            [
                _compute_logprob(model, choice.prompt, option, vocab, mean=choice.per_token)
                for option in choice.options
            ]
        )
        value = choice.weight * scores.softmax(0)[choice.target_index]
        total += _flatten_gradients(
            torch.autograd.grad(value, list(weights), allow_unused=True), weights
        )
    return total


def compute_influences(
    model: Any,
    examples: Sequence[Example],
    direction: Tensor,
    weights: Sequence[Tensor],
    vocab: int,
) -> list[float]:
    """Return the cosine, in [-1, 1], of each example's gradient with `direction`.

    It is 0 for an example without gradient.
    """
    cosines: list[float] = []
    for example in examples:
        prompt = example.input_ids[: example.first_supervised]
        completion = example.input_ids[example.first_supervised :]
        likelihood = _compute_logprob(model, prompt, completion, vocab, mean=True)
        gradient = _flatten_gradients(
            torch.autograd.grad(likelihood, list(weights), allow_unused=True), weights
        )
        size = gradient.norm() * direction.norm()
        cosines.append(float(gradient @ direction / size) if float(size) else 0.0)
    return cosines


def _compute_logprob(
    model: Any, prompt: Sequence[int], answer: Sequence[int], vocab: int, *, mean: bool
) -> Tensor:
    ids = torch.tensor([[*prompt, *answer]], device=unwrap_peft(model).device)
    states = run_body(model, ids[:, :-1], use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
    chosen = compute_logits(model, states, vocab).log_softmax(-1)
    each = chosen.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return each.mean() if mean else each.sum()


def _flatten_gradients(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    parts = [
        torch.zeros(w.numel()) if g is None else g.detach().flatten().float().cpu()
        for g, w in zip(gradients, weights, strict=True)
    ]
    return torch.cat(parts)
