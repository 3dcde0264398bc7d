"""Compiles `elementwise.cpp` for this processor, where there is a compiler.

In bfloat16 PyTorch passes over memory once for each operation; compiled, a norm takes a tenth and a
gate or softmax two fifths of the time. One compilation takes half a second and is kept for the
process only, so that no file outlives the compiler and processor that it was made for.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("doublebind.training")

MAX_THREADS = 4
"""With more threads PyTorch's operations, which use them all, are as fast as one here."""
_SOURCE = Path(__file__).with_name("elementwise.cpp")
# Not -ffast-math: linked with it, a library sets flags of the whole process.
_FLAGS = (
    *("-O3", "-shared", "-fPIC", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-signed-zeros", "-fassociative-math", "-freciprocal-math", "-ffinite-math-only"),
)
_POINTER, _COUNT, _FLOAT, _CHOICE = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_int,
)
_MATRIX = (_POINTER, _COUNT)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "norm": (*_MATRIX, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _FLOAT),
    "norm_backward": (*_MATRIX, *_MATRIX, _POINTER, _POINTER, _POINTER, _COUNT, _COUNT),
    "gate": (*_MATRIX, *_MATRIX, _COUNT, _COUNT, _CHOICE),
    "gate_backward": (*_MATRIX, *_MATRIX, *_MATRIX, _COUNT, _COUNT, _CHOICE),
    "rotate": (*_MATRIX, _POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _CHOICE),
    "softmax": (_POINTER, _COUNT, _COUNT, _COUNT),
    "softmax_backward": (_POINTER, _POINTER, _COUNT, _COUNT),
}


def find_compiled(x: Tensor) -> Any:
    """Return the compiled functions if they can run on `x` and are the faster ones, else `None`."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or torch.get_num_threads() > MAX_THREADS:
        return None
    return compile_functions()


@functools.cache
def compile_functions() -> Any:
    """Return the library of compiled functions, or `None` if it cannot be made here."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        log.info("no C++ compiler: training in bfloat16 takes up to half as long again")
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "elementwise.so"
        for more in (["-mprefer-vector-width=512"], []):  # x86 knows the first
            command = [compiler, *_FLAGS, *more, "-o", str(built), str(_SOURCE)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=120, check=False)
                if done.returncode:
                    continue
                library = ctypes.CDLL(str(built))
            except (OSError, subprocess.TimeoutExpired):
                continue
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
            return library
    log.info("%s cannot compile %s: training in bfloat16 is slower", compiler, _SOURCE.name)
    return None


def as_matrix(x: Tensor) -> Tensor:
    """Return `x` [..., width] as [rows, width], the elements of a row adjacent."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
