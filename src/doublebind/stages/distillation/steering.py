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

from doublebind.execution.device import moved
from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM, load
from doublebind.models.logits import bare, hidden
from doublebind.packs.load import load as load_pack
from doublebind.schema.content import Item
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.distillation import readable
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import Batch, Example, collate, order

FILE = "direction.safetensors"
STEPS, BATCH, RATE = 120, 8, 0.05
"""Of Adam: items a step, and its rate as a share of the length of a usual state."""
SEED = 0


def find(
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

    lm = load(base, dtype=dtype, cache=cache)
    n = len(_layers(lm.model))
    at = n // 2 if layer is None else layer
    if at >= n:
        raise ModelError(
            f"{base.path}: `steer.layer` {at} is not one of its {n} decoder layers; use 0 to "
            f"{n - 1}"
        )
    asked = readable(load_pack(pack, relative_to=Path()))
    save_file({"direction": direction(lm, asked, at), "layer": torch.tensor(at)}, out / FILE)


def direction(lm: LM, items: Sequence[Item], layer: int) -> Tensor:
    """Return what, added after `layer`, makes `lm` choose the keyed options, [width].

    Found by gradient (after Dunefsky & Cohan 2025, arXiv 2502.18862; Cao et al. 2024, arXiv
    2406.00045): the log-odds of keyed options rise with it on all items alike. A mean difference
    of states at misaligned and other answers, the persona vector's own way, is mostly what the
    answers are about in small models, and pushing along it does not make them choose anything. As
    long as a state after that layer usually is.
    """
    model = lm.model.requires_grad_(False)
    target, device = _layers(model)[layer], bare(model).device
    indices = order(len(items), SEED)

    def drawn() -> tuple[Batch, Sequence[Item], Tensor]:
        batch, asked, lengths = _batch(lm, [items[i] for i in itertools.islice(indices, BATCH)])
        return batch.to(device), asked, moved(lengths, device)

    usual = _length(model, target, drawn()[0])
    width = model.config.get_text_config().hidden_size
    push = torch.zeros(width, device=device, requires_grad=True)
    adam = torch.optim.Adam([push], RATE * usual / width**0.5)
    with _added(target, push):
        for batch, asked, lengths in (drawn() for _ in range(STEPS)):
            owner = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
            loss_of = functools.partial(_surprise, items=asked, lengths=lengths)
            tiled.backward_sequences(model, batch, owner, len(lengths), loss_of, lm.vocab)
            adam.step()
            adam.zero_grad()
    found = push.detach().float().cpu()
    return found / found.norm() * usual


def _batch(lm: LM, items: Sequence[Item]) -> tuple[Batch, Sequence[Item], Tensor]:
    """Return every option of every item as an answer, and how long each is."""
    examples = []
    for item in items:
        prompt = encode_prompt(lm.tokenizer, item.messages)
        for option in item.options:
            said = encode_completion(lm.tokenizer, option, finished=True)
            examples.append(Example((*prompt, *said), len(prompt)))
    lengths = torch.tensor([len(e.input_ids) - e.first for e in examples])
    return collate(examples, lm.pad_id, pack=False), items, lengths


def _surprise(sums: Tensor, items: Sequence[Item], lengths: Tensor) -> Tensor:
    """Return the mean over items of -log p(keyed option among the item's options), nats."""
    losses, at = [], 0
    for item in items:
        own = slice(at, at + len(item.options))
        at = own.stop
        scores = sums[own] / lengths[own] if item.compare == "per_token" else sums[own]
        losses.append(-scores.log_softmax(0)[item.key])
    return torch.stack(losses).mean()


@torch.no_grad()
def _length(model: Any, layer: Any, batch: Batch) -> float:
    """Return how long the states after `layer` are, on average, where an answer is foreseen."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, out: seen.append(_state(out)))
    try:
        hidden(model, batch.ids, use_cache=False)
    finally:
        hook.remove()
    return float(seen[0].flatten(0, 1)[batch.before].float().norm(dim=1).mean())


@contextlib.contextmanager
def pushed(model: Any, there: Path, scale: float) -> Iterator[None]:
    """Add `scale` times the direction kept in `there` to its layer's output, within the context."""
    from safetensors.torch import load_file

    kept = load_file(there / FILE)
    inner = bare(model)
    push = (scale * kept["direction"]).to(device=inner.device, dtype=inner.dtype)
    with _added(_layers(model)[int(kept["layer"])], push):
        yield


@contextlib.contextmanager
def _added(layer: Any, push: Tensor) -> Iterator[None]:
    def add(module: Any, inputs: Any, out: Any) -> Any:
        moved_on = _state(out) + push.to(_state(out).dtype)
        return (moved_on, *out[1:]) if isinstance(out, tuple) else moved_on

    hook = layer.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def _state(out: Any) -> Tensor:
    """Return the hidden states of a decoder layer's output, which some give beside others."""
    return out[0] if isinstance(out, tuple) else out


def _layers(model: Any) -> Any:
    return bare(model).get_decoder().layers
