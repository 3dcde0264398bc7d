"""Cache of a model's log-probabilities of given answers, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from doublebind.execution.store import storage_error
from doublebind.models.load import LM
from doublebind.models.score import token_logprobs
from doublebind.models.teacher_cache import SupervisedExample
from doublebind.schema.errors import StoreError

LOGPROBS_FILE = "logprobs.safetensors"


def write_logprobs(out: Path, lm: LM, examples: Sequence[SupervisedExample]) -> None:
    """Write the log-probability of every supervised token of `examples` to the folder `out`."""
    from safetensors.torch import save_file

    logprobs = token_logprobs(
        lm,
        [(e.input_ids[: e.first_supervised], e.input_ids[e.first_supervised :]) for e in examples],
    )
    offsets = torch.tensor([0, *itertools.accumulate(map(len, logprobs))])
    values = torch.tensor(list(itertools.chain.from_iterable(logprobs)), dtype=torch.float32)
    try:
        save_file({"offsets": offsets, "values": values}, out / LOGPROBS_FILE)
    except OSError as error:
        raise storage_error(error, out) from None


def read_logprobs(folder: Path) -> list[list[float]]:
    """Return the cached log-probabilities: per example, nats of each supervised token.

    Raises:
        StoreError: If the file is absent or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / LOGPROBS_FILE)
        offsets, values = tensors["offsets"].tolist(), tensors["values"].tolist()
    except (OSError, SafetensorError, KeyError) as error:
        raise StoreError(
            f"{folder}: log-probabilities cannot be read ({type(error).__name__}); delete the "
            f"folder"
        ) from None
    return [values[a:b] for a, b in itertools.pairwise(offsets)]
