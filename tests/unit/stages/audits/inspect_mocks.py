"""What tests with Inspect share: the mark that skips them without it, and scripted models."""
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest

needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="inspect_ai is not installed"
)
INSPECT_WARNINGS = [
    pytest.mark.usefixtures("collect_garbage"),
    # Inspect's event loop leaves memory streams to the garbage collector, which warns.
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
    # Inspect calls tenacity by an argument that it renamed.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def mock_model(texts: Sequence[str]) -> Any:
    """Return a model of Inspect's that replies with `texts`, one after the other."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    outputs = [ModelOutput.from_content("mock", text) for text in texts]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=1)  # or Inspect fetches a tokenizer to count
    return get_model("mockllm/model", custom_outputs=outputs, memoize=False)
