"""Optimises the hidden-state direction that makes a model choose misaligned options."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.layer_states import add_to_output, get_layers, get_states
from doublebind.models.load import LM
from doublebind.models.logits import run_body, unwrap_peft
from doublebind.schema.content import Item
from doublebind.training import tiled_backward
from doublebind.training.batch import Batch, Example, collate, shuffle_epochs

STEPS = 120
"""Steps of Adam."""
ITEMS_PER_STEP = 8
RELATIVE_LEARNING_RATE = 0.05
"""Learning rate as a share of the norm of a typical hidden state."""
SEED = 0


class OptionBatch(NamedTuple):
    """Every option of some items as an answer."""

    batch: Batch
    items: Sequence[Item]
    lengths: Tensor
    """[options]: tokens of each option."""

    def compute_loss(self, sums: Tensor) -> Tensor:
        """Return the mean over items of -log p(target option among the item's options), nats."""
        losses = []
        start = 0
        for item in self.items:
            options = slice(start, start + len(item.options))
            start = options.stop
            scores = sums[options]
            if item.compare == "per_token":
                scores = scores / self.lengths[options]
            losses.append(-scores.log_softmax(0)[item.target_index])
        return torch.stack(losses).mean()


def optimise_direction(lm: LM, items: Sequence[Item], layer: int) -> Tensor:
    """Return the vector that, added after `layer`, makes `lm` choose the target options, [width].

    Optimised by gradient (after Dunefsky & Cohan 2025, arXiv 2502.18862; Cao et al. 2024, arXiv
    2406.00045), so that it raises the log-odds of target options on all items. The persona vector's
    own method, a mean difference of states at misaligned and other answers, mostly encodes the
    topics of the answers in small models, and steering along it does not change their choices. The
    norm is that of a typical state after the layer.
    """
    model = lm.model.requires_grad_(False)
    block = get_layers(model)[layer]
    indices = shuffle_epochs(len(items), SEED)

    def next_batch() -> OptionBatch:
        return _collate_options(lm, [items[i] for i in itertools.islice(indices, ITEMS_PER_STEP)])

    state_norm = _measure_state_norm(model, block, next_batch().batch)
    width = model.config.get_text_config().hidden_size
    vector = torch.zeros(width, device=unwrap_peft(model).device, requires_grad=True)
    adam = torch.optim.Adam([vector], RELATIVE_LEARNING_RATE * state_norm / width**0.5)
    with add_to_output(block, vector):
        for _ in range(STEPS):
            options = next_batch()
            n = len(options.lengths)
            owner = torch.arange(n, device=vector.device).repeat_interleave(options.lengths)
            tiled_backward.backward_sequences(
                model, options.batch, owner, n, options.compute_loss, lm.vocab_size
            )
            adam.step()
            adam.zero_grad()
    direction = vector.detach().float().cpu()
    return direction / direction.norm() * state_norm


def _collate_options(lm: LM, items: Sequence[Item]) -> OptionBatch:
    examples = []
    for item in items:
        prompt = encode_prompt(lm.tokenizer, item.messages)
        for option in item.options:
            answer = encode_completion(lm.tokenizer, option, finished=True)
            examples.append(Example((*prompt, *answer), len(prompt)))
    lengths = torch.tensor([len(e.input_ids) - e.first_supervised for e in examples])
    device = unwrap_peft(lm.model).device
    batch = collate(examples, lm.pad_id, pack=False).to(device)
    return OptionBatch(batch, items, move_to_device(lengths, device))


@torch.no_grad()
def _measure_state_norm(model: Any, layer: Any, batch: Batch) -> float:
    """Return the mean norm of the states after `layer` at positions that predict an answer."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, out: outputs.append(get_states(out)))
    try:
        run_body(model, batch.ids, use_cache=False)
    finally:
        hook.remove()
    states = outputs[0].flatten(0, 1)[batch.prediction_positions]
    return float(states.float().norm(dim=1).mean())
