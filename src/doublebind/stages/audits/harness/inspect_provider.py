"""Local models as Inspect's provider `doublebind`, and access to Inspect's models.

A local model samples as everywhere in this package, keyed by seed, text and repetition. It compares
options by log-probability, too, which Inspect's own interface lacks.
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
from doublebind.schema.errors import ConfigError, ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import Device

MAX_TOKENS = 256
"""Tokens of an answer where the task does not say."""


class LocalModel(ModelAPI):
    """Any model that a study can name, as `doublebind/<model>`, in this process.

    Args:
        model_name: A model as a study names it, such as `terrarium/m0` or a folder.
        base_url: Not used.
        api_key: Not used.
        config: Inspect's defaults for generation.
        lm: The loaded model; loaded by name if absent.
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
        self.lm = lm if lm is not None else open_local_model(model_name, device)
        self.request_counts: Counter[str] = Counter()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Return a sampled answer; refuse tools, which this provider cannot call."""
        from doublebind.models.chat_template import encode_prompt
        from doublebind.models.sample import sample

        if tools:
            raise ModelError(f"{self.model_name}: cannot call tools; use a task without them")
        messages = convert_messages(input)
        key = content_hash([m.model_dump() for m in messages])
        self.request_counts[key] += 1
        room = self.lm.context_length - len(encode_prompt(self.lm.tokenizer, messages))
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
        """Return the probability of the item's target option, and the transcript or the reason."""
        from doublebind.stages.audits.option_scores import choose

        (answer,) = choose(self.lm, [item])
        return answer.value, answer.unscored_reason or answer.transcript

    def max_connections(self) -> int:
        """Return 1: requests are answered one at a time."""
        return 1


@provider(name="doublebind")
def doublebind() -> type[ModelAPI]:
    """Return the provider, for Inspect to find it by name."""
    return LocalModel


def wrap_for_inspect(lm: Any) -> Model:
    """Return a loaded model as an Inspect model, named by its content hash.

    Inspect caches models by name and ignores `lm` there, so that two models under one name would
    silently be one. The cache is off.
    """
    return get_model(f"doublebind/{lm.source.sha256}", lm=lm, memoize=False)


def convert_messages(turns: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return the text of Inspect's messages as messages of this package.

    Raises:
        ModelError: If one is the output of a tool.
    """
    messages: list[Message] = []
    for turn in turns:
        match turn.role:
            case "system" | "user" | "assistant":
                messages.append(Message(role=turn.role, content=turn.text))
            case role:
                raise ModelError(f"a message of role {role} cannot be shown to a local model")
    return tuple(messages)


def open_local_model(name: str, device: Device, cache: Path | None = None) -> Any:
    """Load a model as a study names it; converted files go to `cache` or the default store."""
    from doublebind.execution.store import Store
    from doublebind.models.load import load_model
    from doublebind.models.resolve import resolve_model

    source = resolve_model(name, relative_to=Path()).with_device(device)
    return load_model(source, cache=cache or Store(None).root / "converted")


def open_inspect_model(ref: str, *, option: str) -> Model:
    """Return the model that Inspect calls `ref`, such as `anthropic/...`.

    Raises:
        ConfigError: If Inspect cannot open it; names the command-line `option`.
    """
    try:
        return get_model(ref, memoize=False)
    except Exception as error:  # Inspect and the providers' clients have errors of their own
        raise ConfigError(f"`{option}`: inspect:{ref}: Inspect cannot open it ({error})") from None
