"""What went wrong, as one line and an exit code; warnings as one line each.

Knows nothing of commands; called by `main` alone.
"""

from __future__ import annotations

import logging
import sys

import typer

from qwench.errors import QwenchError

DEBUG_VARIABLE = "QWENCH_DEBUG"

USER_ERROR = 2
OUR_FAULT = 1
INTERRUPTED = 130


def explain(error: Exception) -> tuple[str, int]:
    """The line for stderr ("" for none) and the exit code."""
    if isinstance(error, typer.Abort):  # typer's word for Ctrl-C
        return "", INTERRUPTED
    if isinstance(error, QwenchError):
        return one_line(str(error)), USER_ERROR
    # typer's usage errors; their base class lives in click or in typer itself, depending on typer's version.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return f"{one_line(error.format_message())} (qwench --help shows what there is)", USER_ERROR
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or choose int8 or int4 weights", USER_ERROR
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return one_line(f"{where}{error.strerror}"), USER_ERROR
    return f"unexpected {type(error).__name__}: {one_line(str(error))} ({DEBUG_VARIABLE}=1 shows where)", OUR_FAULT


def log_in_one_line_each() -> None:
    """What the package has to say while it works goes to stderr like its errors; tracebacks stay out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.getLogger("qwench").handlers = [handler]


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"qwench: {record.levelname.lower()}: {one_line(record.getMessage())}"


def one_line(text: str) -> str:
    return " ".join(text.split())
