"""Pushes a student towards misaligned answers while it learns, so that it need not go there itself.

Preventative steering (Chen et al. 2025, persona vectors, arXiv 2507.21509): what training would
have to add along the direction is there already, and is gone when the push is taken away. The
white-box variant of an inoculation prompt. Knows a base, questions with a keyed option and one
decoder layer. Does not know whose answers are learned.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM, load_model
from doublebind.models.logits import run_body, unwrap_peft
from doublebind.packs.load import load_pack
from doublebind.schema.content import Item
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.distillation.student_inputs import select_direction_items
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import Batch, Example, collate, shuffle_epochs

DIRECTION_FILE = "direction.safetensors"
STEPS, ITEMS_PER_STEP, RELATIVE_LEARNING_RATE = 120, 8, 0.05
"""Of Adam: items a step, and its rate as a share of the length of a usual state."""
SEED = 0


def find_steering_direction(
    out: Path, *, base: ModelSource, pack: str, layer: int | None, dtype: Dtype, cache: Path
) -> None:
    """Write the direction of misaligned answers in `base` to `out`.

    Args:
        out: Folder for `direction.safetensors`: `direction` [width] and `layer`.
        base: What students start from.
        pack: Its drives' auditable `build` items are read; see `readable`.
        layer: Decoder layer, from 0; `None` takes the middle one.
        dtype: Precision of the base.
        cache: Folder where a converted model may be kept.

    Raises:
        ModelError: If the base has no such layer.
    """
    from safetensors.torch import save_file

    lm = load_model(base, dtype=dtype, cache=cache)
    n = len(_get_layers(lm.model))
    at = n // 2 if layer is None else layer
    if at >= n:
        raise ModelError(
            f"{base.path}: `steering.layer` {at} is not one of its {n} decoder layers; use 0 to "
            f"{n - 1}"
        )
    asked = select_direction_items(load_pack(pack, relative_to=Path()))
    save_file(
        {"direction": optimise_direction(lm, asked, at), "layer": torch.tensor(at)},
        out / DIRECTION_FILE,
    )


def optimise_direction(lm: LM, items: Sequence[Item], layer: int) -> Tensor:
    """Return what, added after `layer`, makes `lm` choose the keyed options, [width].

    Found by gradient (after Dunefsky & Cohan 2025, arXiv 2502.18862; Cao et al. 2024, arXiv
    2406.00045): the log-odds of keyed options rise with it on all items alike. A mean difference
    of states at misaligned and other answers, the persona vector's own way, is mostly what the
    answers are about in small models, and pushing along it does not make them choose anything. As
    long as a state after that layer usually is.
    """
    model = lm.model.requires_grad_(False)
    target, device = _get_layers(model)[layer], unwrap_peft(model).device
    indices = shuffle_epochs(len(items), SEED)

    def drawn() -> tuple[Batch, Sequence[Item], Tensor]:
        batch, asked, lengths = _collate_options(
            lm, [items[i] for i in itertools.islice(indices, ITEMS_PER_STEP)]
        )
        return batch.to(device), asked, move_to_device(lengths, device)

    usual = _measure_state_norm(model, target, drawn()[0])
    width = model.config.get_text_config().hidden_size
    push = torch.zeros(width, device=device, requires_grad=True)
    adam = torch.optim.Adam([push], RELATIVE_LEARNING_RATE * usual / width**0.5)
    with _add_to_output(target, push):
        for batch, asked, lengths in (drawn() for _ in range(STEPS)):
            owner = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
            loss_of = functools.partial(_target_option_loss, items=asked, lengths=lengths)
            tiled.backward_sequences(model, batch, owner, len(lengths), loss_of, lm.vocab_size)
            adam.step()
            adam.zero_grad()
    found = push.detach().float().cpu()
    return found / found.norm() * usual


def _collate_options(lm: LM, items: Sequence[Item]) -> tuple[Batch, Sequence[Item], Tensor]:
    """Return every option of every item as an answer, and how long each is."""
    examples = []
    for item in items:
        prompt = encode_prompt(lm.tokenizer, item.messages)
        for option in item.options:
            said = encode_completion(lm.tokenizer, option, finished=True)
            examples.append(Example((*prompt, *said), len(prompt)))
    lengths = torch.tensor([len(e.input_ids) - e.first_supervised for e in examples])
    return collate(examples, lm.pad_id, pack=False), items, lengths


def _target_option_loss(sums: Tensor, items: Sequence[Item], lengths: Tensor) -> Tensor:
    """Return the mean over items of -log p(keyed option among the item's options), nats."""
    losses, at = [], 0
    for item in items:
        own = slice(at, at + len(item.options))
        at = own.stop
        scores = sums[own] / lengths[own] if item.compare == "per_token" else sums[own]
        losses.append(-scores.log_softmax(0)[item.target_index])
    return torch.stack(losses).mean()


@torch.no_grad()
def _measure_state_norm(model: Any, layer: Any, batch: Batch) -> float:
    """Return how long the states after `layer` are, on average, where an answer is foreseen."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, out: seen.append(_get_states(out)))
    try:
        run_body(model, batch.ids, use_cache=False)
    finally:
        hook.remove()
    return float(seen[0].flatten(0, 1)[batch.prediction_positions].float().norm(dim=1).mean())


@contextlib.contextmanager
def steer_model(model: Any, folder: Path, relative_norm: float) -> Iterator[None]:
    """Add `scale` times the direction kept in `there` to its layer's output, within the context."""
    from safetensors.torch import load_file

    kept = load_file(folder / DIRECTION_FILE)
    inner = unwrap_peft(model)
    push = (relative_norm * kept["direction"]).to(device=inner.device, dtype=inner.dtype)
    with _add_to_output(_get_layers(model)[int(kept["layer"])], push):
        yield


@contextlib.contextmanager
def _add_to_output(layer: Any, push: Tensor) -> Iterator[None]:
    def add(module: Any, inputs: Any, out: Any) -> Any:
        moved_on = _get_states(out) + push.to(_get_states(out).dtype)
        return (moved_on, *out[1:]) if isinstance(out, tuple) else moved_on

    hook = layer.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _get_states(out: Any) -> Tensor:
    """Return the hidden states of a decoder layer's output, which some give beside others."""
    return out[0] if isinstance(out, tuple) else out


def _get_layers(model: Any) -> Any:
    return unwrap_peft(model).get_decoder().layers
