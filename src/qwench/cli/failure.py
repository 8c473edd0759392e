"""What went wrong, as one line. Knows nothing of commands; called by `main` alone."""

from __future__ import annotations

from qwench.errors import QwenchError
from qwench.log_lines import one_line

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
