"""How far a long job is, on stderr.

`ProgressDisplay`, for downloading and compiling: a bar on a terminal; elsewhere a line every few seconds, so that short
jobs are silent. `AnswerCount` and `show_tokens`, for measurements: a count on a terminal, elsewhere nothing.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from qwench.host import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from qwench.progress import Progress

COUNT_INTERVAL_S = 0.5  # between two counts of answers
LINE_INTERVAL_S = 5.0  # between lines when stderr is a file: a log stays short, a short job stays silent
TITLES = {"download": "Downloading", "check": "Checking", "pack": "Packing", "finish": "Finishing"}


class ProgressDisplay:
    """A callable for `progress=`, and a context that takes the bar away at the end."""

    def __init__(self) -> None:
        self._last_line_s = time.monotonic()
        self._bar: Bar | None = None
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        if self._is_terminal:
            self._draw(progress)
        elif time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._last_line_s = time.monotonic()
            print(_line(progress), file=sys.stderr, flush=True)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = _terminal_bar()
            self._bar.add_task("", left="")
            self._bar.start()
        title = TITLES.get(progress.stage, progress.stage)
        # The bar's own estimate of the time left would start anew with each stage; the compiler's does not.
        left = "" if progress.left_s is None else f"{progress.left_s:.0f} s left"
        self._bar.update(
            self._bar.task_ids[0],
            description=title,
            completed=progress.bytes_done,
            total=progress.bytes_total,
            left=left,
        )


def _line(progress: Progress) -> str:
    title = TITLES.get(progress.stage, progress.stage)
    line = f"{title}: {format_bytes(progress.bytes_done)} of {format_bytes(progress.bytes_total)}"
    return line if progress.left_s is None else f"{line}, {progress.left_s:.0f} s left"


def _terminal_bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


class AnswerCount:
    """How many answers are complete, in a line that is removed at the end."""

    def __init__(self, total: int) -> None:
        self._total, self._shown_s = total, time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def show(self, done: int) -> None:
        if self._is_terminal and time.monotonic() - self._shown_s > COUNT_INTERVAL_S:
            self._shown_s = time.monotonic()
            print(f"\r{done} of {self._total} answers", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> AnswerCount:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def show_tokens(what: str, done: int, total: int) -> None:
    """A line that the next one replaces; the last one stays."""
    if sys.stderr.isatty():
        print(f"\r{what} {done} of {total} tokens", end="\n" if done == total else "", file=sys.stderr, flush=True)
