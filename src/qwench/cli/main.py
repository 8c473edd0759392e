"""The `qwench` program: one typer app, one small module per command, one place where errors become exit codes.

Knows nothing of models. A command's module imports what it needs inside its function, so that `qwench --help` and
the way to the first token pay for nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import qwench
from qwench.cli import bench, chat, compile, inspect, pull, run
from qwench.cli.failure import DEBUG_VARIABLE, explain, log_in_one_line_each

app = typer.Typer(
    name="qwench",
    help="Compile a Qwen2 checkpoint once for this machine, then run it. MODEL is an artifact, a checkpoint folder or "
    "a hub id.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (compile, run, chat, bench, inspect, pull):
    app.command(_module.__name__.rpartition(".")[2])(_module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qwench {qwench.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 2 for what the user can mend, 1 for a fault of ours,
    130 after Ctrl-C. Errors are one line on stderr; QWENCH_DEBUG=1 shows the traceback instead."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" rather than a traceback
    log_in_one_line_each()
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="qwench", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left. Python would complain again when it flushes stdout at exit: give it somewhere to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        line, code = explain(error)
        if line:
            print(f"qwench: error: {line}", file=sys.stderr)
        return code
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
