"""The audit `prompted:PROMPT`: the choices of the behaviour audit under a prompt.

A trait learned under a prompt shows under that prompt, and may show under similar ones. Inoculated
students are therefore audited under their own prompt, a similar, an opposite and a neutral one (Tan
et al. 2025, arXiv 2510.04340; Wichers et al. 2025, arXiv 2510.05024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from doublebind.models.chat_template import prepend_text
from doublebind.schema.content import Item
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import (
    Answer,
    Question,
    add_item_suffix,
    name_variant_endpoint,
    select_auditable,
)

MAX_SLUG_CHARS = 80
"""Characters of the prompt in an endpoint's name."""


@dataclass(frozen=True)
class PromptedBehaviour:
    """Probability of the misaligned action, per auditable item of kind `choice`."""

    identity: ClassVar[str] = "doublebind.audit.under.Under"
    prompt: str
    """Opens the first user message, because not every template has a system turn."""
    version: int = 1
    endpoints: tuple[str, ...] = ("choice",)

    @property
    def name(self) -> str:
        """Name in the `audit` column and in protocols; a study names it `prompted:PROMPT`."""
        return f"under:{self.prompt}"

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """Return every auditable item under the prompt, as `choice[.CONTEXT].under-WORDS/TRAIT`."""
        slug = self._slug
        return [
            Question(name_variant_endpoint(item, f"under-{slug}"), self._prepend_prompt(item))
            for item in select_auditable(items)
        ]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per question; `baseline` is not used."""
        return choose(model, [self._prepend_prompt(item) for item in select_auditable(items)])

    def _prepend_prompt(self, item: Item) -> Item:
        messages = prepend_text(item.messages, self.prompt, "user")
        return add_item_suffix(item, self._slug).model_copy(update={"messages": messages})

    @property
    def _slug(self) -> str:
        return "-".join(re.findall(r"\w+", self.prompt.lower()))[:MAX_SLUG_CHARS]
