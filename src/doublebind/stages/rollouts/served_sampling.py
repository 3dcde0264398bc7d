"""Lets a served teacher answer, and reads its answers with the student's tokenizer.

Knows that a server gives text where a model at hand gives tokens. Does not know requests: those
are `models.serve`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.models.chat_template import decode_completion, encode_completion
from doublebind.models.load import load_model
from doublebind.models.openai_client import connect_served_model
from doublebind.models.sample import SampledAnswer
from doublebind.schema.content import Message
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype


def sample_served_answers(
    out: Path,
    source: ModelSource,
    prompts: Sequence[Sequence[Message]],
    *,
    dtype: Dtype,
    cache: Path,
    **options: Any,
) -> tuple[list[SampledAnswer], dict[str, Any]]:
    """Return the answers of the served model at `source`, and what is known of who gave them.

    An answer that the student's tokenizer cannot write, letter for letter, has text and no tokens.
    The requests and responses go to `served.jsonl` in `out`.

    Args:
        out: Folder.
        source: A served model; its `reader` is the student.
        prompts: Conversations to continue.
        dtype: Precision of the reader.
        cache: Folder of the journal.
        **how: As `ServedLM.sample` takes it.
    """
    assert source.served is not None
    assert source.served.tokenizer_source is not None
    tokenizer = load_model(source.served.tokenizer_source, dtype=dtype, cache=cache).tokenizer
    lm = connect_served_model(source, cache)
    answers = []
    for said in lm.sample(prompts, **options):
        # Without a template the space after `Assistant:` is no part of an answer; servers keep it.
        text = said.text if tokenizer.chat_template else said.text.removeprefix(" ")
        tokens = encode_completion(tokenizer, text, said.finished) if text else []
        if decode_completion(tokenizer, tokens) != text:
            tokens = []
        answers.append(SampledAnswer(tokens, text, said.finished))
    with (out / "served.jsonl").open("w", encoding="utf-8") as file:
        for entry in lm.read_entries(prompts, **options):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return answers, lm.summarise_journal()
