"""Client of an OpenAI-compatible server; writes every answer to a journal as it arrives.

Besides Ray and fsspec this is the only module that opens a connection. It handles limits, budgets
and the journal from which a stopped run resumes. Whatever a server returns is untrusted text.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import logging
import math
import os
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from doublebind.models.answer_journal import Journal, count_tokens, fingerprint, most_tokens
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, ServedModel, ServerOptions

log = logging.getLogger("doublebind.serve")

T = TypeVar("T")

SCHEME = "openai:"
_IDENTITY_FIELDS = ("id", "root", "parent", "owned_by", "max_model_len")
"""Fields of `/models` that stay the same while the same model is served."""
_MAX_RESPONSE_BYTES = 16 * 2**20
"""Largest response that is read, in bytes."""


class Completion(NamedTuple):
    """One answer of a server."""

    text: str
    finished: bool
    """Whether the answer ended by itself, not at the token limit, by the server's account."""


def identify_served_model(ref: str) -> ModelSource:
    """Return the model that `openai:<url>#<model>` names, identified by what its server declares.

    Raises:
        ModelError: If the reference is not of that form, or the server cannot be reached or does
            not serve the model.
    """
    url, _, model = ref.removeprefix(SCHEME).partition("#")
    if not model or not url.startswith(("http://", "https://")):
        raise ModelError(f"{ref}: not a served model; write openai:http://host:port/v1#model")
    url = url.rstrip("/")
    declared = query_declared_facts(url, model)
    return ModelSource(
        kind="served",
        path=ref,
        sha256=content_hash(["served", url, model, declared]),
        served=ServedModel(url=url, model=model, declared=declared),
    )


@functools.lru_cache(maxsize=64)
def query_declared_facts(url: str, model: str) -> dict[str, Any]:
    """Return what the server at `url` declares of `model`; asked once per process.

    Raises:
        ModelError: If the server cannot be reached or does not serve the model.
    """
    client = HttpClient(
        ServedModel(url=url, model=model, declared={}, options=ServerOptions(tries=4, timeout=60))
    )
    listed: Any = None
    try:
        listed = client.request("models", None).get("data")
    except _RequestRefused as refused:
        if not refused.status:  # no response at all
            raise ModelError(str(refused)) from None
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    for entry in entries:
        if entry.get("id") == model:
            return {name: entry[name] for name in _IDENTITY_FIELDS if entry.get(name) is not None}
    # Not every server lists its models; a request for one token shows whether it serves this one.
    hello = [{"role": "user", "content": "Hello"}]
    try:
        client.request("chat/completions", {"model": model, "messages": hello, "max_tokens": 1})
    except _RequestRefused as refused:
        names = ", ".join(str(e.get("id")) for e in entries[:5]) or "nothing"
        raise ModelError(f"{refused} (it lists {names})") from None
    return {"id": model, "listed": False}


@dataclass(frozen=True, eq=False)
class ServedLM:
    """A served model with its journal."""

    source: ModelSource
    journal_path: Path

    def sample(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        keys: Sequence[str],
        seed: int,
        max_tokens: int,
        temperature: float,
    ) -> list[Completion]:
        """Return one answer per prompt, in the order given, after writing each to the journal.

        A request has a seed per key, which a server may ignore: a run is repeatable because of the
        journal. A request made before is answered from there.

        Raises:
            ModelError: If the server refuses, does not respond or changes its model, or if the
                budget is spent. The journal keeps the answers so far; a rerun resumes from it.
        """
        bodies = self._build_requests(prompts, keys, seed, max_tokens, temperature)
        return self._request_all(bodies, "chat/completions", _parse_completion)

    def token_logprobs(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[list[float]]:
        """Return the log-probability (nats) of each continuation token of (prompt, ids) pairs.

        Uses the completions protocol with `echo`: the server returns the tokens sent, each with its
        log-probability given those before it. Responses are in the journal, like answers.

        Raises:
            ModelError: As `sample`, or if the server does not score given tokens.
        """
        # Not every server accepts a request for no new token; the one requested is ignored.
        common = {"model": _require_served(self.source).model, "max_tokens": 1, "temperature": 0.0}
        bodies = [
            {**common, "prompt": [*prompt, *ids], "echo": True, "logprobs": 1}
            for prompt, ids in pairs
        ]
        rows = self._request_all(bodies, "completions", _parse_echoed_logprobs)
        return [
            row[len(prompt) : len(prompt) + len(ids)]
            for row, (prompt, ids) in zip(rows, pairs, strict=True)
        ]

    def _request_all(
        self,
        bodies: Sequence[dict[str, Any]],
        path: str,
        parse: Callable[[Mapping[str, Any], str], T],
    ) -> list[T]:
        """Return the parsed response to each request, from the journal or else from the server."""
        client = HttpClient(_require_served(self.source))
        journal = Journal(self.journal_path, self.source.sha256)
        names = [journal.name(body) for body in bodies]
        missing = {n: b for n, b in zip(names, bodies, strict=True) if n not in journal.entries}
        _fill_journal(client, journal, missing, path, parse)
        return [parse(journal.entries[name], client.where) for name in names]

    def read_entries(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        keys: Sequence[str],
        seed: int,
        max_tokens: int,
        temperature: float,
    ) -> list[dict[str, Any]]:
        """Return the journal entries of `sample`: requests with their responses."""
        journal = Journal(self.journal_path, self.source.sha256)
        bodies = self._build_requests(prompts, keys, seed, max_tokens, temperature)
        return [journal.entries[journal.name(body)] for body in bodies]

    def _build_requests(
        self,
        prompts: Sequence[Sequence[Message]],
        keys: Sequence[str],
        seed: int,
        max_tokens: int,
        temperature: float,
    ) -> list[dict[str, Any]]:
        common = {"model": _require_served(self.source).model, "max_tokens": max_tokens}
        common |= {"temperature": temperature}
        return [
            {
                **common,
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "seed": _derive_seed(seed, key),
            }
            for messages, key in zip(prompts, keys, strict=True)
        ]

    def summarise_journal(self) -> dict[str, Any]:
        """Return fingerprints, number of answers, tokens and cost so far, from the journal."""
        return Journal(self.journal_path, self.source.sha256).summarise(
            _require_served(self.source)
        )


def post_requests(
    served: ServedModel, path: str, bodies: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the responses to free requests, in order, without a journal.

    Raises:
        ModelError: If the server refuses or does not respond.
    """
    client = HttpClient(served)
    with concurrent.futures.ThreadPoolExecutor(served.options.concurrency) as pool:
        futures = [pool.submit(client.request, path, body) for body in bodies]
        try:
            return [future.result() for future in futures]
        except _RequestRefused as refused:
            pool.shutdown(wait=False, cancel_futures=True)
            raise ModelError(str(refused)) from None


def load_adapter(served: ServedModel, folder: str) -> None:
    """Load the adapter in a folder into a vLLM server, under the folder's name.

    Raises:
        ModelError: If the server refuses.
    """
    body = {"lora_name": folder, "lora_path": folder}
    try:
        HttpClient(served).request("load_lora_adapter", body, plain=True)
    except _RequestRefused as refused:
        if "already been loaded" not in str(refused):  # by another worker, or an earlier run
            raise ModelError(
                f"{refused} (adapters need a server with --enable-lora, "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and the same store)"
            ) from None


def connect_served_model(source: ModelSource, cache: Path) -> ServedLM:
    """Return the served model at `source`, with its journal in the folder `cache`."""
    return ServedLM(source, cache / "served" / f"{source.sha256[:32]}.jsonl")


def _require_served(source: ModelSource) -> ServedModel:
    assert source.served is not None, "sources of kind `served` name their server"
    return source.served


def _derive_seed(seed: int, key: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:4]) & 0x7FFFFFFF


# --- requests ------------------------------------------------------------------------------------


class _RequestRefused(Exception):
    """The server refused, and a retry would not help."""

    def __init__(self, problem: str, status: int) -> None:
        """Keep the HTTP status; 0 where there was no response."""
        super().__init__(problem)
        self.status = status


class _Temporary(Exception):
    """The server did not answer, or may answer a retry."""

    def __init__(self, reason: str, status: int) -> None:
        """Keep the HTTP status; 0 where there was no response."""
        super().__init__(reason)
        self.status = status


def _fill_journal(
    client: HttpClient,
    journal: Journal,
    missing: Mapping[str, dict[str, Any]],
    path: str,
    check: Callable[[Mapping[str, Any], str], object],
) -> None:
    """Request what is missing, several at a time; the first problem stops those not yet begun."""
    budget = _Budget(client, journal)
    stop = threading.Event()

    def request(name: str, body: dict[str, Any]) -> None:
        if stop.is_set():
            return
        try:
            with budget.reserve(body):
                response = client.request(path, body)
                check({"response": response, "request": body}, client.where)
                journal.add(name, body, response)
                _check_one_model(journal, client)
        except BaseException:
            stop.set()
            raise

    with concurrent.futures.ThreadPoolExecutor(client.limits.concurrency) as pool:
        futures = [pool.submit(request, name, body) for name, body in missing.items()]
        try:
            problems = [f.exception() for f in concurrent.futures.as_completed(futures)]
        except KeyboardInterrupt:
            stop.set()
            raise
    for problem in problems:
        if isinstance(problem, _RequestRefused):
            raise ModelError(str(problem))
        if problem is not None:
            raise problem


def _check_one_model(journal: Journal, client: HttpClient) -> None:
    with journal.lock:
        models = sorted({fingerprint(entry)[0] for entry in journal.entries.values()})
    if len(models) > 1:
        raise _RequestRefused(
            f"{client.where}: answers come from two models ({', '.join(models)}); name one in "
            f"full, or delete the journal {journal.path}",
            200,
        )


def _parse_completion(entry: Mapping[str, Any], where: str) -> Completion:
    """Return the answer in a response.

    Raises:
        ModelError: If the response does not follow the protocol.
    """
    try:
        choice = entry["response"]["choices"][0]
        text = choice["message"]["content"]
        if text is not None and not isinstance(text, str):
            raise TypeError
        return Completion(text or "", choice.get("finish_reason") == "stop")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(f"{where}: an answer is not of the chat protocol's form") from None


def _parse_echoed_logprobs(entry: Mapping[str, Any], where: str) -> list[float]:
    """Return the log-probability of each token sent; 0 for the first, which has no context.

    Raises:
        ModelError: If the server did not score the tokens.
    """
    n_sent = len(entry["request"]["prompt"])
    try:
        row = entry["response"]["choices"][0]["logprobs"]["token_logprobs"]
        logprobs = [0.0, *(float(value) for value in row[1:n_sent])]
    except (KeyError, IndexError, TypeError, ValueError):
        logprobs = []
    if len(logprobs) != n_sent or not all(map(math.isfinite, logprobs)):
        raise ModelError(
            f"{where}: does not return log-probabilities of the {n_sent} tokens sent (`echo` with "
            f"`logprobs`); set `served.echo_logprobs: false` and use `sft` or `dpo`"
        )
    return logprobs


class _Budget:
    """Limits of tokens and money, for requests answered and in flight together."""

    def __init__(self, client: HttpClient, journal: Journal) -> None:
        self.client, self.journal, self.lock = client, journal, threading.Lock()
        self.in_flight: list[tuple[int, int]] = []

    def reserve(self, body: Mapping[str, Any]) -> _Reservation:
        """Reserve the most that a request can cost.

        Raises:
            _RequestRefused: If that is more than is left.
        """
        limits, most = self.client.limits, most_tokens(body)
        with self.lock, self.journal.lock:
            spent = [count_tokens(entry) for entry in self.journal.entries.values()]
            parts = [*spent, *self.in_flight, most]
            tokens = (sum(p[0] for p in parts), sum(p[1] for p in parts))
            over = None
            if limits.max_tokens is not None and sum(tokens) > limits.max_tokens:
                over = f"`served.max_tokens`: {limits.max_tokens}"
            cost = limits.cost(*tokens)
            if limits.max_cost is not None and cost is not None and cost > limits.max_cost:
                over = f"`served.max_cost`: {limits.max_cost:g}"
            if over:
                raise _RequestRefused(
                    f"{self.client.where}: {over} is spent after {len(spent)} answers, which are "
                    f"kept; raise it and rerun to go on",
                    200,
                )
            self.in_flight.append(most)
        return _Reservation(self, most)


@dataclass
class _Reservation:
    """Context of a request that releases its reservation at the end."""

    budget: _Budget
    most: tuple[int, int]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self.budget.lock:
            self.budget.in_flight.remove(self.most)


@dataclass
class HttpClient:
    """Requests to one server: rate limit, timeout, retries with backoff."""

    served: ServedModel
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0
    """Monotonic time before which no request begins."""

    @property
    def limits(self) -> ServerOptions:
        """Options of the server."""
        return self.served.options

    @property
    def where(self) -> str:
        """Reference of the model, for messages."""
        return f"{SCHEME}{self.served.url}#{self.served.model}"

    def request(
        self, path: str, body: Mapping[str, Any] | None, *, plain: bool = False
    ) -> dict[str, Any]:
        """Return the JSON object of the response, after retries if needed.

        With `plain` the response is not JSON, and the result is empty.

        Raises:
            _RequestRefused: If the server refuses, or all tries fail.
        """
        retrying = Retrying(
            stop=stop_after_attempt(self.limits.tries),
            wait=wait_random_exponential(multiplier=0.5, max=60.0),  # full jitter
            retry=retry_if_exception_type(_Temporary),
            before_sleep=self._log_failure,
            reraise=True,
        )
        try:
            return retrying(self._attempt, path, body, plain)
        except _Temporary as error:
            raise _RequestRefused(
                f"{self.where}: no answer after {self.limits.tries} tries ({error}); answers so "
                f"far are kept, rerun to go on",
                error.status,
            ) from None

    def _log_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.info("%s: try %d failed (%s)", self.where, state.attempt_number, error)

    def _attempt(self, path: str, body: Mapping[str, Any] | None, plain: bool) -> dict[str, Any]:
        self._wait()
        try:
            return self._once(path, body, plain)
        except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, ValueError) as error:
            # Connection lost, timeout, truncated JSON, or a SOCKS proxy without its extra.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise _Temporary(reason, 0) from None

    def _once(self, path: str, body: Mapping[str, Any] | None, plain: bool) -> dict[str, Any]:
        # Uncompressed, so that a small response cannot grow beyond the limit.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        key = os.environ.get(self.limits.api_key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        url = f"{self.served.url}/{path}"
        with self._client.stream(method, url, content=data, headers=headers) as response:
            if not response.is_success:
                raise self._failure(response)
            content = _read(response, _MAX_RESPONSE_BYTES)
        answer = {} if plain else json.loads(content)
        if not isinstance(answer, dict):
            raise ValueError("not a JSON object")
        return answer

    @functools.cached_property
    def _client(self) -> httpx2.Client:
        """HTTP client that keeps neither cookies nor connections between requests."""
        return httpx2.Client(
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=self.limits.timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            proxy=_environment_proxy(self.served.url),
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    def _failure(self, response: httpx2.Response) -> _Temporary | _RequestRefused:
        """Return the exception for an HTTP status; obey `Retry-After`."""
        status = response.status_code
        if status in (408, 409, 425, 429) or status >= 500:
            self._postpone(response.headers.get("Retry-After"))
            return _Temporary(f"HTTP {status}", status)
        try:
            text = " ".join(_read(response, 2000).decode("utf-8", "replace").split())[:300]
        except httpx2.HTTPError:
            text = ""
        remedy = "check the request's limits"
        if response.is_redirect:
            remedy = "name the address that it redirects to"
        elif status in (401, 403):
            remedy = f"set ${self.limits.api_key_env}"
        elif status == 404:
            remedy = "check the URL and the model's name"
        return _RequestRefused(f"{self.where}: HTTP {status} ({text}); {remedy}", status)

    def _wait(self) -> None:
        """Wait until the rate limit allows the next request."""
        gap = 60.0 / self.limits.requests_per_minute if self.limits.requests_per_minute else 0.0
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next_at)
            self.next_at = at + gap
        if at > now:
            time.sleep(at - now)

    def _postpone(self, retry_after: str | None) -> None:
        """Let no request begin before the server's `Retry-After` is over."""
        try:
            seconds = min(300.0, float(retry_after)) if retry_after else 0.0
        except ValueError:  # a date, by the server's clock
            seconds = 10.0
        if seconds:
            with self.lock:
                self.next_at = max(self.next_at, time.monotonic() + seconds)


def _environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, as urllib reads it.

    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` count, `ALL_PROXY` does not.
    """
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _read(response: httpx2.Response, limit: int) -> bytes:
    """Return the first `limit` bytes of a response's body, undecoded."""
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])
