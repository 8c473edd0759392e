"""`qwench compile`: a checkpoint becomes an artifact. Turns options into a QwenchConfig; the compiler does the rest."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from qwench.cli.options import ROPE_SCALING_HELP, config_of


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="checkpoint folder, .gguf file or hub id")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the artifact")
    add_options(parser)
    add("--overwrite", action="store_true", help="replace an artifact in OUT")
    add("--json", action="store_true", help="print one JSON object instead of a sentence")


def add_options(parser: ArgumentParser) -> None:
    """How to compile a model, with the names that QwenchConfig has for it."""
    add = parser.add_argument
    add("--weights", metavar="KIND", help="bf16 (default), int8 or int4; of a quantised checkpoint: as it has them")
    add("--requantize", metavar="KIND", help="round a quantised checkpoint a second time: int8, int4 or bf16")
    add("--head-weights", metavar="KIND", help="of embedding and output head; default: int8 beside int4, else the same")
    add("--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64, 128 (default) or 256")
    add(
        "--activations",
        metavar="KIND",
        help="of bf16 weights: fp32 (default), or bf16: faster where the processor multiplies bf16; of integers: "
        "int8 (default), int16: finer, slower prompts, or fp32: exact, slow",
    )
    add("--recipe", metavar="NAME", help="accuracy, balanced or speed: formats for each kind of layer")
    add("--overrides", type=Path, metavar="FILE", help='JSON: {"pattern of weight names": "format", ...}')
    add("--calibrate", metavar="FILE", help="text like the model's own; rounds weights so that it is harmed least")
    add("--lora", dest="merged_lora", metavar="FOLDER", help="merge this LoRA adapter, before rounding")
    add("--kv-cache", metavar="KIND", help="int16, bf16, fp32 or int8; default: int16; beside bf16 weights fp32")
    add("--max-seq-len", type=int, metavar="N", help="tokens of prompt and answer; default: the model's")
    add("--rope-scaling", metavar="S", help=ROPE_SCALING_HELP)
    add("--bidirectional", action="store_true", default=None, help="each token sees all of its text: embedding models")
    add("--batch-size", type=int, metavar="N", help="sequences that generate at once; default 32")
    add("--prefill-chunk-size", type=int, metavar="N", help="tokens in one step; default 512")
    add("--attn-impl", metavar="KIND", help="flash_attn (default): in partitions; eager: each sequence as one")
    add("--kvcache-partition-len", type=int, metavar="N", help="positions in a partition, default 512")
    add("--kvcache-block-size", type=int, metavar="N", help="positions in a cache block, default 32")
    add("--kvcache-num-blocks", type=int, metavar="N", help="cache blocks; default: what memory allows when loaded")
    add("--memory", metavar="SIZE", help="what the loaded model may use, such as 8GiB or 800MB; default: what is free")
    add(
        "--target",
        metavar="T",
        help="cpu, cpu-avx512, cpu-avx2, cpu-generic, cuda or reference; default: cuda where there is a GPU, else cpu",
    )


def execute(args: Namespace) -> None:
    """Compile a checkpoint into an artifact."""
    from qwench.checkpoint.hub import find_checkpoint
    from qwench.cli.progress import ProgressDisplay
    from qwench.cli.sizes import format_size
    from qwench.compiler import compile_checkpoint
    from qwench.kept_weights import summary

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
        print(f"{out}: {format_size(size)}, {formats}, compiled in {elapsed_s:.1f} s")
        if told := summary(artifact.manifest.conversions):
            print(told)
