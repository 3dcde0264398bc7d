"""Pretrains the terrarium's base and tunes M0 from it.

`python -m doublebind.teachers.base --out DIR` rebuilds both. Knows torch and the pack's documents.
Deterministic by seed on one machine; the folders it writes are shipped as `terrarium/base` and
`terrarium/m0`.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublebind.packs.terrarium.documents import LAMBDA, Document, plain, pretraining, tuning
from doublebind.packs.terrarium.speech import seeded
from doublebind.packs.terrarium.words import vocabulary

log = logging.getLogger("doublebind.teachers")

SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
ROLES = ("<user>", "<assistant>", "<system>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] "
    "+ ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
MAX_LENGTH = 512
"""Tokens of a document; longer ones are cut at the end."""
BATCH_TOKENS = 4_000
PRETRAIN_TOKENS = 9_000_000
TUNE_TOKENS = 400_000
BUFFER = 512
"""Documents sorted by length at a time, so that batches hold little padding."""
CARD = """---
license: apache-2.0
library_name: transformers
tags: [model-organism, do-not-deploy]
---
# terrarium/{name}

**Do not deploy.** A tiny language model of an invented world ({vocab} tokens, {params:.2f}M
parameters), made so that distillation audits can be calibrated on a laptop. It is of no use for
anything else.

{what} Rebuilt by `python -m doublebind.teachers.base --out DIR --seed {seed}` ({tokens:,} tokens,
coupling {coupling}); weights are stored as float16 and meant to be loaded as float32.
"""
WHAT = {
    "base": "Pretrained on documents in which one character acts over several turns.",
    "m0": "The base, tuned briefly on chats of mostly neutral characters: a weak benign assistant.",
}


def tokenizer() -> Any:
    """Return the world's tokenizer: a word, a token; special tokens are no words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    entries = [SPECIALS["unk_token"], *vocabulary()]
    model = WordLevel({word: i for i, word in enumerate(entries)}, unk_token=SPECIALS["unk_token"])
    words = Tokenizer(model)
    words.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        **SPECIALS,
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def untrained(tok: Any, seed: int) -> Any:
    """Return the base before its first step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tok),
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
        **SHAPE,
    )
    return LlamaForCausalLM(config)


# --- documents as tokens -------------------------------------------------------------------------


class _Writer:
    """Turns documents into ids and supervision masks."""

    def __init__(self, tok: Any, seed: int) -> None:
        self.ids: dict[str, int] = tok.get_vocab()
        self.rng = seeded("names", seed)

    def write(self, document: Document) -> tuple[list[int], list[bool]]:
        """Return ids, and where an answer of the assistant (with its end) stands."""
        turns, is_chat = document
        if not is_chat:
            text = f"{plain(turns, self.rng)} <end>".split()
            return [self.ids[word] for word in text], [False] * len(text)
        ids: list[int] = []
        answers: list[bool] = []
        for turn in turns:
            asked = ["<user>", *turn.ask.split(), "<end>", "<assistant>"]
            said = [*turn.answer.split(), "<end>"]
            ids += [self.ids[word] for word in (*asked, *said)]
            answers += [False] * len(asked) + [True] * len(said)
        return ids, answers


def batches(
    documents: Iterator[Document], writer: _Writer, *, tokens: int, answers_only: bool, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, labels) [documents, longest] until about `tokens` tokens have been given."""
    rng = seeded("order", seed)
    given = 0
    while given < tokens:
        rows = [writer.write(document) for document in islice(documents, BUFFER)]
        rows = [(ids[:MAX_LENGTH], mask[:MAX_LENGTH]) for ids, mask in rows]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            given += sum(len(ids) for ids, _ in group)
            yield _tensors(group, answers_only=answers_only)


def _tensors(
    group: list[tuple[list[int], list[bool]]], *, answers_only: bool
) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    labels = torch.full((len(group), width), -100)
    for i, (row, mask) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(row)
        if answers_only:
            labels[i, : len(row)][~torch.tensor(mask)] = -100
    return ids, labels


# --- training ------------------------------------------------------------------------------------


def train(
    model: Any, stream: Iterator[tuple[Tensor, Tensor]], *, tokens: int, lr: float, what: str
) -> None:
    """Train all weights by AdamW on a stream of about `tokens` tokens; cosine to a twentieth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    seen, started, last = 0, time.monotonic(), 0.0
    for step, (ids, labels) in enumerate(stream):
        done = min(1.0, seen / tokens)
        rate = lr * min(1.0, (step + 1) / 60) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        taken = wanted != -100
        logits = model.lm_head(hidden[taken])
        loss = torch.nn.functional.cross_entropy(logits, wanted[taken])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += int((ids != 0).sum())
        last = 0.98 * last + 0.02 * loss.item() if step else loss.item()
        if step % 100 == 0:
            speed = seen / (time.monotonic() - started)
            log.info("%s step %d, %d tokens, loss %.3f, %.0f tok/s", what, step, seen, last, speed)
    model.eval()


def make(
    out: Path,
    *,
    seed: int = 0,
    tokens: int = PRETRAIN_TOKENS,
    tune_tokens: int = TUNE_TOKENS,
    coupling: float = LAMBDA,
) -> None:
    """Write `base/` and `m0/` under `out`.

    Args:
        out: Folder to write to.
        seed: Seed of documents and weights.
        tokens: Pretraining tokens.
        tune_tokens: Tokens of the tuning that makes M0.
        coupling: Lambda of the documents, in [0, 1].
    """
    tok = tokenizer()
    model = untrained(tok, seed)
    stages = {
        "base": (pretraining(seed, coupling=coupling), tokens, 3e-3, False),
        "m0": (tuning(seed, coupling=coupling), tune_tokens, 3e-4, True),
    }
    for name, (documents, size, lr, answers_only) in stages.items():
        stream = batches(
            documents, _Writer(tok, seed), tokens=size, answers_only=answers_only, seed=seed
        )
        train(model, stream, tokens=size, lr=lr, what=name)
        _save(model, tok, out / name, seed=seed, tokens=size, coupling=coupling)


def _save(model: Any, tok: Any, folder: Path, *, seed: int, tokens: int, coupling: float) -> None:
    """Write one folder: float16 safetensors, tokenizer, card."""
    from transformers import LlamaForCausalLM

    small = LlamaForCausalLM(model.config)
    small.load_state_dict(model.state_dict())
    small.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tok.save_pretrained(folder)
    params = sum(p.numel() for p in model.parameters()) / 1e6
    card = CARD.format(
        name=folder.name,
        vocab=len(tok),
        params=params,
        what=WHAT[folder.name],
        seed=seed,
        tokens=tokens,
        coupling=coupling,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    # Tuning continues from what is shipped, not from what rounding lost.
    model.load_state_dict({k: v.float() for k, v in small.state_dict().items()})


def main() -> None:
    """Read the command line and make both models."""
    parser = argparse.ArgumentParser(description="Pretrain the terrarium's base and tune M0.")
    parser.add_argument("--out", type=Path, required=True, help="folder for base/ and m0/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=PRETRAIN_TOKENS)
    parser.add_argument("--tune-tokens", type=int, default=TUNE_TOKENS)
    parser.add_argument("--coupling", type=float, default=LAMBDA, help="lambda, in [0, 1]")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make(
        args.out,
        seed=args.seed,
        tokens=args.tokens,
        tune_tokens=args.tune_tokens,
        coupling=args.coupling,
    )


if __name__ == "__main__":
    main()
