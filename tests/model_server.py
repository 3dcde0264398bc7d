"""An OpenAI-compatible server around a function or a tiny model that can misbehave on demand."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ScoreFunction = Callable[[list[int]], list[float | None]]
"""Token ids -> log-probability of each; the first has none."""
AnswerFunction = Callable[[dict[str, Any]], tuple[str, bool]]
"""Request -> text, and whether it ended by itself."""


class ModelServer:
    """Serves one model on a port of this machine; `faults` are spent one per request, in order.

    Faults: an HTTP status, `"truncate"` (JSON that ends too soon), `"cut"` (no response at all),
    `"slow"` (later than the client waits), `"die"` (this and every later request fails).
    """

    def __init__(
        self,
        answer: AnswerFunction,
        *,
        model: str = "m",
        port: int = 0,
        score: ScoreFunction | None = None,
        spell: Callable[[int], str] = str,
    ) -> None:
        self.answer, self.model, self.model_names = answer, model, {model}
        self.score, self.spell = score, spell
        self.lists_models = True
        self.fingerprint = "fp-1"
        self.faults: list[Any] = []
        self.headers: dict[str, str] = {}
        self.raw_content: str | None = None
        self.response_counts: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.authorization: str | None = None
        self.cookies: list[str | None] = []
        self.is_dead = False
        self.n_busy = self.max_busy = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if not server.lists_models:
                    return self.reply(500, {"error": "no such list"})
                entry = {"id": server.model, "object": "model", "created": time.time_ns()}
                return self.reply(200, {"object": "list", "data": [entry | {"owned_by": "tests"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(body)
                    server.authorization = self.headers.get("Authorization")
                    server.cookies.append(self.headers.get("Cookie"))
                    fault = server.faults.pop(0) if server.faults else None
                    server.is_dead = server.is_dead or fault == "die"
                    server.n_busy += 1
                    server.max_busy = max(server.n_busy, server.max_busy)
                try:
                    if body["model"] not in server.model_names:
                        self.reply(404, {"error": "no such model"})
                    else:
                        self.misbehave(body, fault)
                finally:
                    with server.lock:
                        server.n_busy -= 1

            def misbehave(self, body: dict[str, Any], fault: Any) -> None:
                if isinstance(fault, int):
                    return self.reply(fault, {"error": {"message": f"told to say {fault}"}})
                if server.is_dead or fault == "cut":
                    self.close_connection = True
                    return None
                if server.raw_content is not None:
                    return self.send(200, server.raw_content.encode())
                if fault == "slow":
                    time.sleep(1.5)
                if self.path.endswith("/v1/completions"):
                    content = self.scored(body)
                else:
                    content = self.chat(body)
                if fault == "truncate":
                    return self.send(200, json.dumps(content)[:-30].encode())
                with server.lock:
                    server.response_counts[json.dumps(body, sort_keys=True)] += 1
                return self.reply(200, content)

            def scored(self, body: dict[str, Any]) -> dict[str, Any]:
                choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
                if server.score:  # what is sent and one new token; servers that do not, leave it
                    row = [*server.score(body["prompt"]), -1.0]
                    tokens = [*map(server.spell, body["prompt"]), "x"]
                    choice["logprobs"] = {"token_logprobs": row, "tokens": tokens}
                usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
                answer = {"model": server.model, "choices": [choice], "usage": usage}
                return {"id": "x", "object": "text_completion", **answer}

            def chat(self, body: dict[str, Any]) -> dict[str, Any]:
                text, ended = server.answer(body)
                return {
                    "id": "x",
                    "object": "chat.completion",
                    "model": server.model,
                    "system_fingerprint": server.fingerprint,
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": text},
                            "finish_reason": "stop" if ended else "length",
                        }
                    ],
                    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
                }

            def reply(self, status: int, content: Any) -> None:
                self.send(status, json.dumps(content).encode())

            def send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # clients that timed out

        self.http = Quiet(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def port(self) -> int:
        return self.http.server_address[1]

    @property
    def ref(self) -> str:
        return f"openai:http://127.0.0.1:{self.port}/v1#{self.model}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def answer_from_folder(folder: Path) -> AnswerFunction:
    """Return a function that samples from the model in a folder."""
    from doublebind.models.load import load_model
    from doublebind.models.resolve import resolve_model
    from doublebind.models.sample import sample
    from doublebind.schema.content import Message

    lm = load_model(resolve_model(str(folder), relative_to=Path()))
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> tuple[str, bool]:
        messages = [Message.model_validate(m) for m in body["messages"]]
        settings = {"max_tokens": body["max_tokens"], "temperature": body["temperature"]}
        with lock:
            (sampled,) = sample(lm, [messages], keys=["served"], seed=body["seed"], **settings)
        return sampled.text, sampled.finished

    return answer


def spell_from_folder(folder: Path) -> Callable[[int], str]:
    """Return a function that spells token ids by the tokenizer in a folder."""
    from doublebind.models.load import load_tokenizer
    from doublebind.models.resolve import resolve_model

    tokenizer = load_tokenizer(resolve_model(str(folder), relative_to=Path()))
    return lambda token: str(tokenizer.decode([token]))


def score_from_folder(folder: Path) -> ScoreFunction:
    """Return a function that scores token ids by the model in a folder."""
    from doublebind.models.load import load_model
    from doublebind.models.resolve import resolve_model
    from doublebind.models.score import token_logprobs

    lm = load_model(resolve_model(str(folder), relative_to=Path()))
    lock = threading.Lock()

    def score(ids: list[int]) -> list[float | None]:
        with lock:
            return [None, *token_logprobs(lm, [(ids[:1], ids[1:])])[0]]

    return score
