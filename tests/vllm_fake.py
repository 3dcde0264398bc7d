"""vLLM's offline objects and its server, in the shapes of 0.33, around a tiny model.

Shapes and refusals are vLLM's; the numbers are a real model's, so that what is asked through vLLM
can be compared with what is computed here.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import types
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model

WORKING_FOLDER = Path()


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    """The fields used, with vLLM's defaults; any other name is a TypeError, as there."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        assert all(isinstance(token, int) for token in self.logit_bias or {})


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")


@dataclass
class CompletionOutput:
    token_ids: list[int]
    text: str = ""
    finish_reason: str | None = "length"


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


class Refusal(ValueError):
    """What vLLM says to a request beyond its limits."""


class FakeEngine:
    """One base and the adapters that were asked for."""

    def __init__(self, base: str, max_logprobs: int) -> None:
        self.base, self.max_logprobs = base, max_logprobs
        self.models: dict[str | None, LM] = {}
        self.lock = threading.Lock()

    def open_model(self, adapter: str | None) -> LM:
        if adapter not in self.models:
            ref = f"{self.base}+{adapter}" if adapter else self.base
            self.models[adapter] = load_model(resolve_model(ref, relative_to=WORKING_FOLDER))
        return self.models[adapter]

    @torch.no_grad()
    def run_request(
        self, adapter: str | None, ids: list[int], params: SamplingParams
    ) -> RequestOutput:
        k = params.prompt_logprobs
        if k is not None and k > self.max_logprobs:
            raise Refusal(
                f"Requested prompt logprobs of {k}, which is greater than max allowed: "
                f"{self.max_logprobs}"
            )
        with self.lock:
            lm = self.open_model(adapter)
            logprobs = None if k is None else [None, *self.score_prompt(lm, ids, k)]
            return RequestOutput(ids, [CompletionOutput(self.generate(lm, ids, params))], logprobs)

    def score_prompt(self, lm: LM, ids: list[int], k: int) -> list[dict[int, Logprob]]:
        rows = lm.model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        scored = []
        for row, token in zip(rows, ids[1:], strict=True):
            top = row.topk(k).indices.tolist() if k else []
            rank = 1 + int((row > row[token]).sum())
            # The token of the prompt first, then the likeliest, as vLLM lists them.
            listed = {token: Logprob(float(row[token]), rank, "?")}
            listed |= {t: Logprob(float(row[t]), i + 1, "?") for i, t in enumerate(top)}
            scored.append(listed)
        return scored

    def generate(self, lm: LM, ids: list[int], params: SamplingParams) -> list[int]:
        draws = torch.Generator().manual_seed(params.seed or 0)
        tokens: list[int] = []
        while len(tokens) < (params.max_tokens or 16):
            out = lm.model(torch.tensor([[*ids, *tokens]])).logits[0, -1].float()
            for token, bias in (params.logit_bias or {}).items():
                out[int(token)] += bias
            if params.temperature == 0:
                tokens.append(int(out.argmax()))
            else:
                chances = (out / params.temperature).softmax(-1)
                tokens.append(int(torch.multinomial(chances, 1, generator=draws)))
            if tokens[-1] in params.stop_token_ids:
                break
        return tokens


class LLM:
    """`vllm.LLM`, as far as it is used; `made` counts engines."""

    engines: ClassVar[list[LLM]] = []

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        skip_tokenizer_init: bool,
        trust_remote_code: bool,
        enable_lora: bool,
        max_loras: int,
        max_lora_rank: int,
        max_logprobs: int,
        gpu_memory_utilization: float,
    ) -> None:
        assert (enable_lora, skip_tokenizer_init, trust_remote_code) == (True, True, False)
        assert max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        self.engine, self.adapters = FakeEngine(model, max_logprobs), dict[int, str]()
        LLM.engines.append(self)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        assert not use_tqdm, "progress bars belong to the caller"
        if lora_request:
            number, path = lora_request.lora_int_id, lora_request.lora_path
            assert self.adapters.setdefault(number, path) == path, "a number is one adapter's"
        adapter = lora_request.lora_path if lora_request else None
        return [
            self.engine.run_request(adapter, prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]


def install_fake_vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Put the objects where `import vllm` finds them."""
    from doublebind.models import vllm as ours

    fake, lora, request = (
        types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")
    )
    fake.LLM, fake.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest  # type: ignore[attr-defined]
    for module in (fake, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    ours.open_offline_engine.cache_clear()
    LLM.engines.clear()
    return LLM


class FakeVllmServer:
    """`vllm serve BASE --enable-lora` with adapters loaded at run time."""

    def __init__(self, base: str, *, max_logprobs: int = 20, updating: bool = True) -> None:
        self.engine = FakeEngine(base, max_logprobs)
        self.adapters: dict[str, str] = {}
        self.allows_updates = updating
        self.request_counts: Counter[str] = Counter()
        self.faults: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if server.faults:
                    return self.refuse(server.faults.pop(0), "told to", "InternalServerError")
                if self.path == "/v1/load_lora_adapter" and server.allows_updates:
                    return self.load(body)
                if self.path != "/v1/completions":
                    return self.send(404, b'{"detail":"Not Found"}')
                return self.complete(body)

            def load(self, body: dict[str, Any]) -> None:
                name, path = body["lora_name"], body["lora_path"]
                if name in server.adapters:
                    message = f"The lora adapter '{name}' has already been loaded."
                    return self.refuse(400, message, "InvalidUserInput")
                if not (Path(path) / "adapter_model.safetensors").is_file():
                    return self.refuse(404, f"No adapter found for {path}", "NotFoundError")
                server.adapters[name] = path
                return self.send(200, f"Success: LoRA adapter '{name}' added.".encode())

            def complete(self, body: dict[str, Any]) -> None:
                name = body.pop("model")
                if name not in ("base", *server.adapters):
                    message = f"The model `{name}` does not exist."
                    return self.refuse(404, message, "NotFoundError")
                server.request_counts[name] += 1
                ids = body.pop("prompt")
                assert body.pop("return_token_ids") is True
                bias = body.pop("logit_bias", {})
                params = SamplingParams(**body, logit_bias={int(t): b for t, b in bias.items()})
                try:
                    out = server.engine.run_request(server.adapters.get(name), ids, params)
                except Refusal as refusal:
                    return self.refuse(400, str(refusal), "BadRequestError")
                return self.send(200, json.dumps(format_completion(name, out)).encode())

            def refuse(self, status: int, message: str, kind: str) -> None:
                error = {"message": message, "type": kind, "param": None, "code": status}
                self.send(status, json.dumps({"error": error}).encode())

            def send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def format_completion(name: str, out: RequestOutput) -> dict[str, Any]:
    """`CompletionResponse` as its server sends it: token ids are keys in JSON, hence text."""
    rows = out.prompt_logprobs
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 0,
        "model": name,
        "choices": [
            {
                "index": 0,
                "text": "",
                "logprobs": None,
                "finish_reason": out.outputs[0].finish_reason,
                "stop_reason": None,
                "token_ids": out.outputs[0].token_ids,
                "prompt_logprobs": rows
                and [
                    row
                    and {
                        str(t): vars(p) | {"logprob": max(p.logprob, -9999.0)}
                        for t, p in row.items()
                        if not math.isnan(p.logprob)
                    }
                    for row in rows
                ],
                "prompt_token_ids": out.prompt_token_ids,
            }
        ],
        "usage": {"prompt_tokens": len(out.prompt_token_ids), "completion_tokens": 1},
        "kv_transfer_params": None,
    }
