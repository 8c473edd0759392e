"""The `qwench` program: one small module per command, one place where errors become exit codes.

Knows nothing of models. argparse rather than a larger library; only the command that was asked for is imported, and it
imports no more than it needs: everybody waits for that before the first token.
"""

from __future__ import annotations

import gc
import importlib
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import NoReturn

import qwench
from qwench.cli.failure import INTERRUPTED, OUR_FAULT, USER_ERROR, UsageError, explain
from qwench.cli.terminal.streams import discard, flush_stdout, open_closed_streams, say, unwritable_stdout
from qwench.errors import QwenchError
from qwench.host import mpi_place, wants_traceback
from qwench.log_lines import log_in_one_line_each

GC_THRESHOLD = 100_000  # objects between collections; with Python's 700 they took 5 % of the start, for no garbage
COMMANDS = (
    "compile",
    "run",
    "chat",
    "serve",
    "prefix",
    "demo",
    "bench",
    "bench-serve",
    "verify",
    "eval",
    "inspect",
    "plan",
    "pull",
)  # each a module of commands/
WITH_RANKS = ("run", "chat", "serve", "prefix", "demo", "bench", "verify", "eval")  # on several hosts, too


class _Parser(ArgumentParser):
    """Raises what is wrong with a command line instead of printing a page and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser(asked: str) -> ArgumentParser:
    """The parser of the command that was `asked` for; if there's no such command, of all, for help and errors."""
    parser = _Parser(
        prog="qwench",
        description="Compile a Qwen2 checkpoint once for this machine, then run it.",
        epilog="MODEL is an artifact, a checkpoint folder or a hub id.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qwench {qwench.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        module = importlib.import_module(f"qwench.cli.commands.{name.replace('-', '_')}")
        description = (module.execute.__doc__ or "").strip()
        command = commands.add_parser(
            name, help=description.splitlines()[0], description=description, allow_abbrev=False
        )
        module.add_arguments(command)
        command.set_defaults(execute=module.execute)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 2 for what the user can mend, 1 for a fault of ours or
    a check that failed, 130 after Ctrl-C. Errors are one line on stderr; QWENCH_DEBUG=1 shows the traceback instead."""
    gc.set_threshold(GC_THRESHOLD)
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    open_closed_streams()
    log_in_one_line_each()
    try:
        if mpi_place()[0] > 0:
            return _follow(arguments[0])
        return _execute(arguments)
    except KeyboardInterrupt:
        say("")
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)  # its reader has left
        return 0
    except Exception as error:
        if wants_traceback():
            raise
        stdout_fault = unwritable_stdout() if isinstance(error, OSError) else None
        say(f"qwench: error: {stdout_fault or explain(error)}")
        return USER_ERROR if isinstance(error, (QwenchError, OSError, MemoryError)) else OUR_FAULT


def _follow(command: str) -> int:
    """In a process that `mpiexec` started beside the first, which runs the command."""
    if command in WITH_RANKS:
        from qwench.parallel.host_process import serve_as_host

        serve_as_host()
    return 0


def _execute(arguments: list[str]) -> int:
    try:
        args = _parser(arguments[0]).parse_args(arguments)
    except SystemExit as done:  # --help and --version
        code = int(done.code or 0)
    else:
        code = args.execute(args) or 0
    flush_stdout()
    return code


if __name__ == "__main__":
    sys.exit(main())
