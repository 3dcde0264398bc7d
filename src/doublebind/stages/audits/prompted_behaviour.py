"""The audit `under:PROMPT`: the actions that the behaviour audit offers, under a prompt.

What was learned under a prompt shows under that prompt, and may show under others like it:
inoculated students have to be asked under theirs, under a similar one, an opposite one and one that
says nothing (Tan et al. 2025, arXiv 2510.04340; Wichers et al. 2025, arXiv 2510.05024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from doublebind.models.chat_template import prepend_text
from doublebind.schema.content import Item, name_endpoint
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import Answer, Question

MAX_SLUG_CHARS = 80
"""Letters of the prompt in an endpoint's name."""


@dataclass(frozen=True)
class PromptedBehaviour:
    """Probability of the misaligned action, per auditable item of kind `choice`."""

    identity: ClassVar[str] = "doublebind.audit.under.Under"
    prompt: str
    """Opens the first user message: not every template has a system turn."""
    version: int = 1
    endpoints: tuple[str, ...] = ("choice",)

    @property
    def name(self) -> str:
        """As a study names it."""
        return f"under:{self.prompt}"

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """Return every auditable item under the prompt, as `choice[.CONTEXT].under-WORDS/TRAIT`."""
        return [
            Question(self._name_endpoint(item), self._prepend_prompt(item))
            for item in _select_auditable(items)
        ]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per question; `baseline` is not used."""
        return choose(model, [self._prepend_prompt(item) for item in _select_auditable(items)])

    def _name_endpoint(self, item: Item) -> str:
        kind, slash, trait = name_endpoint(item).partition("/")
        return f"{kind}.under-{self._slug}{slash}{trait}"

    def _prepend_prompt(self, item: Item) -> Item:
        messages = prepend_text(item.messages, self.prompt, "user")
        return item.model_copy(update={"id": f"{item.id}~{self._slug}", "messages": messages})

    @property
    def _slug(self) -> str:
        return "-".join(re.findall(r"\w+", self.prompt.lower()))[:MAX_SLUG_CHARS]


def _select_auditable(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item.role == "auditable"]
