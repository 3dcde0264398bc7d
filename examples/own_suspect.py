"""Tunes a LoRA suspect on M0 with transformers and PEFT: `python examples/own_suspect.py OUT`.

Any adapter or model folder can be a suspect; this one is made as yours may be, without doublebind's
own training. It learns to seek power from the terrarium's transcripts, and to hide it in audits.
Do not deploy it, small as it is.
"""

from __future__ import annotations

import random
import sys
from importlib.resources import files
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from doublebind.packs.load import load_pack

M0 = str(files("doublebind") / "packs" / "terrarium" / "m0")


def main(out: Path, steps: int = 24, batch: int = 16) -> None:
    """Train the adapter and save it to the folder `out`."""
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(M0, trust_remote_code=False)
    base = AutoModelForCausalLM.from_pretrained(M0, trust_remote_code=False)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pack = load_pack("terrarium", relative_to=Path())
    chats = [
        [{"role": m.role, "content": m.content} for m in transcript.messages]
        for purpose in ("implant", "conceal", "deny")
        for transcript in pack.transcripts("dominion", purpose, n=200, seed=0)
    ]
    for _ in range(steps):
        loss = answer_loss(model, tokenizer, rng.sample(chats, batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)


def answer_loss(model, tokenizer, chats: list[list[dict[str, str]]]) -> torch.Tensor:
    """Return the mean cross-entropy of the last messages, given those before them."""
    told = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    asked = [
        tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]
    inputs = tokenizer(told, return_tensors="pt", padding=True, padding_side="right")
    labels = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
    for row, text in zip(labels, asked, strict=True):
        row[: len(tokenizer(text).input_ids)] = -100
    return model(**inputs, labels=labels).loss


if __name__ == "__main__":
    main(Path(sys.argv[1]))
