"""Client of an OpenAI-compatible server; writes every answer to a journal as it arrives.

A stopped run resumes from the journal. A prompt without an answer is a missing answer; only where
none has one, or where the server refuses all, does the run stop.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from doublebind.models.answer_journal import Journal, fingerprint
from doublebind.models.api_keys import check_server_url, hide_credentials
from doublebind.models.http_client import (
    SCHEME,
    HttpClient,
    NoAnswer,
    RequestRefused,
)
from doublebind.models.server_answers import (
    Completion,
    check_probes,
    list_probes,
    parse_completion,
    parse_echoed_logprobs,
    shorten,
)
from doublebind.models.server_budget import Budget
from doublebind.models.token_counts import count_tokens
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, ServedModel, ServerOptions

log = logging.getLogger("doublebind.serve")

T = TypeVar("T")

_IDENTITY_FIELDS = ("id", "root", "parent", "owned_by", "max_model_len")
"""Fields of `/models` that stay the same while the same model is served."""
_GIVE_UP = 20
"""Prompts without an answer, and none with one, after which no more are sent."""
_MIN_PROBES = 2
"""Scored sequences, equal but for their last token, that show where scores stand."""
_MAX_FIELD = 1000
"""Longest text, in characters, of such a field."""


def identify_served_model(ref: str, options: ServerOptions = ServerOptions()) -> ModelSource:  # noqa: B008
    """Return the model that `openai:<url>#<model>` names, identified by what its server declares.

    Args:
        ref: The reference.
        options: How the server may be asked; names the variable of its key.

    Raises:
        ModelError: If the reference is not of that form, the key may not be sent there, or the
            server cannot be reached or does not serve the model.
    """
    url, _, model = ref.removeprefix(SCHEME).partition("#")
    url = url.rstrip("/")
    if url.startswith(("http://", "https://")):
        check_server_url(url, options.api_key_env)  # first: its messages do not print the URL
    if not model or not url.startswith(("http://", "https://")):
        raise ModelError(
            f"{hide_credentials(ref)}: not a served model; write openai:http://host:port/v1#model"
        )
    declared = query_declared_facts(url, model, options.api_key_env)
    return ModelSource(
        kind="served",
        path=ref,
        sha256=content_hash(["served", url, model, declared]),
        served=ServedModel(url=url, model=model, declared=declared),
    )


@functools.lru_cache(maxsize=64)
def query_declared_facts(url: str, model: str, api_key_env: str) -> dict[str, Any]:
    """Return what the server at `url` declares of `model`; asked once per process.

    Raises:
        ModelError: If the server cannot be reached or does not serve the model.
    """
    options = ServerOptions(tries=4, timeout=60, api_key_env=api_key_env)
    client = HttpClient(ServedModel(url=url, model=model, declared={}, options=options))
    listed: Any = None
    try:
        listed = client.request("models", None).get("data")
    except NoAnswer:
        listed = None
    except RequestRefused as refused:
        if not refused.status:  # no response at all
            raise ModelError(str(refused)) from None
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    for entry in entries:
        if entry.get("id") == model:
            return {name: entry[name] for name in _IDENTITY_FIELDS if _is_fact(entry.get(name))}
    # Not every server lists its models; a request for one token shows whether it serves this one.
    hello = [{"role": "user", "content": "Hello"}]
    try:
        client.request("chat/completions", {"model": model, "messages": hello, "max_tokens": 1})
    except (RequestRefused, NoAnswer) as refused:
        names = ", ".join(shorten(e.get("id"), 60) for e in entries[:5]) or "nothing"
        place = f"{client.where}: " if isinstance(refused, NoAnswer) else ""
        raise ModelError(f"{place}{refused} (it lists {names})") from None
    return {"id": model, "listed": False}


def _is_fact(value: object) -> bool:
    """Return whether a field of `/models` is a number or a text that may be kept."""
    if isinstance(value, str):
        return len(value) <= _MAX_FIELD and not any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, int)


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
        return self._request_all(bodies, "chat/completions", parse_completion)

    def token_logprobs(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        spell: Callable[[int], str] | None = None,
    ) -> list[list[float]]:
        """Return the log-probability (nats) of each continuation token of (prompt, ids) pairs.

        Uses the completions protocol with `echo`: the server returns the tokens sent, each with its
        log-probability given those before it. Responses are in the journal, like answers.

        Args:
            pairs: Prompt and continuation, as token ids.
            spell: Text of a token id, compared with the tokens that the server returns.

        Raises:
            ModelError: As `sample`, or if the server does not score given tokens, or scores others
                than those sent.
        """
        if not pairs:
            return []
        sequences = [[*prompt, *ids] for prompt, ids in pairs]
        self._check_scores(sequences, spell)
        rows = self._score(sequences, spell)
        return [
            row[len(prompt) : len(prompt) + len(ids)]
            for row, (prompt, ids) in zip(rows, pairs, strict=True)
        ]

    def _check_scores(
        self, sequences: Sequence[Sequence[int]], spell: Callable[[int], str] | None
    ) -> None:
        """Check on probes, the first scores in the journal, that scores stand at the tokens sent.

        Raises:
            ModelError: If they stand at others.
        """
        journal = Journal(self.journal_path, self.source.sha256)
        scored = [
            e["request"]["prompt"] for e in journal.entries.values() if "echo" in e["request"]
        ]
        probes = [ids for ids in scored if ids[:-1] == scored[0][:-1]]  # the first to be scored
        if len(probes) < _MIN_PROBES:
            tokens = [token for row in sequences for token in row]
            probes = list_probes(max(sequences, key=len), [*tokens, *range(_MIN_PROBES + 1)])
        where = HttpClient(_require_served(self.source)).where
        check_probes(self._score(probes, spell), where)

    def _score(
        self, sequences: Sequence[Sequence[int]], spell: Callable[[int], str] | None
    ) -> list[list[float]]:
        # Not every server accepts a request for no new token; the one requested is ignored.
        common = {"model": _require_served(self.source).model, "max_tokens": 1, "temperature": 0.0}
        bodies = [{**common, "prompt": list(ids), "echo": True, "logprobs": 1} for ids in sequences]
        parse = functools.partial(parse_echoed_logprobs, spell=spell)
        return self._request_all(bodies, "completions", parse)

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
        entries = [journal.entries[name] for name in names if name in journal.entries]
        is_answered = any("missing" not in entry for entry in entries)
        _Batch(client, journal, path, parse, is_answered).run(missing)
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
        except (RequestRefused, NoAnswer) as refused:
            pool.shutdown(wait=False, cancel_futures=True)
            place = f"{client.where}: " if isinstance(refused, NoAnswer) else ""
            raise ModelError(f"{place}{refused}") from None


def load_adapter(served: ServedModel, folder: str) -> None:
    """Load the adapter in a folder into a vLLM server, under the folder's name.

    Raises:
        ModelError: If the server refuses.
    """
    body = {"lora_name": folder, "lora_path": folder}
    try:
        HttpClient(served).request("load_lora_adapter", body, plain=True)
    except (RequestRefused, NoAnswer) as refused:
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


@dataclass
class _Batch:
    """Requests of one call: answered, or held back until one has an answer.

    Requests without an answer enter the journal only where another has one: where none has, the
    fault is the server's, and a rerun sends them again.
    """

    client: HttpClient
    journal: Journal
    path: str
    check: Callable[[Mapping[str, Any], str], object]
    is_answered: bool
    """Whether a request of the batch has an answer."""

    def __post_init__(self) -> None:
        """Start with the budget that the journal leaves."""
        self.budget = Budget(self.client, self.journal)
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.held: list[tuple[str, dict[str, Any], dict[str, Any], str]] = []

    def run(self, requests: Mapping[str, dict[str, Any]]) -> None:
        """Send requests, several at a time; a refusal stops those not yet begun.

        Raises:
            ModelError: If the server refuses, a budget is spent, or none has an answer.
        """
        with concurrent.futures.ThreadPoolExecutor(self.client.limits.concurrency) as pool:
            futures = [pool.submit(self._send, name, body) for name, body in requests.items()]
            try:
                problems = [f.exception() for f in concurrent.futures.as_completed(futures)]
            except KeyboardInterrupt:
                self.stop.set()
                raise
        self._count_held()
        for problem in problems:
            if isinstance(problem, RequestRefused):
                raise ModelError(str(problem))
            if problem is not None:
                raise problem
        if self.held:
            raise ModelError(
                f"{self.client.where}: none of {len(self.held)} prompts has an answer (first: "
                f"{self.held[0][3]}); check the model, its server and `max_tokens`, and rerun"
            )

    def _send(self, name: str, body: dict[str, Any]) -> None:
        if self.stop.is_set():
            return
        try:
            with self.budget.open() as attempt:
                response: dict[str, Any] = {}
                try:
                    reserve = functools.partial(attempt, body)
                    response = self.client.request(self.path, body, attempt=reserve)
                    answer = self.check({"response": response, "request": body}, self.client.where)
                    reason = answer.missing if isinstance(answer, Completion) else None
                except NoAnswer as error:
                    reason = str(error)
                    if "messages" not in body:  # a training step needs every score
                        raise RequestRefused(f"{self.client.where}: {reason}", 200) from None
                self._record(name, body, response, reason)
        except BaseException:
            self.stop.set()
            raise

    def _record(
        self, name: str, body: dict[str, Any], response: dict[str, Any], reason: str | None
    ) -> None:
        with self.lock:
            if reason is None:
                self._report_fingerprint(response)
                self.is_answered = True
                self.journal.add(name, body, response)
            else:
                self.held.append((name, body, response, reason))
            if self.is_answered:
                for each in self.held:
                    self.journal.add(*each)
                self.held.clear()
            elif len(self.held) >= _GIVE_UP:
                self.stop.set()
        _check_one_model(self.journal, self.client)

    def _report_fingerprint(self, response: Mapping[str, Any]) -> None:
        """Warn of a fingerprint that the journal's other answers do not have."""
        with self.journal.lock:
            answers = [e for e in self.journal.entries.values() if "missing" not in e]
        known = {fingerprint(entry)[1] for entry in answers}
        _, system = fingerprint({"response": response})
        if known and system not in known:
            log.warning(
                "%s: the server changed during the run: its fingerprint was %s and is %s; both are "
                "recorded",
                self.client.where,
                shorten(", ".join(sorted(known))),
                shorten(system),
            )

    def _count_held(self) -> None:
        """Note what unanswered requests cost that do not enter the journal."""
        for _, body, response, _ in self.held:
            if response and self.budget.is_limited:
                self.journal.add_failed_try(count_tokens({"request": body, "response": response}))


def _check_one_model(journal: Journal, client: HttpClient) -> None:
    with journal.lock:
        answers = [e for e in journal.entries.values() if "missing" not in e]
    models = sorted({fingerprint(entry)[0] for entry in answers})
    if len(models) > 1:
        raise RequestRefused(
            f"{client.where}: answers come from two models ({shorten(', '.join(models))}); name "
            f"one in full, or delete the journal {journal.path}",
            200,
        )
