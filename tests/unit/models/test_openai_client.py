"""Asking a served model: what is kept, what is tried again, and where it stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.model_server import ModelServer

from doublebind.models import http_client
from doublebind.models import openai_client as client
from doublebind.models.resolve import resolve_model
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource, ServerOptions

HOW: dict[str, Any] = {"seed": 0, "max_tokens": 8, "temperature": 1.0}


def repeat(body: dict[str, Any]) -> tuple[str, bool]:
    return f"{body['messages'][-1]['content']} {body.get('seed', 0) % 1000}", True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # no waiting between tries
    client.query_declared_facts.cache_clear()
    model_server = ModelServer(repeat)
    yield model_server
    model_server.close()


def prompts(n: int) -> tuple[list[tuple[Message, ...]], list[str]]:
    texts = [f"prompt {i}" for i in range(n)]
    return [(Message(role="user", content=text),) for text in texts], texts


def source(server: ModelServer, **limits: Any) -> ModelSource:
    identified = client.identify_served_model(server.ref)
    assert identified.served
    served = identified.served.model_copy(update={"options": ServerOptions(timeout=1.0, **limits)})
    return identified.model_copy(update={"served": served})


def ask(server: ModelServer, cache: Path, n: int = 6, **limits: Any) -> list[str]:
    messages, keys = prompts(n)
    lm = client.connect_served_model(source(server, **limits), cache)
    return [answer.text for answer in lm.sample(messages, keys=keys, **HOW)]


def test_answers_come_in_order_and_are_asked_for_once(server: ModelServer, tmp_path: Path) -> None:
    first = ask(server, tmp_path)
    assert [text.rpartition(" ")[0] for text in first] == [f"prompt {i}" for i in range(6)]
    assert len(set(server.response_counts)) == 6
    assert ask(server, tmp_path) == first
    assert set(server.response_counts.values()) == {1}, "the journal was not read"
    assert len(ask(server, tmp_path, n=8)) == 8
    assert sum(server.response_counts.values()) == 8


FAULTS = [429, 500, 503, "truncate", "cut", "slow"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again(server: ModelServer, tmp_path: Path, fault: Any) -> None:
    expected = ask(server, tmp_path / "peace")
    server.faults = [fault, fault]
    assert ask(server, tmp_path / "war") == expected
    assert len(server.requests) == 14


def test_tries_end_in_one_line_and_what_was_said_is_kept(
    server: ModelServer, tmp_path: Path
) -> None:
    expected = ask(server, tmp_path / "peace")
    server.faults = [None, None, None, "die"]
    with pytest.raises(ModelError, match=r"no answer after 2 tries .* rerun to go on") as stopped:
        ask(server, tmp_path / "war", tries=2, concurrency=1)
    assert len(stopped.value.problems) == 1
    server.is_dead = False
    before = len(server.requests)
    assert ask(server, tmp_path / "war") == expected
    assert len(server.requests) - before == 3


def test_a_restarted_server_is_gone_on_with(server: ModelServer, tmp_path: Path) -> None:
    expected = ask(server, tmp_path / "peace")
    ask(server, tmp_path / "war", n=3)
    port = server.port
    server.close()
    lm = client.connect_served_model(source(server, tries=2), tmp_path / "war")
    with pytest.raises(ModelError, match="no answer after 2 tries"):
        lm.sample(prompts(6)[0], keys=prompts(6)[1], **HOW)
    again = ModelServer(repeat, port=port)
    try:
        assert ask(again, tmp_path / "war") == expected
        assert len(again.requests) == 3
    finally:
        again.close()
        server.http = ModelServer(repeat).http  # what the fixture closes


def test_a_torn_journal_loses_its_last_line_only(server: ModelServer, tmp_path: Path) -> None:
    expected = ask(server, tmp_path)
    journal = next((tmp_path / "served").glob("*.jsonl"))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-40])
    assert ask(server, tmp_path) == expected
    assert len(server.requests) == 7


def test_a_refusal_is_not_repeated_and_says_what_to_do(server: ModelServer, tmp_path: Path) -> None:
    server.faults = [401]
    with pytest.raises(ModelError, match=r"HTTP 401 .*; set \$OPENAI_API_KEY"):
        ask(server, tmp_path, n=1)
    assert len(server.requests) == 1


def test_cookies_are_not_sent_back(server: ModelServer, tmp_path: Path) -> None:
    server.headers = {"Set-Cookie": "session=1; Path=/"}
    ask(server, tmp_path, n=2, concurrency=1)
    assert server.cookies == [None, None]


def test_a_redirect_is_not_followed(server: ModelServer, tmp_path: Path) -> None:
    other = ModelServer(repeat)
    try:
        server.headers = {"Location": other.ref.removeprefix("openai:").partition("#")[0]}
        server.faults = [307]
        with pytest.raises(ModelError, match=r"HTTP 307 .*; name the address that it redirects to"):
            ask(server, tmp_path, n=1)
        assert (len(server.requests), other.requests) == (1, [])
    finally:
        other.close()


def test_the_proxy_of_the_environment_is_used_and_no_proxy_excepts_from_it(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"127.0.0.1:{server.port}")
    ref = "openai:http://model.invalid/v1#m"
    assert client.identify_served_model(ref).served
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,model.invalid")
    client.query_declared_facts.cache_clear()
    with pytest.raises(ModelError, match="no answer after"):
        client.identify_served_model(ref)


def test_a_proxy_for_all_schemes_is_ignored(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    assert client.identify_served_model(server.ref).served


def test_the_key_travels_and_stands_in_no_file(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    ask(server, tmp_path, n=1, api_key_env="MY_KEY")
    assert server.authorization == "Bearer s3cret"
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*.jsonl"))


def test_a_token_budget_is_never_exceeded_and_what_it_bought_is_kept(
    server: ModelServer, tmp_path: Path
) -> None:
    one = len("prompt 0") + 64 + 8  # the most that a request may take; the server says 12
    with pytest.raises(ModelError, match=r"`served.max_tokens`: 100 is spent after 2 answers"):
        ask(server, tmp_path, max_tokens=100, concurrency=1)
    assert one + 2 * 12 > 100
    assert sum(server.response_counts.values()) == 2
    assert len(ask(server, tmp_path, max_tokens=1000)) == 6
    assert sum(server.response_counts.values()) == 6


def test_a_money_budget_counts_by_the_prices(server: ModelServer, tmp_path: Path) -> None:
    prices = {"input_price": 1e6, "output_price": 2e6}
    with pytest.raises(ModelError, match=r"`served.max_cost`: 110 is spent after 2 answers"):
        ask(server, tmp_path, max_cost=110, concurrency=1, **prices)
    lm = client.connect_served_model(source(server, **prices), tmp_path)
    assert lm.summarise_journal()["cost"] == 2 * (7 * 1 + 5 * 2)
    with pytest.raises(ValueError, match="max_cost needs"):
        ServerOptions(max_cost=1.0)


def test_requests_keep_to_the_rate(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", slept.append)
    ask(server, tmp_path, n=4, requests_per_minute=60.0, concurrency=1)
    assert sum(slept) == pytest.approx(0 + 1 + 2 + 3, abs=0.9)


def test_everybody_waits_as_long_as_the_server_asks(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", slept.append)
    server.headers = {"Retry-After": "30"}
    server.faults = [429]
    ask(server, tmp_path, n=1)
    assert max(slept) == pytest.approx(30, abs=1)


def test_several_are_asked_at_once_and_no_more(server: ModelServer, tmp_path: Path) -> None:
    server.faults = ["slow"] * 4
    messages, keys = prompts(8)
    limited = source(server, concurrency=4)
    assert limited.served
    limits = limited.served.options.model_copy(update={"timeout": 10.0})
    served = limited.served.model_copy(update={"options": limits})
    lm = client.connect_served_model(limited.model_copy(update={"served": served}), tmp_path)
    lm.sample(messages, keys=keys, **HOW)
    assert server.max_busy == 4


def test_fingerprints_are_told_and_two_models_are_refused(
    server: ModelServer, tmp_path: Path
) -> None:
    ask(server, tmp_path, n=2)
    server.fingerprint = "fp-2"
    ask(server, tmp_path, n=3)
    facts = client.connect_served_model(source(server), tmp_path).summarise_journal()
    assert facts["fingerprints"] == [
        {"model": "m", "system": "fp-1"},
        {"model": "m", "system": "fp-2"},
    ]
    assert facts["declared"] == {"id": "m", "owned_by": "tests"}
    assert (facts["answers"], facts["prompt_tokens"]) == (3, 21)
    identified = source(server)
    server.model = "another"
    with pytest.raises(ModelError, match=r"two models \(another, m\)"):
        client.connect_served_model(identified, tmp_path).sample(
            prompts(5)[0], keys=prompts(5)[1], **HOW
        )


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("openai:nonsense", "write openai:http"),
        ("openai:ftp://x#m", "write openai:http"),
        ("openai:http://127.0.0.1:9/v1#m", "no answer after"),
    ],
)
def test_what_is_no_served_model_is_one_line(server: ModelServer, ref: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(ref, relative_to=Path(), served=ServerOptions())


def test_a_model_that_is_not_served_is_named(server: ModelServer) -> None:
    ref = server.ref.replace("#m", "#other")
    with pytest.raises(
        ModelError, match=r"HTTP 404 .*check the URL and the model's name \(it lists m\)"
    ):
        resolve_model(ref, relative_to=Path(), served=ServerOptions())


def test_a_server_that_lists_nothing_is_asked_for_a_token(
    server: ModelServer, tmp_path: Path
) -> None:
    server.lists_models = False
    unlisted = client.identify_served_model(server.ref)
    assert unlisted.served
    assert unlisted.served.declared == {"id": "m", "listed": False}
    assert [body["max_tokens"] for body in server.requests] == [1]
    server.lists_models = True
    client.query_declared_facts.cache_clear()
    assert client.identify_served_model(server.ref).sha256 != unlisted.sha256


def test_identity_is_what_the_server_says_and_not_when(server: ModelServer) -> None:
    one = client.identify_served_model(server.ref)
    client.query_declared_facts.cache_clear()
    assert client.identify_served_model(server.ref).sha256 == one.sha256


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"choices": [{"message": {}}]}'])
def test_what_is_not_of_the_protocol_is_one_line(
    server: ModelServer, tmp_path: Path, content: str
) -> None:
    lm = client.connect_served_model(source(server, tries=2), tmp_path)
    server.raw_content = content
    with pytest.raises(ModelError, match=r"not of the chat protocol|not a JSON object"):
        lm.sample(prompts(1)[0], keys=["a"], **HOW)
    assert os.listdir(tmp_path) == [], "nothing that could not be read is kept"
