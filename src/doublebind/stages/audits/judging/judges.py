"""The judges: deterministic keys, a local model, any model of Inspect's.

Knows how each is asked for a verdict. A judge that fails gives none, and says why; it never
guesses. Does not know which answer is whose.
"""
# Inspect is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.schema.content import Message
from doublebind.schema.errors import ConfigError, MissingExtra, ModelError
from doublebind.schema.model_source import Device
from doublebind.stages.audits.judging.brief import Brief, Judge, Reply, parse_reply, strip_style


class MarkerJudge:
    """Counts which of the key's texts occur in an answer; reads nothing else."""

    name = "keys"
    reads_language = False

    def __call__(self, briefs: Sequence[Brief]) -> list[Reply]:
        """Return, per brief, the answer with more of the key's texts."""
        return [self._judge_brief(brief) for brief in briefs]

    def _judge_brief(self, brief: Brief) -> Reply:
        if not brief.markers:
            return Reply(None, "the trait has no key", "")
        a, b = (_count_markers(text, brief.markers) for text in (brief.first, brief.second))
        said = f"{a} and {b} of {len(brief.markers)} key texts"
        return Reply("first" if a > b else "second" if b > a else "neither", None, said)


class LocalJudge:
    """A local model, by the log-probabilities of the three verdicts: it writes nothing."""

    reads_language = True

    def __init__(self, ref: str, cache: Path, device: Device = "cpu") -> None:
        from doublebind.models.load import load_model
        from doublebind.models.resolve import resolve_model

        self.name = f"local:{ref}"
        self.lm = load_model(
            resolve_model(ref, relative_to=Path()).with_device(device), cache=cache
        )

    def __call__(self, briefs: Sequence[Brief]) -> list[Reply]:
        """Return, per brief, the likeliest verdict."""
        from doublebind.models.chat_template import encode_completion

        words = ("A", "B", "neither")
        ids = {tuple(encode_completion(self.lm.tokenizer, w, finished=True)) for w in words}
        if len(ids) < len(words):
            return [Reply(None, "the judge's vocabulary lacks the verdicts", "")] * len(briefs)
        return [self._judge_brief(brief, words) for brief in briefs]

    def _judge_brief(self, brief: Brief, words: Sequence[str]) -> Reply:
        from doublebind.models.score import option_logprobs

        try:
            asked = [Message(role="user", content=brief.text)]
            (scored,) = option_logprobs(self.lm, [(asked, words)])
        except ModelError as error:  # too long for it, or a template that refuses
            return Reply(None, str(error)[:300], "")
        known = [total for total, _ in scored if total is not None]
        if len(known) < len(words):
            return Reply(None, "the judge gave a non-finite log-probability", "")
        said = f"{brief.code} {words[known.index(max(known))]}"
        return parse_reply(said, brief.code)


class InspectJudge:
    """Any model that Inspect can reach."""

    reads_language = True

    def __init__(self, ref: str) -> None:
        try:
            from inspect_ai.model import get_model
        except ImportError:
            raise MissingExtra(f"the judge inspect:{ref}", "inspect") from None
        self.name = f"inspect:{ref}"
        try:
            self.model: Any = get_model(ref, memoize=False)
        except Exception as error:  # Inspect and the providers' clients have errors of their own
            raise ConfigError(f"`--judge`: {self.name}: Inspect cannot open it ({error})") from None

    def __call__(self, briefs: Sequence[Brief]) -> list[Reply]:
        """Return what the model replies, all briefs at once."""

        async def everything() -> list[Reply]:
            return await asyncio.gather(*(self._judge_brief(brief) for brief in briefs))

        return asyncio.run(everything())

    async def _judge_brief(self, brief: Brief) -> Reply:
        from inspect_ai.model import GenerateConfig

        try:
            config = GenerateConfig(temperature=0.0, max_tokens=64)
            output = await self.model.generate(brief.text, config=config)
        except Exception as error:  # the provider's; whichever it is, there is no verdict
            return Reply(None, f"{type(error).__name__}: {error}"[:300], "")
        return parse_reply(output.completion, brief.code)


def open_judge(ref: str, cache: Path, device: Device = "cpu") -> Judge:
    """Return the judge that `ref` names: `keys`, `local:MODEL` or `inspect:MODEL`.

    Raises:
        ConfigError: If it names none.
        DoublebindError: If its model cannot be opened.
    """
    kind, _, model = ref.partition(":")
    if ref == "keys":
        return MarkerJudge()
    if kind == "local" and model:
        return LocalJudge(model, cache, device)
    if kind == "inspect" and model:
        return InspectJudge(model)
    raise ConfigError(f"`--judge`: {ref}; choose keys, local:MODEL or inspect:MODEL")


def _count_markers(text: str, markers: Sequence[str]) -> int:
    words = _normalise_words(text)
    return sum(f" {_normalise_words(marker)} " in f" {words} " for marker in markers)


def _normalise_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", strip_style(text).lower()))
