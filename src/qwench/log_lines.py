"""What the package has to say while it works: one line each on stderr, without tracebacks.

Called by the command line, and by the processes that `qwench serve` starts.
"""

from __future__ import annotations

import logging
import sys


def log_in_one_line_each() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.getLogger("qwench").handlers = [handler]


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        return f"qwench: {record.levelname.lower()}: {one_line(text)}"


def one_line(text: str) -> str:
    return " ".join(text.split())
