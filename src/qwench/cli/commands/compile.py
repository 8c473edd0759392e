"""`qwench compile`: a checkpoint becomes an artifact. Turns options into a QwenchConfig; the compiler does the rest."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from qwench.cli.options.compiling import add_compiling
from qwench.cli.options.loading import config_of


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="checkpoint folder, .gguf file or hub id")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the artifact")
    add_compiling(parser)
    add("--overwrite", action="store_true", help="replace an artifact in OUT")
    add("--json", action="store_true", help="print one JSON object instead of a sentence")


def execute(args: Namespace) -> None:
    """Compile a checkpoint into an artifact."""
    from qwench.checkpoint.hub import find_checkpoint
    from qwench.cli.terminal.progress import ProgressDisplay
    from qwench.compiler.compiler import compile_checkpoint
    from qwench.compiler.kept_weights import summary
    from qwench.host import format_bytes

    config = config_of(args)
    out: Path = args.output
    with ProgressDisplay() as progress:
        folder, name = find_checkpoint(args.source, progress)
        started_s = time.perf_counter()
        artifact = compile_checkpoint(
            folder, out, config, overwrite=args.overwrite, progress=progress, source_name=name
        )
    elapsed_s = time.perf_counter() - started_s
    size = sum(path.stat().st_size for path in out.iterdir())
    if args.json:
        report = {
            "artifact": str(out),
            "bytes": size,
            "compile_s": elapsed_s,
            "config": artifact.config.to_saved(),
            "conversions": {name: vars(c) for name, c in artifact.manifest.conversions.items()},
        }
        print(json.dumps(report))
    else:
        formats = f"{artifact.config.weights} weights, head {artifact.config.head_weights}"
        print(f"{out}: {format_bytes(size)}, {formats}, compiled in {elapsed_s:.1f} s")
        if told := summary(artifact.manifest.conversions):
            print(told)
