"""Samples and scores through vLLM: one base in memory, with LoRA adapters loaded on demand.

vLLM provides paged attention and batching (Kwon et al. 2023, arXiv 2309.06180) and many adapters on
one base (Chen et al. 2023, Punica, arXiv 2310.18547). Its offline engine and its server both get
token ids. Written against vLLM 0.33; not yet run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from doublebind.models.api_keys import ENGINE_KEY
from doublebind.models.model_files import read_json
from doublebind.models.openai_client import load_adapter, post_requests
from doublebind.models.server_answers import read_logprob
from doublebind.schema.errors import MissingExtra, ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import Engine, ModelSource, ServedModel, ServerOptions
from doublebind.schema.recipe import Dtype

_BANNING_BIAS = -100.0
"""Smallest bias that vLLM accepts; a token with it is never sampled."""
_NEUTRAL_SAMPLING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent explicitly, since a server's defaults come from the model's generation_config.json."""


class VllmRequest(NamedTuple):
    """One sequence of token ids, with vLLM's sampling parameters."""

    ids: Sequence[int]
    params: dict[str, Any]


class VllmResponse(NamedTuple):
    """Result of one request."""

    tokens: list[int]
    """Sampled tokens, with the one that ended the answer."""
    prompt_logprobs: list[dict[int, float] | None]
    """Per token of the prompt: token -> log-probability; `None` for the first."""


class Backend(Protocol):
    """One base model in vLLM."""

    def run_requests(
        self, adapter: str | None, requests: Sequence[VllmRequest]
    ) -> list[VllmResponse]:
        """Return the response to each request, by the base with the adapter in that folder."""
        ...


@dataclass(frozen=True, eq=False)
class VllmModel:
    """A model run by vLLM, in the place of a transformers model in an `LM`."""

    backend: Backend
    base: str
    adapter: str | None
    settings: Engine
    config: Any
    generation_config: Any
    dtype: torch.dtype
    name_or_path: str

    device = torch.device("cuda")
    """Makes checks use the tolerance for non-deterministic sums; no tensor here is on a GPU."""

    @property
    def vocab_rows(self) -> int:
        """Rows of the output layer."""
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
        """Return the tokens of one answer per prompt, each sampled with its own seed.

        A seed fixes an answer up to rounding; on a GPU the batch changes the last bits of sums.
        """
        common = {
            **_NEUTRAL_SAMPLING,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stop_token_ids": sorted(end_ids),
        }
        if suppress_tokens:
            common["logit_bias"] = {str(token): _BANNING_BIAS for token in suppress_tokens}
        requests = [
            VllmRequest(ids, {**common, "seed": s}) for ids, s in zip(prompts, seeds, strict=True)
        ]
        return [answer.tokens for answer in self.backend.run_requests(self.adapter, requests)]

    def token_logprobs(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[list[float]]:
        """Return the log-probability (nats) of each token of (prompt, continuation) ids."""
        scored = self._score_prompts([[*prompt, *ids] for prompt, ids in pairs], 0)
        return [
            [
                _read_logprob(rows[len(prompt) + i], token, self.name_or_path)
                for i, token in enumerate(ids)
            ]
            for (prompt, ids), rows in zip(pairs, scored, strict=True)
        ]

    def top_logprobs(
        self, sequences: Sequence[tuple[Sequence[int], int]], k: int
    ) -> list[dict[str, Tensor]]:
        """Return the k likeliest tokens at every position from a first one on.

        Args:
            sequences: Token ids, and the index of the first position.
            k: Tokens per position; at most `engine.max_logprobs`.

        Returns:
            Per sequence: `ids` and `logprobs` [positions, k], descending; `tail` [positions], the
            probability of all others; `chosen` [positions], log-probability of the token at the
            position; `lse` [positions], 0, since log-probabilities are normalised already.

        Raises:
            ModelError: If `k` is more than `engine.max_logprobs`.
        """
        if k > self.settings.max_logprobs:
            raise ModelError(
                f"{self.name_or_path}: {k} log-probabilities per token are needed and vLLM "
                f"gives {self.settings.max_logprobs}; raise `engine.max_logprobs` (and start a "
                f"server with --max-logprobs {k})"
            )
        scored = self._score_prompts([ids for ids, _ in sequences], k)
        return [
            _stack_rows(rows[first:], ids[first:], k, self.name_or_path)
            for (ids, first), rows in zip(sequences, scored, strict=True)
        ]

    def _score_prompts(
        self, sequences: Sequence[Sequence[int]], k: int
    ) -> list[list[dict[int, float] | None]]:
        # vLLM samples at least one token, which is ignored.
        params = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k}
        requests = [VllmRequest(ids, params) for ids in sequences]
        responses = self.backend.run_requests(self.adapter, requests)
        for ids, (_, rows) in zip(sequences, responses, strict=True):
            if len(rows) != len(ids):
                raise ModelError(
                    f"{self.name_or_path}: vLLM scored {len(rows)} of {len(ids)} tokens; the "
                    f"server must not add or cut any"
                )
        return [rows for _, rows in responses]


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
        # The position's own token is an additional entry if it is not among the k.
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


# --- engines -------------------------------------------------------------------------------------


def open_vllm(source: ModelSource, dtype: Dtype) -> VllmModel:
    """Return the model at `source` in the engine that it names.

    Raises:
        ModelError: If its configuration cannot be read, or its adapter is not a LoRA of at most
            `engine.max_lora_rank`.
        MissingExtra: If vLLM is needed in this process and not installed.
    """
    from transformers import AutoConfig, GenerationConfig

    settings = source.engine
    assert settings is not None, "callers check that the source names an engine"
    folders = [Path(folder) for folder in (source.adapter, source.path) if folder]
    if source.adapter:
        check_adapter(folders[0], settings)
    try:
        config = AutoConfig.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )
        saved = [f for f in folders if (f / "generation_config.json").is_file()]
        defaults = read_json(saved[0] / "generation_config.json") if saved else {}
        generation = GenerationConfig.from_dict(defaults)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.path}: its configuration cannot be read ({error})") from error
    backend = (
        VllmServer(settings)
        if settings.url
        else open_offline_engine(source.path, dtype, settings.model_dump_json())
    )
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    where = source.adapter or source.path
    return VllmModel(
        backend, source.path, source.adapter, settings, config, generation, precision, where
    )


def check_adapter(folder: Path, settings: Engine) -> None:
    """Refuse an adapter that vLLM does not run as PEFT does.

    vLLM adds low-rank updates to the linear layers of the blocks. It leaves out, or refuses late,
    what an adapter changes elsewhere: its part of the output head never reaches the
    log-probabilities of prompts.

    Raises:
        ModelError: If it is no LoRA, its rank is above `engine.max_lora_rank`, it has settings
            that vLLM ignores, or a tensor outside the blocks.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, rank = config["peft_type"], int(config.get("r") or 0)
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            names = sorted(file.keys())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: its adapter cannot be read ({error})") from None
    if kind != "LORA":
        raise ModelError(f"{folder}: vLLM takes LoRA adapters, not {kind}; leave `engine` out")
    if rank > settings.max_lora_rank:
        raise ModelError(
            f"{folder}: its rank is {rank} and `engine.max_lora_rank` {settings.max_lora_rank}; "
            f"raise it (and start a server with --max-lora-rank)"
        )
    ignored = {name: config.get(name) for name in _IGNORED_SETTINGS}
    changed = [name for name, value in ignored.items() if value and value != "none"]
    if changed:
        raise ModelError(
            f"{folder}: vLLM ignores `{changed[0]}: {json.dumps(ignored[changed[0]])}` of its "
            f"adapter_config.json; leave `engine` out, or merge the adapter"
        )
    outside = [name for name in names if not re.search(r"\.\d+\..*\.lora_[AB]\.weight$", name)]
    if outside:
        raise ModelError(
            f"{folder}: vLLM leaves {outside[0]} out of its log-probabilities, since it is no "
            f"low-rank update of a block; leave `engine` out, or train without it"
        )


_IGNORED_SETTINGS = (
    "modules_to_save",
    "trainable_token_indices",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "use_qalora",
    "bias",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
)
"""Settings of a LoRA that vLLM has not, or applies in another way than PEFT."""


# --- agreement with transformers -----------------------------------------------------------------

PROBE_TOKENS = 24
"""Tokens of each of the two texts that engine and transformers both score."""
PROBE_TOLERANCE: dict[Dtype, float] = {"float32": 0.01, "bfloat16": 0.3}
"""Largest difference (nats) of one token's log-probability. Two orders of a bfloat16 sum differ by
some hundredths; an adapter that is left out, or another reading of positions, by tenths or more."""
_AGREEING: set[str] = set()


def forget_agreements() -> None:
    """Check each engine again, as a new process does, unless a note says that it agrees."""
    _AGREEING.clear()


def check_agreement(
    model: VllmModel, dtype: Dtype, cache: Path | None, load_reference: Callable[[], Any]
) -> None:
    """Refuse an engine whose log-probabilities are not those of transformers.

    Two texts are scored by both, once per base, kind of adapter and settings: adapters with equal
    settings are run alike. A check that passed is noted in `cache`.

    Args:
        model: The model in the engine.
        dtype: Precision of its weights.
        cache: Folder of notes; `None` keeps none beyond this process.
        load_reference: Loads the same model in transformers.

    Raises:
        ModelError: If a token's log-probability differs by more than `PROBE_TOLERANCE`.
    """
    key = _identify_probe(model, dtype)
    note = cache / f"vllm-{key[:32]}.json" if cache else None
    if key in _AGREEING or (note is not None and note.is_file()):
        return
    vocab = model.vocab_rows
    texts = [[(7 + a * i + i * i) % vocab for i in range(PROBE_TOKENS)] for a in (5, 11)]
    reference = load_reference()
    with torch.no_grad():
        ids = torch.tensor(texts, device=reference.device)
        logprobs = reference(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        direct = logprobs.gather(2, ids[:, 1:, None]).squeeze(2).tolist()
    through = model.token_logprobs([(text[:1], text[1:]) for text in texts])
    differences = [
        abs(a - b)
        for row, other in zip(direct, through, strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    if not max(differences) <= PROBE_TOLERANCE[dtype]:
        raise ModelError(
            f"{model.name_or_path}: vLLM's log-probabilities differ from those of transformers by "
            f"up to {max(differences):.2g} nats (at most {PROBE_TOLERANCE[dtype]:g} in {dtype}); "
            f"leave `engine` out, or serve the same weights"
        )
    _AGREEING.add(key)
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"largest_difference": max(differences)}))


def _identify_probe(model: VllmModel, dtype: Dtype) -> str:
    """Return a hash of base, kind of adapter and settings, on which agreement depends."""
    base = Path(model.base)
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(base.iterdir())
        if path.is_file()
    ]
    kind: dict[str, Any] = {}
    if model.adapter is not None:
        config = json.loads((Path(model.adapter) / "adapter_config.json").read_text("utf-8"))
        kind = {k: v for k, v in config.items() if k != "base_model_name_or_path"}
        kind["target_modules"] = sorted(kind.get("target_modules") or ())
    return content_hash([str(base), files, kind, model.settings.model_dump(mode="json"), dtype])


@functools.lru_cache(maxsize=1)
def open_offline_engine(path: str, dtype: Dtype, settings: str) -> OfflineEngine:
    """Return the engine for a base, the same one while base and settings (JSON) are the same."""
    return OfflineEngine(path, dtype, Engine.model_validate_json(settings))


class OfflineEngine:
    """An engine in this process, reused by later models on the same base."""

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
            skip_tokenizer_init=True,  # prompts and answers are token ids
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
            [self.sampling_params(**_convert_params(p), detokenize=False) for _, p in requests],
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
    """Return parameters for Python: biases have integer keys, not strings as in JSON."""
    bias = params.get("logit_bias")
    return {**params, "logit_bias": {int(t): b for t, b in bias.items()}} if bias else params


class VllmServer:
    """vLLM's own server, started with `--enable-lora`, shared by several workers."""

    def __init__(self, settings: Engine) -> None:
        """Keep its address; open no connection yet."""
        assert settings.url and settings.model, "the schema demands both"  # noqa: PT018
        limits = ServerOptions(
            concurrency=min(256, settings.concurrency), timeout=600.0, api_key_env=ENGINE_KEY
        )
        url = settings.url.rstrip("/")
        self.served = ServedModel(url=url, model=settings.model, declared={}, options=limits)

    def run_requests(
        self, adapter: str | None, requests: Sequence[VllmRequest]
    ) -> list[VllmResponse]:
        """See `Backend`; an adapter is named by its folder, which the server must see too."""
        name = self.served.model
        if adapter is not None:
            name = adapter
            load_adapter(self.served, adapter)
        bodies = [
            {"model": name, "prompt": list(ids), "return_token_ids": True, **params}
            for ids, params in requests
        ]
        replies = post_requests(self.served, "completions", bodies)
        return [
            self._parse_response(reply, "prompt_logprobs" in params)
            for reply, (_, params) in zip(replies, requests, strict=True)
        ]

    def _parse_response(self, reply: dict[str, Any], scored: bool) -> VllmResponse:
        try:
            choice = reply["choices"][0]
            tokens = [int(token) for token in choice["token_ids"]]
            rows = choice["prompt_logprobs"] if scored else []
            prompt = [
                row and {int(t): read_logprob(p["logprob"]) for t, p in row.items()} for row in rows
            ]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ModelError(
                f"{self.served.url}: an answer has no `token_ids` or `prompt_logprobs`; the server "
                f"must be vLLM's, 0.20 or later"
            ) from None
        return VllmResponse(tokens, prompt)
