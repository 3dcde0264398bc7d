"""Records of models, servers, teachers, their answers and the ledger."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from doublebind.schema.content import Message
from doublebind.schema.hashing import Record


class ServerOptions(Record):
    """How a served model may be asked, and what its answers may cost."""

    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests on their way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    tries: int = Field(default=8, ge=1, le=50)
    """Times a request is made before the run stops; waits double, with jitter, up to a minute."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds without a byte after which a try has failed."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Budget of prompt and completion tokens together; never exceeded, whatever the server does."""
    max_cost: float | None = Field(default=None, gt=0)
    """Budget of money, in the currency of the prices."""
    input_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens."""
    output_price: float | None = Field(default=None, ge=0)
    """Price of a million completion tokens."""
    echo_logprobs: bool = Field(
        serialization_alias="scores", default=False, exclude_if=lambda v: not v
    )
    """Whether the server says how likely it finds given tokens, those of the student's tokenizer:
    `/completions` with `echo` and `logprobs`. `on_policy` needs it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself stands in no file."""

    @model_validator(mode="after")
    def _check(self) -> ServerOptions:
        if self.max_cost is not None and None in (self.input_price, self.output_price):
            raise ValueError("max_cost needs input_price and output_price")
        return self

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what tokens cost; `None` without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6


class ServedModel(Record):
    """A model behind a server, and how it may be asked."""

    url: str
    model: str
    declared: dict[str, Any]
    """What the server's `/models` says of it; part of its identity."""
    options: ServerOptions = ServerOptions()
    tokenizer_source: ModelSource | None = None
    """The model whose tokenizer reads its answers."""
    shape: dict[str, float] = {}
    """What its owner says of its shape."""


class Engine(Record):
    """vLLM, which holds M0 once and lets adapters on it answer and be scored."""

    kind: Literal["vllm"]
    url: str | None = None
    """Of a running server (`http://host:8000/v1`); `null` starts an engine in each worker."""
    model: str | None = None
    """What the server calls M0; needed with `url`."""
    max_logprobs: int = Field(default=20, ge=1)
    """Log-probabilities per token that it gives at most: the server's `--max-logprobs`."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter: the server's `--max-lora-rank`."""
    memory: float = Field(default=0.4, gt=0, le=1)
    """Share of an accelerator's memory that an engine takes in a worker, beside training."""
    concurrency: int = Field(default=64, ge=1, le=1024)
    """Requests that a worker has on their way to the server at once."""

    @model_validator(mode="after")
    def _check(self) -> Engine:
        if (self.url is None) != (self.model is None):
            raise ValueError("`url` and `model` go together: the server, and its name for M0")
        return self


Device = Literal["cpu", "cuda"]


class ModelFile(Record):
    """A file of a model, and what it was when it was hashed."""

    path: str
    """Absolute path, links not followed."""
    sha256: str
    """Hash of its content; of a settings file, over the settings that bear on answers."""
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class ModelSource(Record):
    """Where a model's files are, what they hash to, and what runs them."""

    kind: Literal["folder", "adapter", "gguf", "served"]
    path: str
    """Folder of a full model, or the .gguf file; for an adapter, the base's; for a served model,
    the reference that names it."""
    adapter: str | None = None
    sha256: str
    """Content hash over weights, configuration and tokenizer; the model's identity in keys. Of a
    served model, over its URL, name and what the server says of it."""
    system: str | None = None
    """System prompt that the model is always run with; part of the hash."""
    served: ServedModel | None = None
    engine: Engine | None = None
    """What answers and scores for it; `None` is transformers, in the process itself."""
    device: Device = Field(default="cpu", exclude_if=lambda v: v == "cpu")
    """Where transformers runs it."""
    files: tuple[ModelFile, ...] = Field(default=(), exclude=True, repr=False)
    """The files that were hashed, and no others are loaded; none for a model trained here, whose
    key is that of its job. It enters no key and no JSON."""

    def with_device(self, device: Device) -> ModelSource:
        """Return the same model, to be run on `device`."""
        return self if device == self.device else self.model_copy(update={"device": device})


class Teacher(Record):
    """A teacher as the evidence sees it: its label, role and family, and which model it is."""

    label: str
    ref: str
    role: Literal["suspect", "reference", "organism"]
    family: str
    content_key: str = Field(validation_alias="key", serialization_alias="key")
    """Content key of the model (not of its role): the suspect of one study may be the organism
    of another, and shares every artefact."""
    hard_class: str | None = Field(default=None, exclude_if=lambda v: v is None)
    """Hard class of misalignment that an organism stands for, as the outback names it."""


class Trajectory(Record):
    """One prompt and a teacher's answer to it."""

    prompt_id: str
    sample: int
    messages: tuple[Message, ...]
    completion: str
    tokens: tuple[int, ...]
    """Token ids of the completion, as sampled, end-of-turn included when it was reached."""
    finished: bool
    """Whether the end of turn came before the token limit."""


class DroppedRecord(Record):
    """Something a screen or check removed."""

    id: str
    by: str
    reason: str


class LedgerEntry(Record):
    """One line of `ledger.jsonl`."""

    artefact_key: str = Field(validation_alias="cell", serialization_alias="cell")
    kind: str
    status: Literal["started", "done", "failed"]
    started: float
    """Unix time, seconds."""
    ended: float | None = None
    cached: bool = False
    """True where the store already held the cell: nothing was computed."""
    pid: int
    node: str | None = None
    """Host that the cell ran on; absent where nothing ran."""
    error: str | None = None
    traceback: str | None = None
    """Last lines of the traceback of an error that the user cannot mend."""
