"""Ends a command on SIGINT, SIGTERM or SIGHUP: in seconds, with one line and no traceback.

The handler writes the line, silences stderr and raises `KeyboardInterrupt`, so that locks, private
folders and workers are freed as after any exception. A thread ends the process where that takes too
long, because the main thread is inside a library, or waits for threads that wait for a server. A
killed command loses nothing either: artefacts and answers are published whole as they are made.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0
"""Seconds until the process is ended by force; a second signal ends it at once."""
SAME_SIGNAL = 0.25
"""Seconds within which further signals count as the first: `timeout` sends two."""

_received: list[tuple[int, float]] = []
"""Number and time of the first signal."""
_reporting = threading.Lock()
"""Held for good by the thread that reports the first signal."""
_reported = threading.Event()
_unwinding = threading.Lock()
"""Held for good once the main thread unwinds."""
_command_runs = threading.Event()
"""Otherwise modules are imported, or the interpreter shuts down: there is nothing to unwind."""


def end_on_signals() -> None:
    """End this process on the three signals, but for those that it was started to ignore.

    A shell without job control starts background commands with SIGINT ignored, `nohup` with SIGHUP.
    """
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def run_interruptible(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code, or 128 + the number of the signal that ended it."""
    end_on_signals()
    code = 0
    _command_runs.set()
    try:
        code = command()
    except BaseException:
        # Libraries turn an interrupt into errors of their own.
        if not _received:
            raise
    finally:
        _command_runs.clear()
    if _received:
        # Without the rest of the interpreter's shutdown, which takes seconds once torch is loaded
        # and during which no thread could end it.
        atexit._run_exitfuncs()
        _end_now()
    return code


def _interrupt(number: int, _frame: object) -> None:
    first = _unwinding.acquire(blocking=False)
    second = _note(number)
    if second or (first and not _command_runs.is_set()):
        _end_now()
    if first:
        raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """End the process on a second signal, or `GRACE` seconds after the first."""
    deadline: float | None = None
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], wait)[0]:
            _end_now()
        number = os.read(reader, 1)[0]
        if number in SIGNALS:
            if _note(number):
                _end_now()
            deadline = deadline or time.monotonic() + GRACE


def _note(number: int) -> bool:
    """Note a signal and report the first one; return whether this is a second one."""
    if _received:
        return time.monotonic() - _received[0][1] > SAME_SIGNAL
    if not _reporting.acquire(blocking=False):  # two threads meet each signal
        _reported.wait(SAME_SIGNAL)
    else:
        _received.append((number, time.monotonic()))
        name = signal.Signals(number).name
        line = f"interrupted by {name}; run the same command again to resume\n"
        with contextlib.suppress(OSError):  # the terminal may be gone
            # A progress bar hides the cursor and leaves it at the end of its line.
            os.write(2, (f"\x1b[?25h\n{line}" if os.isatty(2) else line).encode())
        with contextlib.suppress(OSError):
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 2)
        _reported.set()
    return False


def _end_now() -> NoReturn:
    """End this process and its workers; each worker ends its own."""
    if multiprocessing := sys.modules.get("multiprocessing"):
        with contextlib.suppress(Exception):
            for child in multiprocessing.active_children():
                child.kill()
    os._exit(128 + _received[0][0])
