"""`qwench compile`: a checkpoint becomes an artifact. Turns options into a QwenchConfig; the compiler does the rest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from typer import Option


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint folder or hub id.")],
    out: Annotated[Path, Option("--output", "-o", metavar="OUT", help="Folder of the artifact.")],
    weights: Annotated[str | None, Option(help="bf16 (default), int8 or int4.")] = None,
    head_weights: Annotated[str | None, Option(help="Embedding and output head; default int8 beside int4.")] = None,
    group_size: Annotated[int | None, Option(help="Weights that share a scale: 32, 64, 128 (default) or 256.")] = None,
    kv_cache: Annotated[str | None, Option(help="bf16 or fp32; default fp32 beside bf16 weights.")] = None,
    max_seq_len: Annotated[int | None, Option(help="Tokens of prompt and answer; default the model's.")] = None,
    batch_size: Annotated[int | None, Option(help="Sequences that generate at once; default 32.")] = None,
    prefill_chunk_size: Annotated[int | None, Option(help="Tokens in one step; default 512.")] = None,
    memory: Annotated[str | None, Option(metavar="SIZE", help="What the loaded model may use, e.g. 8GiB.")] = None,
    target: Annotated[str | None, Option(help="cpu (default), cpu-avx512, cpu-avx2, cpu-generic, reference.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace OUT if it is an artifact.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of a sentence.")] = False,
) -> None:
    """Compile a checkpoint into an artifact."""
    from qwench.checkpoint.hub import find_checkpoint
    from qwench.cli.progress import ProgressDisplay
    from qwench.cli.sizes import format_size, parse_size
    from qwench.compiler import compile_checkpoint
    from qwench.config import QwenchConfig

    config = QwenchConfig(
        weights=weights,
        head_weights=head_weights,
        group_size=group_size,
        kv_cache=kv_cache,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        prefill_chunk_size=prefill_chunk_size,
        memory=None if memory is None else parse_size(memory, "--memory"),
        target=target,
    )
    with ProgressDisplay() as progress:
        folder, name = find_checkpoint(source, progress)
        started_s = time.perf_counter()
        artifact = compile_checkpoint(folder, out, config, overwrite=overwrite, progress=progress, source_name=name)
    elapsed_s = time.perf_counter() - started_s
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if as_json:
        report = {"artifact": str(out), "bytes": size, "compile_s": elapsed_s, "config": artifact.config.to_dict()}
        print(json.dumps(report))
    else:
        formats = f"{artifact.config.weights} weights, head {artifact.config.head_weights}"
        print(f"{out}: {format_size(size)}, {formats}, compiled in {elapsed_s:.1f} s")
