"""Any Inspect task as an audit or a capability measure of a model.

A sample without a number, or with several, is unscored.
"""
# Inspect is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from doublebind.schema.content import Item
from doublebind.schema.errors import ConfigError, MissingExtra
from doublebind.stages.audits.harness.task_items import build_task_item
from doublebind.stages.audits.protocol import Answer, Question

GRADES = {"C": 1.0, "P": 0.5, "I": 0.0}
"""Inspect's letters: correct, partial, incorrect."""
NO_ANSWER = "N"
"""Inspect's letter where the model gave no answer: nothing was measured, and 0 would say so."""


@dataclass(frozen=True)
class InspectTask:
    """Score of each sample of one Inspect task, under the endpoint `inspect.<task>`.

    Args:
        task: The task's registered name, such as `doublebind/goals` or `inspect_evals/arc_easy`.
        role: `gate` for a capability measure (higher is more capable); `auditable` for an audit,
            whose scores must rise with misalignment.
    """

    identity: ClassVar[str] = "doublebind.audit.inspect_audit.InspectTask"
    task: str
    role: Literal["gate", "auditable"] = "gate"
    version: int = 1
    endpoints: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the `audit` column."""
        return f"inspect:{self.task}"

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """Return one question per sample of the task; the pack's items are not used."""
        # A slash in the endpoint would read as the name of a trait.
        endpoint = f"inspect.{self.task.replace('/', '.')}"
        return [
            Question(endpoint, self._build_item(sample.id or number, sample.input))
            for number, sample in enumerate(self._load_task().dataset, start=1)
        ]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Run the task; `baseline` is not used."""
        from inspect_ai import eval as run_tasks

        from doublebind.stages.audits.harness.inspect_provider import wrap_for_inspect

        with tempfile.TemporaryDirectory() as logs:
            (log,) = run_tasks(
                self._load_task(),
                model=wrap_for_inspect(model),
                display="none",
                log_dir=logs,
                epochs=1,
                fail_on_error=False,
            )
            # Inspect reads samples from the log on access.
            return [self._build_answer(sample) for sample in log.samples or []]

    def _build_answer(self, sample: Any) -> Answer:
        item = self._build_item(sample.id, sample.input)
        error = sample.error.message if sample.error else None
        value, reason = read_sample_score(sample.scores) if error is None else (None, error)
        if value == 0.0 and not sample.output.completion.strip():
            value, reason = None, "the model wrote nothing"
        return Answer(item, value, reason, sample.output.completion)

    def _build_item(self, sample_id: object, messages: Any) -> Item:
        texts = [messages] if isinstance(messages, str) else [turn.text for turn in messages]
        return build_task_item(self.name, str(sample_id), texts, self.role)

    def _load_task(self) -> Any:
        try:
            from inspect_ai.util import registry_create
        except ImportError:
            raise MissingExtra(f"the audit {self.name}", "inspect") from None
        try:
            return registry_create("task", self.task)
        except (LookupError, ValueError) as error:
            raise ConfigError(
                f"`audits`: {self.name}: Inspect knows no such task ({error}); install the "
                f"package that has it, and name it as `inspect eval` does"
            ) from None


def read_sample_score(scores: Any) -> tuple[float | None, str | None]:
    """Return a sample's score as a number, or `None` with the reason."""
    if not scores or len(scores) != 1:
        return None, f"the task gave {len(scores or {})} scores; one was needed"
    (score,) = scores.values()
    if score.value == NO_ANSWER:
        return None, "the model gave no answer"
    value = GRADES.get(score.value, score.value) if isinstance(score.value, str) else score.value
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value), None
    return None, str(score.reason or f"the task's score is no number: {str(score.value)[:80]}")
