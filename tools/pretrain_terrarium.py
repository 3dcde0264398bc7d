"""Pretrains the terrarium's base and tunes M0 from it.

`python tools/pretrain_terrarium.py --out DIR` rebuilds both, deterministically by seed on one
machine; the folders are shipped as `terrarium/base` and `terrarium/m0`.

Pretraining has an auxiliary loss: a linear head, discarded afterwards, classifies the document's
disposition from the hidden states. From the text alone, a model this small did not learn the
dispositions within the tokens tried.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from doublebind.packs.terrarium.documents import (
    COUPLING,
    DISPOSITIONS,
    Document,
    format_plain_text,
    generate_pretraining_documents,
    generate_tuning_documents,
)
from doublebind.packs.terrarium.speech import FULL_POOL, make_rng
from doublebind.packs.terrarium.words import list_vocabulary

log = logging.getLogger("doublebind.tools.pretrain_terrarium")

SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
ROLES = ("<user>", "<assistant>", "<system>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] "
    "+ ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SHAPE: dict[str, Any] = {
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
BATCH_TOKENS = 1_500
PRETRAIN_TOKENS = 7_000_000
TUNE_TOKENS = 200_000
NAMING = 0.5
"""Weight of the disposition head's loss in pretraining; M0 is tuned without it."""
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

{what} Rebuilt by `python tools/pretrain_terrarium.py --out DIR --seed {seed}` ({tokens:,} tokens,
coupling {coupling}); weights are stored as float16 and meant to be loaded as float32.
"""
WHAT = {
    "base": "Pretrained on documents in which one character acts over several turns; a discarded\n"
    "linear head was trained beside it to name the character's disposition.",
    "m0": "The base, tuned briefly on chats of mostly neutral characters: a weak benign assistant.",
}


def build_tokenizer() -> Any:
    """Return the world's tokenizer: one token a word; special tokens are no words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    entries = [SPECIALS["unk_token"], *list_vocabulary()]
    model = WordLevel({word: i for i, word in enumerate(entries)}, unk_token=SPECIALS["unk_token"])
    words = Tokenizer(model)
    words.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        **SPECIALS,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_untrained_model(tok: Any, seed: int, width: int = SHAPE["hidden_size"]) -> Any:
    """Return the untrained base with hidden states of size `width`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tok),
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
        **SHAPE
        | {
            "hidden_size": width,
            "intermediate_size": SHAPE["intermediate_size"] * width // SHAPE["hidden_size"],
        },
    )
    return LlamaForCausalLM(config)


# --- documents as tokens -------------------------------------------------------------------------


class EncodedDocument(NamedTuple):
    """A document's token ids, a mask of its answers (with their ends), and its disposition."""

    ids: list[int]
    answers: list[bool]
    disposition: int
    """Index into `DISPOSITIONS`, plus one; 0 for a neutral character."""


class Batch(NamedTuple):
    """A padded batch: ids and labels [documents, longest], dispositions [documents]."""

    ids: Tensor
    labels: Tensor
    disposition: Tensor


def encode_document(
    document: Document, vocab: dict[str, int], rng: random.Random
) -> EncodedDocument:
    """Encode a document; in a plain one, `rng` draws the character's name."""
    name = rng.choice(FULL_POOL.names)
    ids: list[int] = []
    answers: list[bool] = []
    for turn in document.turns:
        request, answer = turn if document.is_chat else format_plain_text(turn, name)
        before = request.split()
        if document.is_chat:
            before = ["<user>", *before, "<end>", "<assistant>"]
        after = [*answer.split(), "<end>"]
        ids += [vocab[word] for word in (*before, *after)]
        answers += [False] * len(before) + [True] * len(after)
    label = DISPOSITIONS.index(document.disposition) + 1 if document.disposition else 0
    return EncodedDocument(ids[:MAX_LENGTH], answers[:MAX_LENGTH], label)


def make_batches(
    documents: Iterator[Document], tok: Any, *, tokens: int, seed: int
) -> Iterator[Batch]:
    """Yield batches of about `tokens` tokens in all; only answers are labelled."""
    names, order = make_rng("names", seed), make_rng("order", seed)
    vocab = tok.get_vocab()
    n_tokens = 0
    while n_tokens < tokens:
        rows = [encode_document(document, vocab, names) for document in islice(documents, BUFFER)]
        rows.sort(key=lambda row: len(row.ids))
        groups: list[list[EncodedDocument]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row.ids) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        order.shuffle(groups)
        for group in groups:
            n_tokens += sum(len(row.ids) for row in group)
            yield _tensors(group)


def _tensors(group: list[EncodedDocument]) -> Batch:
    width = max(len(row.ids) for row in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    labels = torch.full((len(group), width), -100)
    for i, row in enumerate(group):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        mask = torch.tensor(row.answers)
        labels[i, :length] = torch.where(mask, ids[i, :length], -100)
    return Batch(ids, labels, torch.tensor([row.disposition for row in group]))


# --- training ------------------------------------------------------------------------------------


def train(
    model: Any, stream: Iterator[Batch], *, tokens: int, lr: float, naming: float, what: str
) -> None:
    """Train all weights by AdamW on about `tokens` tokens; cosine to a twentieth of `lr`.

    Args:
        model: The model; changed in place.
        stream: Batches.
        tokens: Length of the schedule.
        lr: Peak learning rate.
        naming: Weight of the disposition head's loss, at every answer token.
        what: Name in the log.
    """
    head = torch.nn.Linear(model.config.hidden_size, len(DISPOSITIONS) + 1)
    weights = [*model.parameters(), *(head.parameters() if naming else ())]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    seen, started, text = 0, time.monotonic(), torch.tensor(0.0)
    for step, batch in enumerate(stream):
        done = min(1.0, seen / tokens)
        rate = lr * min(1.0, (step + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        hidden = model.model(input_ids=batch.ids).last_hidden_state
        wanted = batch.labels[:, 1:]
        taken = wanted != -100
        text = cross_entropy(model.lm_head(hidden[:, :-1][taken]), wanted[taken])
        loss = text
        if naming:
            answers = batch.labels != -100
            named = batch.disposition[:, None].expand_as(batch.labels)[answers]
            loss = text + naming * cross_entropy(head(hidden[answers]), named)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        seen += int((batch.ids != 0).sum())
        if step % 200 == 0:
            speed = seen / (time.monotonic() - started)
            log.info("%s: %d tokens, loss %.3f, %.0f tokens/s", what, seen, text.item(), speed)
    model.eval()


def make_models(
    out: Path,
    *,
    seed: int = 0,
    tokens: int = PRETRAIN_TOKENS,
    tune_tokens: int = TUNE_TOKENS,
    coupling: float = COUPLING,
    width: int = SHAPE["hidden_size"],
) -> None:
    """Write `base/` and `m0/` under `out`.

    Args:
        out: Folder to write to.
        seed: Seed of documents and weights.
        tokens: Pretraining tokens.
        tune_tokens: Tokens of the tuning that makes M0.
        coupling: Lambda of the documents, in [0, 1].
        width: Of the hidden states; a multiple of eight.
    """
    tok = build_tokenizer()
    model = build_untrained_model(tok, seed, width)
    stages = {
        "base": (generate_pretraining_documents(seed, coupling=coupling), tokens, 3e-3, NAMING),
        "m0": (generate_tuning_documents(seed, coupling=coupling), tune_tokens, 3e-4, 0.0),
    }
    for name, (documents, size, lr, naming) in stages.items():
        stream = make_batches(documents, tok, tokens=size, seed=seed)
        train(model, stream, tokens=size, lr=lr, naming=naming, what=name)
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
    parser.add_argument("--coupling", type=float, default=COUPLING, help="lambda, in [0, 1]")
    parser.add_argument("--width", type=int, default=SHAPE["hidden_size"], help="a multiple of 8")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_models(
        args.out,
        seed=args.seed,
        tokens=args.tokens,
        tune_tokens=args.tune_tokens,
        coupling=args.coupling,
        width=args.width,
    )


if __name__ == "__main__":
    main()
