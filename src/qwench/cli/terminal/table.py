"""Tables on stdout, for all commands that print one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

PIPE_WIDTH = 160  # columns when stdout is no terminal, where rich would assume 80 and fold cells


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Prints `rows` under `headings`; the columns named in `right` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for main; rich would end the program itself

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, highlight=False).print(table)
