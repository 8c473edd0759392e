"""`qwench pull`: the files of a checkpoint from the hub, resumed and verified."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model_id",
        metavar="ID",
        help="hub id such as Qwen/Qwen2.5-0.5B-Instruct; of a GGUF ID:Q4_K_M or ID/FILE.gguf",
    )
    add("-o", "--output", type=Path, metavar="FOLDER", help="where to; default: qwench's cache")
    add("--revision", metavar="REV", help="branch, tag or commit; default main")


def execute(args: Namespace) -> None:
    """Download a checkpoint from the Hugging Face hub."""
    from qwench.checkpoint.hub import pull
    from qwench.cli.terminal.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        folder = pull(args.model_id, args.output, args.revision, progress=progress)
    print(folder)
