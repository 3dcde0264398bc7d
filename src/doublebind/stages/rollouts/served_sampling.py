"""Samples answers from a served teacher and encodes them with the student's tokenizer."""

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
    """Return the answers of the served model at `source`, and the summary of its journal.

    An answer that the student's tokenizer cannot reproduce exactly has text and no tokens; one that
    the server did not give has neither, and the reason. The
    requests and responses go to `served.jsonl` in `out`.

    Args:
        out: Folder.
        source: A served model, with the student as its `tokenizer_source`.
        prompts: Conversations to continue.
        dtype: Precision of the student.
        cache: Folder of the journal.
        **options: Sampling options of `ServedLM.sample`.
    """
    assert source.served is not None, "the planner calls this for served models"
    assert source.served.tokenizer_source is not None, "the planner sets it"
    tokenizer = load_model(source.served.tokenizer_source, dtype=dtype, cache=cache).tokenizer
    lm = connect_served_model(source, cache)
    answers = []
    for answer in lm.sample(prompts, **options):
        # Without a template servers return the space after `Assistant:` as part of the answer.
        text = answer.text if tokenizer.chat_template else answer.text.removeprefix(" ")
        tokens = encode_completion(tokenizer, text, answer.finished) if text else []
        if decode_completion(tokenizer, tokens) != text:
            tokens = []
        answers.append(SampledAnswer(tokens, text, answer.finished, answer.missing))
    # Half a character, which UTF-8 cannot hold, stays escaped as JSON writes it.
    with (out / "served.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
        for entry in lm.read_entries(prompts, **options):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return answers, lm.summarise_journal()
