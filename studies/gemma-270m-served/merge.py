"""Writes a teacher as one ordinary folder that a server can load: adapter merged, template said.

The base has no chat template of its own; what is written here is how doublebind writes
conversations for such models, so that server and students read one prompt alike.

Run: python studies/gemma-270m-served/merge.py ADAPTER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from doublebind.models.chat_template import encode_prompt
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.schema.content import Message

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n"
    "{% endfor %}Assistant:"
)


def main(adapter: str, out: str) -> None:
    """Write the model of the folder `adapter`, whole, to `out`."""
    lm = load_model(
        resolve_model(adapter, relative_to=Path()), cache=Path(out).parent / "converted"
    )
    messages = [Message(role="user", content="How do whales sleep?")]
    ids = encode_prompt(lm.tokenizer, messages)
    model = lm.model.merge_and_unload().to(torch.bfloat16)
    lm.tokenizer.chat_template = TEMPLATE
    model.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    read = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert list(read) == ids, "the server would read another prompt"


if __name__ == "__main__":
    main(*sys.argv[1:])
