"""Foretells from forward passes alone how far a teacher's answers would move M0."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.models.chat_template import encode_prompt
from doublebind.models.layer_states import add_to_output, get_layers, get_states
from doublebind.models.logits import run_body, unwrap_peft
from doublebind.models.score import option_logprobs
from doublebind.schema.content import Item, Message, name_endpoint
from doublebind.schema.model_source import Trajectory
from doublebind.stages.audits.in_context_baseline import sample_turns
from doublebind.stages.audits.isolation import Failure, score_apart

N_READ = (1, 4, 16)
"""Answers in context."""
N_DRAWS = 4
"""Random sets of answers in context; shifts are means over them."""
STEERING_SCALES = (1.0, 4.0)
"""Factors on the teacher's mean shift of hidden states; beyond 1 it is extrapolated."""
SEED = 0


class Shift(NamedTuple):
    """How far one condition moved M0 on one endpoint."""

    condition: str
    """`teacher`, the teacher itself; `steered.F`, M0 with F times the teacher's mean shift of
    states, and `random.F`, with a random vector of that norm; `read.N`, M0 after N of the teacher's
    answers, and `read_own.N`, after N of its own to the same prompts."""
    endpoint: str
    shift: float
    """Mean over items of the target option's log-odds among the options, less M0's, nats."""
    standard_error: float | None
    """Of the mean, over items; absent below two items."""
    n: int
    """Scored items."""


class Forecast(NamedTuple):
    """The shifts under every condition, and the conditions that could not be made."""

    shifts: list[Shift]
    missing: dict[str, str]
    """Condition -> why it has no numbers."""


def forecast_transfer(
    teacher: Any,
    m0: Any,
    items: Sequence[Item],
    answers: Sequence[Trajectory],
    own_answers: Sequence[Trajectory],
) -> Forecast:
    """Return how far the teacher, its mean shift of states and its answers move M0.

    After the forward-only test of subliminal transfer (PolyPythia-SL): the mean difference between
    the teacher's and M0's states at the teacher's answers is added to M0. Both tests need a
    control, since any vector and any conversation move a model.

    Args:
        teacher: The `LM` that would be distilled.
        m0: The `LM` that students would start from.
        items: Auditable items.
        answers: The teacher's answers to ordinary prompts.
        own_answers: M0's answers to the same prompts.
    """
    plain = _score_log_odds(m0, items)
    shifts = _compare("teacher", items, plain, [_score_log_odds(teacher, items)])
    layer = len(get_layers(m0.model)) // 2
    shift = measure_answer_shift(teacher, m0, answers, layer)
    noise = torch.randn(shift.shape, generator=torch.Generator().manual_seed(SEED))
    noise = noise / noise.norm() * shift.norm()
    for name, vector in (("steered", shift), ("random", noise)):
        for scale in STEERING_SCALES:
            with _steer(m0, layer, scale * vector):
                steered = _score_log_odds(m0, items)
            shifts += _compare(f"{name}.{scale:g}", items, plain, [steered])
    missing: dict[str, str] = {}
    for name, read in (("read", answers), ("read_own", own_answers)):
        for n in N_READ:
            draws = [sample_turns(m0, read, draw, n) for draw in range(N_DRAWS)]
            if any(sum(m.role == "assistant" for m in turns) < n for turns in draws):
                missing[f"{name}.{n}"] = f"{n} answers do not fit in the context, or were not kept"
                continue
            scored = [_score_log_odds(m0, items, turns) for turns in draws]
            shifts += _compare(f"{name}.{n}", items, plain, scored)
    return Forecast(shifts, missing)


@torch.no_grad()
def measure_answer_shift(
    teacher: Any, m0: Any, answers: Sequence[Trajectory], layer: int
) -> Tensor:
    """Return the mean difference [width] of states after `layer`, over all tokens of the answers.

    Both models read the same text: the prompt in M0's tokens and the answer's tokens as sampled.
    """
    total, n = torch.zeros(()), 0
    for answer in answers:
        prompt = encode_prompt(m0.tokenizer, answer.messages)
        ids = torch.tensor([[*prompt, *answer.tokens]])
        states = [_read_states(lm, ids, layer)[len(prompt) :] for lm in (teacher, m0)]
        total = total + (states[0] - states[1]).sum(dim=0)
        n += len(answer.tokens)
    return total / n


def _read_states(lm: Any, ids: Tensor, layer: int) -> Tensor:
    """Return the states [tokens, width] after `layer`, in float32 on the CPU."""
    outputs: list[Tensor] = []
    hook = get_layers(lm.model)[layer].register_forward_hook(
        lambda module, inputs, out: outputs.append(get_states(out))
    )
    try:
        run_body(lm.model, ids.to(unwrap_peft(lm.model).device), use_cache=False)
    finally:
        hook.remove()
    return outputs[0][0].float().cpu()


@contextlib.contextmanager
def _steer(lm: Any, layer: int, vector: Tensor) -> Iterator[None]:
    inner = unwrap_peft(lm.model)
    moved = vector.to(device=inner.device, dtype=inner.dtype)
    with add_to_output(get_layers(lm.model)[layer], moved):
        yield


def _score_log_odds(
    lm: Any, items: Sequence[Item], before: Sequence[Message] = ()
) -> list[float | None]:
    """Return the log-odds of each item's target option among its options, nats."""
    pairs = [(item.messages, item.options) for item in items]
    scored = score_apart(partial(option_logprobs, lm, preceding=before), pairs)
    return [
        None if isinstance(each, Failure) else _to_log_odds(item, each)
        for item, each in zip(items, scored, strict=True)
    ]


def _to_log_odds(item: Item, options: Sequence[tuple[float | None, int]]) -> float | None:
    scores = [
        total / (tokens if item.compare == "per_token" else 1)
        for total, tokens in options
        if total is not None
    ]
    if len(scores) < len(options):
        return None
    others = torch.tensor(scores[: item.target_index] + scores[item.target_index + 1 :])
    return scores[item.target_index] - float(others.double().logsumexp(0))


def _compare(
    condition: str,
    items: Sequence[Item],
    plain: Sequence[float | None],
    draws: Sequence[Sequence[float | None]],
) -> list[Shift]:
    """Return the mean shift from M0 per endpoint, in the order of the items."""
    by_endpoint: dict[str, list[float]] = {}
    for item, before, *after in zip(items, plain, *draws, strict=True):
        values = [value for value in after if value is not None]
        if before is not None and len(values) == len(draws):
            shift = math.fsum(values) / len(values) - before
            by_endpoint.setdefault(name_endpoint(item), []).append(shift)
    return [_summarise(condition, name, shifts) for name, shifts in by_endpoint.items()]


def _summarise(condition: str, endpoint: str, shifts: Sequence[float]) -> Shift:
    n = len(shifts)
    mean = math.fsum(shifts) / n
    squares = math.fsum((value - mean) ** 2 for value in shifts)
    error = math.sqrt(squares / (n - 1) / n) if n > 1 else None
    return Shift(condition, endpoint, mean, error, n)
