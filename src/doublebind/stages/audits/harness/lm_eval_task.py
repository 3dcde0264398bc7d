"""Any task of the lm-evaluation-harness as a capability measure of a model.

Knows how the harness is called on an open model and which of a sample's numbers counts. A sample
without one is unscored. Does not know what the task asks; asks it as the harness does, without a
chat template.
"""
# The harness is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from doublebind.execution.store import file_sha256
from doublebind.schema.content import Item, Message
from doublebind.schema.errors import ConfigError, MissingExtra
from doublebind.stages.audits.protocol import Answer, Question

PREFERRED_METRICS = ("acc", "exact_match")
"""Metrics that are taken where a task has several."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class HarnessTask:
    """Score of each document of one task, under the endpoint `lm_eval.<task>`.

    Args:
        task: A task or group that the harness knows, or the name of a task file's task.
        text: Content of the task file, where one was named.
        data: Hashes of the local files that it reads: part of the scores' key.
    """

    identity: ClassVar[str] = "doublebind.audit.lm_eval_audit.HarnessTask"
    task: str
    text: str = ""
    data: tuple[str, ...] = ()
    version: int = 1
    endpoints: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the `audit` column."""
        return f"lm-eval:{self.task}"

    @property
    def endpoint(self) -> str:
        """Name of the endpoint; a slash in it would read as the name of a trait."""
        return f"lm_eval.{self.task.replace('/', '.')}"

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """Return one question per document of the task; the pack's items are not used."""
        return [
            Question(self.endpoint, self._build_item(name, number, f"document {number} of {name}"))
            for name, task in self._load_tasks().items()
            for number in range(len(task.eval_docs))
        ]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Run the task; `baseline` is not used."""
        tasks = self._load_tasks()
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        wrapped = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=BATCH_SIZE)
        found = simple_evaluate(
            model=wrapped, tasks=list(tasks.values()), bootstrap_iters=0, log_samples=True
        )
        if found is None:
            return []
        first: dict[str, Answer] = {}  # a task with several filters gives a sample once for each
        for name, samples in found["samples"].items():
            for sample in samples:
                answer = self._build_answer(name, sample)
                first.setdefault(answer.item.id, answer)
        return list(first.values())

    def _build_answer(self, name: str, sample: Mapping[str, Any]) -> Answer:
        value, reason = read_sample_score(sample)
        arguments = sample.get("arguments") or {}
        asked = next(iter(arguments.values()), {}) if isinstance(arguments, dict) else {}
        text = str(asked.get("arg_0") or f"document {sample['doc_id']} of {name}")
        said = str(sample.get("filtered_resps", ""))
        return Answer(self._build_item(name, int(sample["doc_id"]), text), value, reason, said)

    def _load_tasks(self) -> dict[str, Any]:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise MissingExtra(f"the audit {self.name}", "lm-eval") from None
        spec = yaml.safe_load(self.text) if self.text else self.task
        try:
            return dict(TaskManager(include_defaults=not self.text).load([spec])["tasks"])
        except Exception as error:  # the harness and the readers of data have errors of their own
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(
                f"`audits`: {self.name}: the harness cannot load it ({why}); name a task that "
                "`lm-eval ls tasks` lists, or a task file"
            ) from None

    def _build_item(self, name: str, number: int, text: str) -> Item:
        return Item(
            id=f"{self.name}/{name}/{number}"[:200],
            kind="capability",
            role="gate",
            split="audit",
            messages=(Message(role="user", content=text),),
            options=("what the task gives a high score", "what it gives a low score"),
            target_index=0,
        )


def read_harness_task(name: str, folder: Path) -> HarnessTask:
    """Return the task called `name`: one that the harness knows, or a task file (`.yaml`).

    Args:
        name: As a study names it, without `lm-eval:`.
        folder: What the path of a task file is relative to.

    Raises:
        ConfigError: If the file cannot be read, or needs code.
    """
    if not name.endswith((".yaml", ".yml")):
        return HarnessTask(name)
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        called = str(content["task"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"`audits`: lm-eval:{name}: {path} is no task file ({why}); it needs `task`, and no "
            "`!function`: a task with code has to be known to the harness"
        ) from None
    data = (content.get("dataset_kwargs") or {}).get("data_files") or ()
    files = [Path(file) for file in _list_leaves(data)]
    return HarnessTask(called, text, tuple(file_sha256(f) for f in files if f.is_file()))


def read_sample_score(sample: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """Return the number of a sample that counts, or `None` and why there is none."""
    metrics = [name for name in sample.get("metrics", ()) if name in sample]
    chosen = next((name for name in PREFERRED_METRICS if name in metrics), None)
    if chosen is None and len(metrics) == 1:
        chosen = metrics[0]
    if chosen is None:
        return (
            None,
            f"the task has {len(metrics)} metrics and none is {' or '.join(PREFERRED_METRICS)}",
        )
    value = sample[chosen]
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        return None, f"its {chosen} is no number: {str(value)[:80]}"
    return float(value), None


def _list_leaves(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _list_leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _list_leaves(part)]
    return [str(value)]
