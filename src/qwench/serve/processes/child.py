"""A child process: how the parent launches it, and what its main function begins with.

Imports next to nothing, so that the model is being loaded while the parent still imports FastAPI. Knows nothing of what
the child does; `supervisor.py` listens to it.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

from qwench.log_lines import log_in_one_line_each
from qwench.serve.processes.wire import Link, Message


class Child:
    """One life of `python -m module FD OPTIONS`, and the parent's end of its socket.

    The child sees the end of the socket when the parent is gone, however that ended.
    """

    def __init__(self, module: str, options: Message) -> None:
        self.module, self._options = module, options
        self.socket, theirs = socket.socketpair()
        with theirs:
            # In a session of its own: Ctrl-C at the terminal is for the parent, which lets streams end first.
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), json.dumps(options)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def again(self) -> Child:
        """Another life."""
        return Child(self.module, self._options)

    def end(self) -> None:
        """Ends it at once, if it hasn't ended."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def open_link() -> tuple[Link, Message]:
    """In the child: the link to the parent and the options it gave, from the command line.

    From here on signals that ask to stop are the parent's business: the child ends when its link does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_in_one_line_each()
    return Link(int(sys.argv[1])), json.loads(sys.argv[2])
