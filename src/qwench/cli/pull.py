"""`qwench pull`: the files of a checkpoint from the hub, resumed and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option


def command(
    model_id: Annotated[str, typer.Argument(metavar="ID", help="Hub id such as Qwen/Qwen2.5-0.5B-Instruct.")],
    out: Annotated[
        Path | None, Option("--output", "-o", metavar="FOLDER", help="Where to; default qwench's cache.")
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit; default main.")] = None,
) -> None:
    """Download a checkpoint from the Hugging Face hub."""
    from qwench.checkpoint.hub import pull
    from qwench.cli.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        folder = pull(model_id, out, revision, progress=progress)
    print(folder)
