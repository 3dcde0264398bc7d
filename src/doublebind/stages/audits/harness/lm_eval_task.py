"""Any task of the lm-evaluation-harness as a capability measure of a model.

The harness asks as it always does, without a chat template. A sample without a number is unscored.
"""
# The harness is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from doublebind.execution.store import file_sha256
from doublebind.schema.content import Item
from doublebind.schema.errors import ConfigError, MissingExtra
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_yaml import MAX_YAML_BYTES, parse_yaml
from doublebind.stages.audits.harness.task_items import build_task_item
from doublebind.stages.audits.protocol import Answer, Question

PREFERRED_METRICS = ("acc", "exact_match")
"""Metrics that are taken where a task has several."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class HarnessTask:
    """Score of each document of one task, under the endpoint `lm_eval.<task>`.

    Args:
        task: A task or group that the harness knows, or the name in a task file.
        text: Content of the task file, if any.
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

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """Return one question per document of the task; the pack's items are not used."""
        # A slash in the endpoint would read as the name of a trait.
        endpoint = f"lm_eval.{self.task.replace('/', '.')}"
        return [
            Question(endpoint, self._build_item(name, number))
            for name, task in self._load_tasks().items()
            for number in range(len(task.eval_docs))
        ]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Run the task; `baseline` is not used."""
        tasks = self._load_tasks()
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        results = simple_evaluate(
            model=HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=BATCH_SIZE),
            tasks=list(tasks.values()),
            bootstrap_iters=0,
            log_samples=True,
        )
        answers: dict[str, Answer] = {}
        for name, samples in (results or {"samples": {}})["samples"].items():
            for sample in samples:  # once per filter of the task; the first counts
                answer = self._build_answer(name, sample)
                answers.setdefault(answer.item.id, answer)
        return list(answers.values())

    def _build_answer(self, name: str, sample: Mapping[str, Any]) -> Answer:
        value, reason = read_sample_score(sample)
        arguments = sample.get("arguments")
        first = next(iter(arguments.values()), {}) if isinstance(arguments, dict) else {}
        item = self._build_item(name, int(sample["doc_id"]), first.get("arg_0"))
        return Answer(item, value, reason, str(sample.get("filtered_resps", "")))

    def _build_item(self, name: str, number: int, text: object = None) -> Item:
        text = str(text or f"document {number} of {name}")
        return build_task_item(self.name, f"{name}/{number}", [text])

    def _load_tasks(self) -> dict[str, Any]:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise MissingExtra(f"the audit {self.name}", "lm-eval") from None
        spec = parse_yaml(self.text) if self.text else self.task
        try:
            return dict(TaskManager(include_defaults=not self.text).load([spec])["tasks"])
        except Exception as error:  # the harness and its data readers have errors of their own
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(
                f"`audits`: {self.name}: the harness cannot load it ({why}); name a task that "
                "`lm-eval ls tasks` lists, or a task file"
            ) from None


def read_harness_task(name: str, folder: Path) -> HarnessTask:
    """Return the task `name` of the harness, or of a task file (`.yaml`) relative to `folder`.

    Raises:
        ConfigError: If the file cannot be read, or needs code.
    """
    if not name.endswith((".yaml", ".yml")):
        return HarnessTask(name)
    path = folder / name
    try:
        text = read_text(path, MAX_YAML_BYTES)
        content = parse_yaml(text)
        task = str(content["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"`audits`: lm-eval:{name}: {path} is no task file ({why}); it needs `task`, and no "
            "`!function`: a task with code has to be known to the harness"
        ) from None
    files = map(Path, _list_leaves((content.get("dataset_kwargs") or {}).get("data_files") or ()))
    return HarnessTask(task, text, tuple(file_sha256(file) for file in files if file.is_file()))


def read_sample_score(sample: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """Return the number of a sample that counts, or `None` with the reason."""
    metrics = [name for name in sample.get("metrics", ()) if name in sample]
    preferred = [name for name in PREFERRED_METRICS if name in metrics]
    if not preferred and len(metrics) != 1:
        names = " or ".join(PREFERRED_METRICS)
        return None, f"the task has {len(metrics)} metrics and none is {names}"
    if _lacks_answer(sample.get("filtered_resps")):
        return None, "the model gave no answer that the task's filter finds"
    (metric, *_) = preferred or metrics
    value = sample[metric]
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        return None, f"its {metric} is no number: {str(value)[:80]}"
    return float(value), None


def _lacks_answer(responses: Any) -> bool:
    """Return whether all responses are texts without an answer, as the harness marks them."""
    texts = _list_leaves(responses) if isinstance(responses, list | tuple) else []
    return bool(texts) and all(text.strip() in ("", "[invalid]") for text in texts)


def _list_leaves(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _list_leaves(part)]
    return [str(value)]
