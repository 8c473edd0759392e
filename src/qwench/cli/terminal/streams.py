"""stdin, stdout and stderr that are closed, full, or read by nobody any more.

Knows nothing of commands; called by `main` alone.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from qwench.log_lines import one_line

# Instead of a closed one: stdin has nothing in it, stdout can't be written, and what stderr says isn't for anyone.
_STAND_INS = (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))


def open_closed_streams() -> None:
    """Before any file is opened: it would be given the number of the stream, and what is printed would go into it."""
    for number, (name, mode, flags) in enumerate(_STAND_INS):
        if getattr(sys, name) is None:
            _become_null(number, flags)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" rather than a traceback


def say(text: str) -> None:
    """A line on stderr, if it takes one."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def flush_stdout() -> None:
    """Raises BrokenPipeError when its reader has left, and OSError that names it for all else."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise OSError(error.errno, error.strerror, "stdout") from None


def unwritable_stdout() -> str | None:
    """Why stdout doesn't take what was printed, as one line; None if it did. After that nothing more goes there."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        return one_line(f"stdout: {error.strerror}")
    return None


def discard(stream: TextIO) -> None:
    """What it says from now on, and what is still in its buffer: Python flushes that at exit, and would complain."""
    _become_null(stream.fileno(), os.O_WRONLY)


def _become_null(number: int, flags: int) -> None:
    null = os.open(os.devnull, flags)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)
