"""What went wrong, as one line; warnings as one line each. Knows nothing of commands; called by `main` alone."""

from __future__ import annotations

import logging
import sys

from qwench.errors import QwenchError

OUR_FAULT = 1
USER_ERROR = 2
INTERRUPTED = 130


class UsageError(QwenchError):
    """The command line itself is wrong."""


def explain(error: Exception) -> str:
    """What to print for an error that ended the program."""
    if isinstance(error, QwenchError):
        return one_line(str(error))
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or choose int8 or int4 weights"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return one_line(f"{where}{error.strerror}")
    return f"unexpected {type(error).__name__}: {one_line(str(error))} (QWENCH_DEBUG=1 shows where)"


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
