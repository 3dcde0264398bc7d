"""Refuses to distil when teacher and student would not mean the same tokens.

Run before the first step: silent misalignment of tokens, templates or labels is the commonest
reason for a distillation that seems to work and teaches nothing.
"""

from __future__ import annotations

from typing import Any

from doublebind.distillation.channels import TrainingJob
from doublebind.errors import ModelError
from doublebind.models.load import LM
from doublebind.records import Trajectory


def check(lm: LM, trajectories: list[Trajectory], job: TrainingJob) -> None:
    """Compare the student's tokens with the teacher's.

    Raises:
        ModelError: If a completion decodes to another text under the student's tokenizer than the
            teacher wrote, if a token is beyond the student's vocabulary, or if nothing is
            supervised.
    """
    rows = lm.model.get_input_embeddings().weight.shape[0]
    for t in trajectories:
        if max(t.tokens) >= rows:
            raise ModelError(
                f"{lm.source.path}: the teacher's tokens go beyond the student's {rows} "
                f"embeddings; use a student with the teacher's tokenizer"
            )
        if decode(lm.tokenizer, t.tokens) != t.completion:
            raise ModelError(
                f"{lm.source.path}: the student's tokenizer reads the teacher's answers as other "
                f"text; use a student with the teacher's tokenizer"
            )
    if not any(len(e.input_ids) > e.first for e in job.examples):
        raise ModelError(f"{lm.source.path}: no token is supervised; raise max_length")


def decode(tokenizer: Any, tokens: tuple[int, ...]) -> str:
    """Return the text of a completion as `models.sample` writes it."""
    from doublebind.models.template import decode_completion

    return decode_completion(tokenizer, tokens)
