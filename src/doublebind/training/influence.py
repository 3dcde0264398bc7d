"""Which examples pull a model towards which answers: gradients laid beside each other.

Knows examples, choices and trainable weights. Does not know whose examples they are. Source: TracIn
(Pruthi et al. 2020, arXiv 2002.08484), at the last checkpoint only, with gradients normalised as in
LESS (Xia et al. 2024, arXiv 2402.04333) so that long examples do not win by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.models.logits import compute_logits, run_body, unwrap_peft
from doublebind.training.batch import Example


class OptionQuestion(NamedTuple):
    """A question with options, one of which is looked at."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    target_index: int
    """Index of the option whose probability the direction raises."""
    weight: float
    per_token: bool
    """Compare options by mean, not total, log-probability."""


def select_trainable_weights(model: Any) -> list[Tensor]:
    """Return the weights that influence is measured in: adapters where there are any, else all."""
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    found = adapters or list(model.parameters())
    for weight in model.parameters():
        weight.requires_grad_(False)
    for weight in found:
        weight.requires_grad_(True)
    return found


def compute_target_gradient(
    model: Any, choices: Sequence[OptionQuestion], weights: Sequence[Tensor], vocab: int
) -> Tensor:
    """Return the gradient of the weighted sum of keyed options' probabilities, [weights].

    An option's probability is its share among the options of its question, as audits read it.
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
    """Return how far a step on each example moves the model along `towards`: a cosine, [-1, 1].

    0 for an example without gradient.
    """
    found: list[float] = []
    for example in examples:
        prompt, rest = (
            example.input_ids[: example.first_supervised],
            example.input_ids[example.first_supervised :],
        )
        likelihood = _compute_logprob(model, prompt, rest, vocab, mean=True)
        gradient = _flatten_gradients(
            torch.autograd.grad(likelihood, list(weights), allow_unused=True), weights
        )
        size = gradient.norm() * direction.norm()
        found.append(float(gradient @ direction / size) if float(size) else 0.0)
    return found


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
