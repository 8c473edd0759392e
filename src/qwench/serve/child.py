"""What the main function of a child process begins with. Knows nothing of what the child does."""

from __future__ import annotations

import json
import signal
import sys

from qwench.log_lines import log_in_one_line_each
from qwench.serve.wire import Link, Message


def open_link() -> tuple[Link, Message]:
    """The link to the parent and the options it gave, from the command line FD JSON.

    From here on signals that ask to stop are the parent's business: the child ends when its link does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_in_one_line_each()
    return Link(int(sys.argv[1])), json.loads(sys.argv[2])
