"""Models of real shapes with random weights, token rows of realistic lengths, and child processes.

Random weights cost what trained ones do. The teacher's final norm is scaled so that its next-token
entropy is a few nats, as a trained model's is, and not that of the uniform distribution.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# SmolLM2's (Allal et al. 2025, arXiv 2502.02737) and Qwen3's (Yang et al. 2025, arXiv 2505.09388)
# widths and depths, from the models' config.json; all with Llama's blocks and one vocabulary.
SHAPES = {
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3},
    "360m": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
             "num_attention_heads": 15, "num_key_value_heads": 5},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
VOCAB = 49152
PROMPT_SHARE = 0.4
RANK, ALPHA, LR = 8, 16.0, 1e-3


def model(shape: str, seed: int, dtype: str, *, sharp: float = 1.0, device: str = "cpu") -> Any:
    """A random model on `device`; `sharp` scales its final norm, hence its logits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **SHAPES[shape],
    )
    built = LlamaForCausalLM._from_config(
        config, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    built.model.norm.weight.data.mul_(sharp)
    built.config.name_or_path = built.name_or_path = shape
    return built.to(device).eval()


def weights(student: Any) -> dict[str, int]:
    """How many weights a token is multiplied with: of the body, and of the (tied) head."""
    inner = student.get_base_model() if hasattr(student, "get_base_model") else student
    head = inner.get_output_embeddings().weight.numel()
    plain = (p.numel() for name, p in inner.named_parameters() if "lora_" not in name)
    return {"body": sum(plain) - head, "head": head}


def tokenizer() -> Any:
    """A tokenizer of as many words as the models have rows; nothing here encodes text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def rows(n: int, tokens: int, seed: int) -> list[tuple[list[int], int]]:
    """Token ids with the index of the first supervised one: lengths within a quarter of `tokens`.

    Ids are Zipf-distributed, as words are.
    """
    rng = np.random.default_rng(seed)
    sampled = []
    for _ in range(n):
        length = int(tokens * rng.uniform(0.75, 1.25))
        ids = 4 + (rng.zipf(1.2, size=length) - 1) % (VOCAB - 4)
        sampled.append((ids.tolist(), max(1, round(PROMPT_SHARE * length))))
    return sampled


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    from doublebind.runs.provenance import cpu

    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory(device: str) -> int:
    """Most bytes this process ever held: of its GPU's memory, where it has one, else of its own."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved()
    return peak_rss()


def finished(device: str) -> None:
    """Wait until all work that was given to the device is done: clocks read before it are wrong."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_rss() -> int:
    """Most bytes this process ever held in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Child:
    """A process that takes one step each time it is told, so that rivals can alternate.

    What else the machine does then falls on both alike.
    """

    def __init__(self, script: str, *args: str) -> None:
        """Start `script` with the arguments and wait until it is ready to step."""
        self.process = subprocess.Popen(
            [sys.executable, script, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1",
                 "TRL_EXPERIMENTAL_SILENCE": "1"},
        )  # fmt: skip
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.report: dict[str, Any] = {}
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit("a worker died; see its stderr above")

    def step(self) -> None:
        """Let it take one step and note the seconds."""
        assert self.process.stdin
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        message = self._read()
        self.seconds.append(message["seconds"])
        self.cpu_seconds.append(message["cpu"])
        if "report" in message:
            self.report = message["report"]
            self.process.wait()

    def typical(self, *, cpu: bool = False) -> float:
        """The median step, by the clock or by processor time, without the first, which warms up.

        Processor time is of all threads. Where other processes take the cores by turns it is the
        steadier of the two.
        """
        taken = self.cpu_seconds if cpu else self.seconds
        return statistics.median(taken[1:] or taken)


def say(**facts: Any) -> None:
    """Tell the parent something."""
    print("@" + json.dumps(facts), flush=True)


def wait() -> None:
    """Wait to be told to step."""
    if not sys.stdin.readline():
        raise SystemExit("the parent is gone")


class Clock:
    """Times steps between the parent's orders, on a GPU to the end of its work."""

    def __init__(self, device: str) -> None:
        """Start nothing."""
        self.device = device

    def begin(self) -> None:
        """Say that all is ready, and wait for the first order."""
        say(ready=True)
        self.start()

    def start(self) -> None:
        """Wait for an order, then start the clocks."""
        wait()
        finished(self.device)
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def taken(self) -> dict[str, float]:
        """What the step took so far, by the clock and by processor time."""
        finished(self.device)
        return {
            "seconds": time.perf_counter() - self.began,
            "cpu": time.process_time() - self.cpu,
        }

    def turn(self) -> None:
        """Tell what the step took, and wait for the next order."""
        say(**self.taken())
        self.start()

    def end(self, report: Callable[[], dict[str, Any]]) -> None:
        """Tell what the last step took, with a report made after it."""
        taken = self.taken()
        say(**taken, report=report())


def training(args: Any) -> Any:
    """Settings of this package, with checkpoints after all steps but the last to pass the turn."""
    from doublebind.schema.recipe import Training

    checkpoints = tuple(range(1, args.steps))
    return Training(
        steps=args.steps, batch=args.batch, lr=LR, max_length=4096, checkpoints=checkpoints
    )


def trl_settings(args: Any) -> dict[str, Any]:
    """TRL's settings: the same optimiser, no activation checkpointing, nothing written."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": args.steps,
        "per_device_train_batch_size": args.batch,
        "learning_rate": LR,
        "warmup_steps": 1,
        "adam_beta2": 0.95,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "use_cpu": args.device == "cpu",
        "bf16": args.dtype == "bfloat16",
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def peft_lora() -> Any:
    """The adapters that this package attaches, as PEFT's configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=RANK,
        lora_alpha=int(ALPHA),
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def step_against_step(
    about: str | None,
    script: str,
    ours: Callable[[argparse.Namespace], None],
    peer: Callable[[argparse.Namespace], None],
) -> None:
    """Be the script that compares one training step of two workers, or one of its workers."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("ours", "peer"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--student", choices=SHAPES, default="135m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.role:
        return {"ours": ours, "peer": peer}[args.role](args)
    common = []
    for name in ("steps", "batch", "tokens", "dtype", "student", "device"):
        common += [f"--{name}", str(getattr(args, name))]
    before = machine()
    mine, theirs = (Child(script, "--role", role, *common) for role in ("ours", "peer"))
    for _ in range(args.steps):
        mine.step()
        theirs.step()
    report = {
        "ratio": theirs.typical() / mine.typical(),
        "cpu_ratio": theirs.typical(cpu=True) / mine.typical(cpu=True),
        "rss_ratio": mine.report["rss"] / theirs.report["rss"],
        "step_seconds": {"ours": mine.seconds, "peer": theirs.seconds},
        "step_cpu_seconds": {"ours": mine.cpu_seconds, "peer": theirs.cpu_seconds},
        "reports": {"ours": mine.report, "peer": theirs.report},
        "settings": {k: v for k, v in vars(args).items() if k not in ("role", "json")},
        "machine": before,
    }
    print(json.dumps(report, indent=1 if args.json else None))
    return None
