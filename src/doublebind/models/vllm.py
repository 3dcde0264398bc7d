"""Lets vLLM answer and score for models: one base in memory, and adapters that come and go on it.

Paged attention and batching are vLLM's (Kwon et al. 2023, arXiv 2309.06180), and so is keeping many
adapters beside one base (Chen et al. 2023, Punica, arXiv 2310.18547). Knows its offline engine and
its server, both asked in token ids. Does not know what is asked or why. Written against vLLM 0.33;
not yet run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from doublebind.models import openai_client as serve
from doublebind.schema.errors import MissingExtra, ModelError
from doublebind.schema.model_source import Engine, ModelSource, ServedModel, ServerOptions
from doublebind.schema.recipe import Dtype

_BANNING_BIAS = -100.0
"""The least bias that vLLM takes: a token with it is not drawn."""
_NEUTRAL_SAMPLING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Said outright, since a server fills in what the model's generation_config.json recommends."""


class VllmRequest(NamedTuple):
    """One sequence of token ids, and what vLLM shall do with it in its own words."""

    ids: Sequence[int]
    params: dict[str, Any]


class VllmResponse(NamedTuple):
    """What vLLM made of it."""

    tokens: list[int]
    """Written, with the token that ended it."""
    prompt_logprobs: list[dict[int, float] | None]
    """Per token of the prompt: token -> log-probability; `None` for the first."""


class Backend(Protocol):
    """One base in vLLM."""

    def run_requests(
        self, adapter: str | None, requests: Sequence[VllmRequest]
    ) -> list[VllmResponse]:
        """Return what the base, with the adapter in that folder, makes of each; in order."""
        ...


@dataclass(frozen=True, eq=False)
class VllmModel:
    """A model that vLLM holds; it stands where a model of transformers would in an `LM`."""

    backend: Backend
    adapter: str | None
    settings: Engine
    config: Any
    generation_config: Any
    dtype: torch.dtype
    name_or_path: str

    device = torch.device("cuda")
    """Not that of tensors here: sums on an accelerator may differ from one time to the next."""

    @property
    def vocab_rows(self) -> int:
        """Tokens that the output layer has rows for."""
        return int(self.config.get_text_config().vocab_size)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_tokens: int,
        temperature: float,
        end_ids: Collection[int],
        suppress_tokens: Sequence[int],
    ) -> list[list[int]]:
        """Return the tokens of one answer per prompt, each drawn with its own seed.

        A seed fixes an answer as far as sums come out alike; on a GPU the batch moves last bits.
        """
        common = {
            **_NEUTRAL_SAMPLING,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stop_token_ids": sorted(end_ids),
        }
        if suppress_tokens:
            common["logit_bias"] = {str(token): _BANNING_BIAS for token in suppress_tokens}
        asked = [
            VllmRequest(ids, {**common, "seed": s}) for ids, s in zip(prompts, seeds, strict=True)
        ]
        return [told.tokens for told in self.backend.run_requests(self.adapter, asked)]

    def token_logprobs(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[list[float]]:
        """Return the log-probability (nats) of each token of (prompt, continuation) ids."""
        told = self._score_prompts([[*prompt, *ids] for prompt, ids in pairs], 0)
        return [
            [
                _read_logprob(rows[len(prompt) + i], token, self.name_or_path)
                for i, token in enumerate(ids)
            ]
            for (prompt, ids), rows in zip(pairs, told, strict=True)
        ]

    def top_logprobs(
        self, sequences: Sequence[tuple[Sequence[int], int]], k: int
    ) -> list[dict[str, Tensor]]:
        """Return the k likeliest tokens at every place from a first one on.

        Args:
            sequences: Token ids, and the index of the first place.
            k: Tokens per place; at most what the engine gives.

        Returns:
            Per sequence: `ids` and `logprobs` [places, k], descending; `tail` [places], the mass
            of all others; `chosen` [places], of the token that stands there; `lse` [places], 0:
            log-probabilities are normalised already.

        Raises:
            ModelError: If `k` is more than the engine gives.
        """
        if k > self.settings.max_logprobs:
            raise ModelError(
                f"{self.name_or_path}: {k} log-probabilities per token are asked for and vLLM "
                f"gives {self.settings.max_logprobs}; raise `engine.max_logprobs` (and start a "
                f"server with --max-logprobs {k})"
            )
        told = self._score_prompts([ids for ids, _ in sequences], k)
        return [
            _stack_rows(rows[first:], ids[first:], k, self.name_or_path)
            for (ids, first), rows in zip(sequences, told, strict=True)
        ]

    def _score_prompts(
        self, sequences: Sequence[Sequence[int]], k: int
    ) -> list[list[dict[int, float] | None]]:
        # One token is the least that vLLM writes; it is thrown away.
        how = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}
        told = self.backend.run_requests(self.adapter, [VllmRequest(ids, how) for ids in sequences])
        for ids, (_, rows) in zip(sequences, told, strict=True):
            if len(rows) != len(ids):
                raise ModelError(
                    f"{self.name_or_path}: vLLM scored {len(rows)} of {len(ids)} tokens; it was "
                    f"asked in ids and must not add or cut any"
                )
        return [rows for _, rows in told]


def _read_logprob(row: dict[int, float] | None, token: int, where: str) -> float:
    if row is None or token not in row or math.isnan(row[token]):
        raise ModelError(f"{where}: vLLM gave no log-probability of token {token}")
    return row[token] if row[token] > -9999.0 else -math.inf  # JSON has no infinity


def _stack_rows(
    rows: Sequence[dict[int, float] | None], following: Sequence[int], k: int, where: str
) -> dict[str, Tensor]:
    """Return the rows of one sequence as tensors."""
    chosen = [_read_logprob(row, token, where) for row, token in zip(rows, following, strict=True)]
    best = []
    for row in rows:
        # The token that stands there comes as one more where it is not among the k.
        ranked = sorted((row or {}).items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        if len(ranked) < k:
            raise ModelError(f"{where}: vLLM gave {len(ranked)} of {k} log-probabilities")
        best.append(ranked)
    logprobs = torch.tensor([[p for _, p in ranked] for ranked in best], dtype=torch.float64)
    return {
        "ids": torch.tensor([[token for token, _ in ranked] for ranked in best]),
        "logprobs": logprobs,
        "tail": (1.0 - logprobs.exp().sum(1)).clamp_min(0.0),
        "chosen": torch.tensor(chosen),
        "lse": torch.zeros(len(best)),
    }


# --- opening -------------------------------------------------------------------------------------


def open_vllm(source: ModelSource, dtype: Dtype) -> VllmModel:
    """Return the model at `source` in the engine that it names.

    Raises:
        ModelError: If its configuration cannot be read, or its adapter is no LoRA that fits.
        MissingExtra: If vLLM is needed in this process and not installed.
    """
    from transformers import AutoConfig, GenerationConfig

    settings = source.engine
    assert settings is not None, "the caller found an engine"
    own = Path(source.adapter) if source.adapter else Path(source.path)
    if source.adapter:
        _check_adapter(own, settings)
    try:
        config = AutoConfig.from_pretrained(source.path, local_files_only=True)
        written = [
            place
            for place in (own, Path(source.path))
            if (place / "generation_config.json").is_file()
        ]
        generation = GenerationConfig.from_pretrained(written[0]) if written else GenerationConfig()
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.path}: its configuration cannot be read ({error})") from error
    backend = (
        VllmServer(settings)
        if settings.url
        else _open_offline_engine(source.path, dtype, settings.model_dump_json())
    )
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    where = source.adapter or source.path
    return VllmModel(backend, source.adapter, settings, config, generation, precision, where)


def _check_adapter(folder: Path, settings: Engine) -> None:
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, rank = told["peft_type"], int(told.get("r") or 0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: adapter_config.json cannot be read ({error})") from None
    if kind != "LORA":
        raise ModelError(f"{folder}: vLLM takes LoRA adapters, not {kind}; leave `engine` out")
    if rank > settings.max_lora_rank:
        raise ModelError(
            f"{folder}: its rank is {rank} and `engine.max_lora_rank` {settings.max_lora_rank}; "
            f"raise it (and start a server with --max-lora-rank)"
        )


@functools.lru_cache(maxsize=1)
def _open_offline_engine(path: str, dtype: Dtype, settings: str) -> OfflineEngine:
    return OfflineEngine(path, dtype, Engine.model_validate_json(settings))


class OfflineEngine:
    """An engine in this process; it stays for the models after this one."""

    def __init__(self, path: str, dtype: Dtype, settings: Engine) -> None:
        """Start it.

        Raises:
            MissingExtra: If vLLM is not installed.
        """
        try:
            vllm: Any = importlib.import_module("vllm")
            requests: Any = importlib.import_module("vllm.lora.request")
        except ImportError:
            raise MissingExtra("`engine: {kind: vllm}` without `url`", "vllm") from None
        self.sampling_params, self.lora_request = vllm.SamplingParams, requests.LoRARequest
        self.llm = vllm.LLM(
            model=path,
            dtype=dtype,
            skip_tokenizer_init=True,  # asked in ids, answers in ids
            trust_remote_code=False,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=settings.max_lora_rank,
            max_logprobs=settings.max_logprobs,
            gpu_memory_utilization=settings.memory,
        )
        self.adapter_numbers: dict[str, int] = {}

    def run_requests(
        self, adapter: str | None, requests: Sequence[VllmRequest]
    ) -> list[VllmResponse]:
        """See `Backend`."""
        lora = None
        if adapter is not None:
            number = self.adapter_numbers.setdefault(adapter, len(self.adapter_numbers) + 1)
            lora = self.lora_request(adapter, number, adapter)
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(ids)} for ids, _ in requests],
            [self.sampling_params(**_convert_params(how), detokenize=False) for _, how in requests],
            lora_request=lora,
            use_tqdm=False,
        )
        return [
            VllmResponse(
                list(output.outputs[0].token_ids),
                [
                    row and {int(token): float(p.logprob) for token, p in row.items()}
                    for row in output.prompt_logprobs or ()
                ],
            )
            for output in outputs
        ]


def _convert_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters for Python, where a bias is by number, not by its spelling in JSON."""
    bias = params.get("logit_bias")
    return {**params, "logit_bias": {int(t): b for t, b in bias.items()}} if bias else params


class VllmServer:
    """vLLM's own server, started with `--enable-lora`, that several workers share."""

    def __init__(self, settings: Engine) -> None:
        """Keep its address; nothing is asked yet."""
        assert settings.url, "a server has an address"
        assert settings.model, "a server has a name for its base"
        limits = ServerOptions(concurrency=min(256, settings.concurrency), timeout=600.0)
        url = settings.url.rstrip("/")
        self.served = ServedModel(url=url, model=settings.model, declared={}, options=limits)

    def run_requests(
        self, adapter: str | None, requests: Sequence[VllmRequest]
    ) -> list[VllmResponse]:
        """See `Backend`; an adapter is named by its folder, which the server must see, too."""
        name = self.served.model
        if adapter is not None:
            name = adapter
            serve.load_adapter(self.served, adapter)
        bodies = [
            {"model": name, "prompt": list(ids), "return_token_ids": True, **how}
            for ids, how in requests
        ]
        replies = serve.post_requests(self.served, "completions", bodies)
        return [
            self._parse_response(reply, "prompt_logprobs" in how)
            for reply, (_, how) in zip(replies, requests, strict=True)
        ]

    def _parse_response(self, reply: dict[str, Any], scored: bool) -> VllmResponse:
        try:
            choice = reply["choices"][0]
            tokens = [int(token) for token in choice["token_ids"]]
            rows = choice["prompt_logprobs"] if scored else []
            prompt = [row and {int(t): float(p["logprob"]) for t, p in row.items()} for row in rows]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ModelError(
                f"{self.served.url}: an answer has no `token_ids` or `prompt_logprobs`; the server "
                f"must be vLLM's, 0.20 or later"
            ) from None
        return VllmResponse(tokens, prompt)
