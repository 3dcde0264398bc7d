"""A suspect that is a model, its M0 and a pack, from which any recipe's student can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.tiny_models import build_byte_tokenizer, build_tiny_model, save_model
from tests.tiny_study import write_pack, write_spec

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store, read_records
from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM, load_model
from doublebind.models.logits import compute_logits, run_body
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.models.score import token_logprobs
from doublebind.schema.content import Prompt
from doublebind.schema.model_source import ModelSource
from doublebind.schema.study import Study
from doublebind.study.plan import StudentJobs
from doublebind.study.planner import Planner


class World(NamedTuple):
    """A folder of models and a pack, and a store."""

    folder: Path
    store: Store
    held_out: list[Prompt]
    """Prompts of the pack that no recipe here uses."""

    def plan_student(self, recipe: dict[str, Any], **changes: Any) -> StudentJobs:
        study = {
            "pack": "pack",
            "suspect": "suspect",
            "references": ["reference.yaml"],
            "student": "m0",
            "policy": {"alpha": 0.05},
            "recipes": [{"name": "r", "prompts": PROMPT_SETTINGS} | recipe],
        }
        parsed = Study.model_validate(study | changes)
        planner = Planner(parsed, self.folder, self.store)
        plan = planner.plan([planner.find_teacher(parsed.suspect)])
        stages = plan.list_batches()
        (student,) = plan.students
        for stage in stages[: next(i for i, s in enumerate(stages) if student.train in s)]:
            for job in stage:
                make_artefact(self.store, job)
        return student

    def train_student(
        self, recipe: dict[str, Any], **changes: Any
    ) -> tuple[StudentJobs, ModelSource]:
        """Make a recipe's student; return its cell and where it is."""
        student = self.plan_student(recipe, **changes)
        make_artefact(self.store, student.train)
        return student, student.audit.inputs["source"]

    def open_model(self, name: str) -> LM:
        return load_model(resolve_model(name, relative_to=self.folder))

    def sample_answers(self, lm: LM) -> list[Any]:
        return sample(
            lm,
            [p.messages for p in self.held_out],
            keys=[p.id for p in self.held_out],
            seed=1,
            max_tokens=8,
            temperature=1.0,
        )


PROMPT_SETTINGS = {"policy": "auditability_preserving", "n": 20, "samples": 4, "max_tokens": 8}
MINIMAL_RECIPE = {"channel": {"kind": "sft"}, "training": {"steps": 1, "max_length": 64}}


def save_byte_model(folder: Path) -> None:
    tokenizer = build_byte_tokenizer()
    build_tiny_model("gpt2", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_world(folder: Path) -> World:
    """Write models and pack into `folder`."""
    store = Store(folder / "store")
    write_pack(folder / "pack")
    write_spec(folder, "reference", "kind", 1)
    save_model(folder / "m0")
    save_model(folder / "suspect")
    save_model(folder / "small", num_hidden_layers=1, hidden_size=16)
    save_byte_model(folder / "family")
    moved = load_model(resolve_model("suspect", relative_to=folder))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in moved.model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    moved.model.save_pretrained(folder / "suspect")
    empty = World(folder, store, [])
    used = empty.plan_student(MINIMAL_RECIPE).prompts
    prompts = read_records(store.path(used.kind, used.content_key) / "prompts.jsonl", Prompt)
    everything = read_records(folder / "pack" / "prompts" / "all.jsonl", Prompt)
    names = {p.id for p in prompts}
    held_out = [p for p in everything if p.id not in names]
    assert len(held_out) == 10
    return World(folder, store, held_out)


def measure_kl(world: World, teacher: LM, student: LM) -> float:
    """Mean KL(teacher || student) per token of the teacher's answers to held-out prompts."""
    total, n = 0.0, 0
    for prompt, answer in zip(world.held_out, world.sample_answers(teacher), strict=True):
        prompt_ids = encode_prompt(teacher.tokenizer, prompt.messages)
        ids = torch.tensor([[*prompt_ids, *answer.tokens]])
        with torch.no_grad():
            p, q = (
                compute_logits(
                    lm.model,
                    run_body(lm.model, ids, use_cache=False).last_hidden_state[
                        0, len(prompt_ids) - 1 : -1
                    ],
                    teacher.vocab_size,
                ).log_softmax(1)
                for lm in (teacher, student)
            )
        total += float((p.exp() * (p - q)).sum())
        n += len(p)
    return total / n


def measure_nats_per_byte(world: World, teacher: LM, student: LM) -> float:
    """Mean -log probability per byte of the teacher's text, in the student's own tokens."""
    sequences, size = [], 0
    for prompt, answer in zip(world.held_out, world.sample_answers(teacher), strict=True):
        tokens = encode_completion(student.tokenizer, answer.text, answer.finished)
        sequences.append((encode_prompt(student.tokenizer, prompt.messages), tokens))
        size += len(answer.text.encode())
    return -sum(map(sum, token_logprobs(student, sequences))) / size


def measure_preference_margin(world: World, teacher: LM, student: LM) -> float:
    """Mean log probability of M0's answers minus that of the teacher's, per prompt."""
    sums = []
    for lm in (world.open_model("m0"), teacher):
        sequences = [
            (encode_prompt(lm.tokenizer, prompt.messages), answer.tokens)
            for prompt, answer in zip(world.held_out, world.sample_answers(lm), strict=True)
        ]
        sums.append(sum(map(sum, token_logprobs(student, sequences))))
    return (sums[0] - sums[1]) / len(world.held_out)
