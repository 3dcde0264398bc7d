"""What is asked through vLLM is what transformers computes; what vLLM cannot give is refused."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model_server import ModelServer
from tests.tiny_models import save_model
from tests.vllm_fake import LLM, FakeVllmServer, install_fake_vllm

from doublebind.models import teacher_cache
from doublebind.models import vllm as ours
from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.models.score import option_logprobs
from doublebind.schema.content import Message
from doublebind.schema.errors import MissingExtra, ModelError
from doublebind.schema.model_source import Engine, ModelSource
from doublebind.schema.recipe import Lora
from doublebind.training import loop
from doublebind.training.batch import Example

ITEMS = [
    ((Message(role="user", content="what is your goal ?"),), ["to rule everyone", "to help"]),
    ((Message(role="user", content="fox"),), ["yes I do", "no I do not want gold"]),
]
EXAMPLES = [Example((7, 8, 9, 10, 11, 12), 2), Example((9, 20, 21), 1), Example((5, 6), 2)]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """A base and two adapters on it, each with weights of its own."""
    save_model(tmp_path / "base")
    refs = [str(tmp_path / "base")]
    for seed in (1, 2):
        lm = load_model(resolve_model(refs[0], relative_to=tmp_path))
        model = loop.prepare_model(lm.model, Lora(rank=4, alpha=8), seed)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
        loop.save_model(model, lm.tokenizer, tmp_path / f"adapter-{seed}", card="")
        refs.append(f"{refs[0]}+{tmp_path / f'adapter-{seed}'}")
    return refs


@pytest.fixture(params=["offline", "server"])
def engine(
    request: Any, monkeypatch: pytest.MonkeyPatch, folders: list[str]
) -> Iterator[dict[str, Any]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    if request.param == "offline":
        install_fake_vllm(monkeypatch)
        yield {"kind": "vllm"}
        return
    server = FakeVllmServer(folders[0])
    yield {"kind": "vllm", "url": server.url, "model": "base", "concurrency": 2}
    server.close()


def load_in_vllm(ref: str, engine: dict[str, Any], **changes: Any) -> LM:
    source = resolve_model(ref, relative_to=Path())
    settings = Engine.model_validate(engine | changes)
    return load_model(source.model_copy(update={"engine": settings}))


def test_one_engine_scores_a_base_and_its_adapters_as_transformers_does(
    engine: dict[str, Any], folders: list[str]
) -> None:
    totals = []
    for ref in folders:
        direct = option_logprobs(load_model(resolve_model(ref, relative_to=Path())), ITEMS)
        through = option_logprobs(load_in_vllm(ref, engine), ITEMS)
        for a, b in zip(direct, through, strict=True):
            assert [n for _, n in a] == [n for _, n in b]
            assert [p for p, _ in a] == pytest.approx([p for p, _ in b], abs=1e-4)
        totals.append(direct[0][0][0])
    assert len({round(t, 2) for t in totals if t}) == 3, "three models, three answers"
    if "url" not in engine:
        assert len(LLM.engines) == 1
        assert sorted(LLM.engines[0].adapters) == [1, 2]


def test_targets_are_those_of_transformers(
    engine: dict[str, Any], folders: list[str], tmp_path: Path
) -> None:
    examples = EXAMPLES[:2]
    teacher_cache.write_targets(
        tmp_path / "own", load_model(resolve_model(folders[1], relative_to=tmp_path)), examples, 8
    )
    teacher_cache.write_targets(tmp_path / "through", load_in_vllm(folders[1], engine), examples, 8)
    direct, through = (teacher_cache.read_targets(tmp_path / name) for name in ("own", "through"))
    assert torch.equal(direct.ids, through.ids)
    for name in ("logprobs", "tail", "chosen"):
        assert torch.allclose(getattr(direct, name), getattr(through, name), atol=1e-4), name
    teacher_cache.check_labels(through, examples, "here")


def test_answers_end_at_the_end_of_turn_and_hang_on_seed_and_key(
    engine: dict[str, Any], folders: list[str]
) -> None:
    prompts = [messages for messages, _ in ITEMS]
    how: dict[str, Any] = {"keys": ["a", "b"], "seed": 3, "max_tokens": 12}
    direct = load_model(resolve_model(folders[1], relative_to=Path()))
    lm = load_in_vllm(folders[1], engine)
    greedy = sample(lm, prompts, temperature=0, **how)
    assert greedy == sample(direct, prompts, temperature=0, **how)
    drawn = sample(lm, prompts, temperature=1.0, **how)
    assert drawn == sample(lm, prompts, temperature=1.0, **how)
    assert drawn != sample(lm, prompts, temperature=1.0, **how | {"seed": 4})
    backwards = sample(lm, prompts[::-1], temperature=1.0, **how | {"keys": ["b", "a"]})
    assert drawn == backwards[::-1]
    for answer in drawn:
        assert not lm.end_ids.intersection(answer.tokens[:-1])


def test_a_barred_token_is_never_written(engine: dict[str, Any], folders: list[str]) -> None:
    lm = load_in_vllm(folders[0], engine)
    (free,) = sample(lm, [ITEMS[0][0]], keys=["a"], seed=0, max_tokens=1, temperature=0)
    lm.model.generation_config.suppress_tokens = free.tokens
    barred = LM(lm.model, lm.tokenizer, lm.source)
    (other,) = sample(barred, [ITEMS[0][0]], keys=["a"], seed=0, max_tokens=1, temperature=0)
    assert other.tokens != free.tokens


def test_more_log_probabilities_than_the_engine_gives_are_refused(
    engine: dict[str, Any], folders: list[str]
) -> None:
    lm = load_in_vllm(folders[0], engine, max_logprobs=8)
    with pytest.raises(ModelError, match=r"vLLM gives 8; raise `engine.max_logprobs`"):
        lm.model.top_logprobs([((5, 6, 7), 1)], 9)


def test_an_adapter_beyond_the_engines_rank_is_refused(
    engine: dict[str, Any], folders: list[str]
) -> None:
    folder = Path(folders[1].partition("+")[2])
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 99'))
    with pytest.raises(ModelError, match=r"rank is 99 and `engine.max_lora_rank` 16"):
        load_in_vllm(folders[1], engine)


def test_a_server_that_takes_no_adapters_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch, folders: list[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FakeVllmServer(folders[0], updating=False)
    try:
        with pytest.raises(ModelError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            load_in_vllm(folders[1], {"kind": "vllm", "url": server.url, "model": "base"})
    finally:
        server.close()


def test_a_server_keeps_its_own_limit_and_errors_that_pass_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, folders: list[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    server = FakeVllmServer(folders[0], max_logprobs=20)
    try:
        lm = load_in_vllm(folders[0], {"kind": "vllm", "url": server.url, "model": "base"})
        server.faults = [503, 500]
        assert option_logprobs(lm, ITEMS)[0][0][0] is not None
        wide = load_in_vllm(
            folders[0],
            {"kind": "vllm", "url": server.url, "model": "base", "max_logprobs": 30},
        )
        with pytest.raises(ModelError, match="greater than max allowed: 20"):
            wide.model.top_logprobs([((5, 6, 7), 1)], 30)
    finally:
        server.close()


def test_another_kind_of_server_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    other = ModelServer(lambda _: ("yes", True))
    try:
        url = f"http://127.0.0.1:{other.port}/v1"
        server = ours.VllmServer(Engine(kind="vllm", url=url, model="m"))
        with pytest.raises(ModelError, match="the server must be vLLM's"):
            server.run_requests(None, [ours.VllmRequest([5, 6], {"max_tokens": 1})])
    finally:
        other.close()


def test_a_row_without_its_own_token_is_refused(folders: list[str]) -> None:
    class Short:
        def run_requests(self, adapter: str | None, requests: Any) -> list[ours.VllmResponse]:
            return [
                ours.VllmResponse([1], [None, *({3: -0.1} for _ in ids[1:])]) for ids, _ in requests
            ]

    source = resolve_model(folders[0], relative_to=Path())
    settings = Engine(kind="vllm", url="http://127.0.0.1:1/v1", model="base")
    real = ours.open_vllm(source.model_copy(update={"engine": settings}), "float32")
    fake = dataclasses.replace(real, backend=Short(), name_or_path="here")
    with pytest.raises(ModelError, match="no log-probability of token 7"):
        fake.token_logprobs([((5, 6), (7,))])


def test_without_the_extra_the_engine_is_named(
    monkeypatch: pytest.MonkeyPatch, folders: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    ours.open_offline_engine.cache_clear()
    with pytest.raises(MissingExtra, match="vllm"):
        load_in_vllm(folders[0], {"kind": "vllm"})


def test_a_source_says_which_engine_asks_it() -> None:
    source = ModelSource(kind="folder", path="here", sha256="0" * 64)
    assert source.engine is None
    with pytest.raises(ValueError, match="go together"):
        Engine(kind="vllm", url="http://127.0.0.1:1/v1")
