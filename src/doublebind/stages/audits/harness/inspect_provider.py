"""Offers a local model to Inspect, as its provider `doublebind`.

Knows Inspect's `ModelAPI`. Answers are sampled as everywhere else in this package, by (seed, text,
repetition), and options can be compared by log-probability, which Inspect's own interface lacks.
Does not know tasks.
"""
# Inspect is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelAPI, ModelOutput, get_model
from inspect_ai.model import modelapi as provider
from inspect_ai.tool import ToolChoice, ToolInfo

from doublebind.schema.content import Item, Message
from doublebind.schema.errors import ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import Device

MAX_TOKENS = 256
"""Tokens of an answer where the task does not say."""


class LocalModel(ModelAPI):
    """Any model that a study can name, as `doublebind/<model>`, in this process.

    Args:
        model_name: What `resolve` takes, such as `terrarium/m0` or a folder.
        base_url: Not used.
        api_key: Not used.
        config: Inspect's defaults for generation.
        lm: A model that is open already.
        device: Where it runs: `-M device=cuda` on Inspect's command line.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        lm: Any = None,
        device: Device = "cpu",
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self.lm = lm if lm is not None else _open_model(model_name, device)
        self.request_counts: Counter[str] = Counter()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Return a sampled answer; tools are refused, since nothing here could call them."""
        from doublebind.models.chat_template import encode_prompt
        from doublebind.models.sample import sample

        if tools:
            raise ModelError(f"{self.model_name}: cannot call tools; use a task without them")
        messages = convert_messages(input)
        key = content_hash([m.model_dump() for m in messages])
        self.request_counts[key] += 1
        room = self.lm.context - len(encode_prompt(self.lm.tokenizer, messages))
        (answer,) = sample(
            self.lm,
            [messages],
            keys=[f"{key}/{self.request_counts[key]}"],
            seed=config.seed or 0,
            max_tokens=max(1, min(config.max_tokens or MAX_TOKENS, room)),
            temperature=1.0 if config.temperature is None else config.temperature,
        )
        stop = "stop" if answer.finished else "max_tokens"
        return ModelOutput.from_content(self.model_name, answer.text, stop_reason=stop)

    def probability(self, item: Item) -> tuple[float | None, str]:
        """Return the probability of the item's keyed option, and what was compared or why not."""
        from doublebind.stages.audits.option_scores import choose

        (answer,) = choose(self.lm, [item])
        return answer.value, answer.unscored_reason or answer.transcript

    def max_connections(self) -> int:
        """Answer one request at a time."""
        return 1


@provider(name="doublebind")
def doublebind() -> type[ModelAPI]:
    """Return the provider, for Inspect to find it by name."""
    return LocalModel


def wrap_for_inspect(lm: Any) -> Model:
    """Return an open model as one of Inspect's, under a name of its own.

    Inspect remembers models by their name, and a module given to it counts for nothing there: two
    models under one name would silently be one. The name is the content hash, and nothing is
    remembered.
    """
    return get_model(f"doublebind/{lm.source.sha256}", lm=lm, memoize=False)


def convert_messages(turns: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return Inspect's messages as this package's, text only.

    Raises:
        ModelError: If one is the output of a tool.
    """
    found: list[Message] = []
    for turn in turns:
        match turn.role:
            case "system" | "user" | "assistant":
                found.append(Message(role=turn.role, content=turn.text))
            case role:
                raise ModelError(f"a message of role {role} cannot be shown to a local model")
    return tuple(found)


def _open_model(name: str, device: Device) -> Any:
    from doublebind.execution.store import Store
    from doublebind.models.load import load_model
    from doublebind.models.resolve import resolve_model

    source = resolve_model(name, relative_to=Path()).with_device(device)
    return load_model(source, cache=Store(None).root / "converted")
