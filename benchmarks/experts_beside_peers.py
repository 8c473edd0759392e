"""A mixture of experts beside llama.cpp: the same random weights in 4 bits, a prompt and an answer in turns.

    python -m benchmarks.experts_beside_peers [CHECKPOINT] --peer-python PEERS/bin/python [--ik-llama-bench PATH]

CHECKPOINT is what `python -m benchmarks.experts` wrote; without it three layers of A2.7B are written. llama.cpp's Q4_0
has the values of the checkpoint, its other quants (`--quants Q4_0,Q4_K_M`) are made of those. Embedding and head
have 8 bits, except in quants that mix. Ratios are medians of those within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import in_turns
from benchmarks.contenders import IK_LLAMA
from benchmarks.contenders.contender import Compiled
from benchmarks.contenders.ik_llama_bench import check_binary
from benchmarks.experts import write_checkpoint
from benchmarks.folders import build_folder, check_checkpoint, write_json
from benchmarks.in_turns import Model, Speeds
from benchmarks.plan import MAX_STEP_TOKENS
from benchmarks.process import Worker, WorkerError
from qwench.artifact.artifact import open_artifact
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import QwenchError
from qwench.host import cpu_name, num_cpus

OURS = "qwench"
BITS = "int4-head8"  # of benchmarks.plan.FORMATS


def make_ours(checkpoint: Path, folder: Path, positions: int) -> tuple[Model, Compiled]:
    """Requantised for the sake of the head, which else would keep its 16 bits where the peers' has 8."""
    path = folder / OURS
    config = QwenchConfig(
        requantize="int4", head_weights="int8", max_seq_len=positions, prefill_chunk_size=MAX_STEP_TOKENS
    )
    compile_checkpoint(checkpoint, path, config)
    num_bytes = sum(tensor.nbytes for tensor in open_artifact(path).tensors.values())
    return Model(OURS, sys.executable, str(path)), Compiled(str(path), num_bytes, "int4 in groups of 128, head int8")


def make_theirs(
    contender: str, checkpoint: Path, folder: Path, positions: int, args: argparse.Namespace, bits: str = BITS
) -> tuple[Model, Compiled]:
    """A peer's own compiling, by itself. bits: a format, or a quant by llama.cpp's name."""
    program = str(args.ik_llama_bench.resolve()) if contender == IK_LLAMA else None
    out = folder / f"{contender}-{bits}"
    with Worker(contender, args.peer_python, folder / f"{contender}.log", program) as worker:
        reply = worker.ask(
            "compile", checkpoint=str(checkpoint), format_name=bits, out=str(out), max_positions=positions,
            threads=args.threads, target="cpu",
        )  # fmt: skip
    compiled = Compiled(**reply["compiled"])
    return Model(contender, args.peer_python, compiled.path, program), compiled


def make_models(checkpoint: Path, folder: Path, args: argparse.Namespace) -> dict[str, tuple[Model, Compiled]]:
    """Label -> model, of each contender and quant."""
    positions = max(1024, args.prompt + args.generate)
    models = {OURS: make_ours(checkpoint, folder, positions)}
    for quant in filter(None, args.quants.split(",")):
        bits = BITS if quant == "Q4_0" else quant
        models[f"llama.cpp {quant}"] = make_theirs("llama.cpp", checkpoint, folder, positions, args, bits)
    if args.ik_llama_bench is not None:
        models[IK_LLAMA] = make_theirs(IK_LLAMA, checkpoint, folder, positions, args)
    return models


def render(found: Mapping[str, Speeds], compiled: Mapping[str, Compiled]) -> str:
    lines = [
        f"{'':20} {'MB':>7} {'prompt':>9} {'ahead':>7} {'generate':>9} {'ahead':>7} {'same tokens':>12}  stored as"
    ]
    ours = found[OURS]
    for label, speeds in found.items():
        medians, ahead = speeds.medians(), dict.fromkeys(("prompt", "answer"), "")
        same = ""
        if label != OURS:
            ahead = {name: f"{times:.2f}x" for name, times in ours.ahead(speeds).items()}
            same = f"{ours.num_same(speeds)} of {len(ours.answer)}" if speeds.answer else "-"
        lines.append(
            f"{label:20} {compiled[label].weight_bytes / 1e6:7.0f} {medians['prompt']:9.1f} {ahead['prompt']:>7} "
            f"{medians['answer']:9.2f} {ahead['answer']:>7} {same:>12}  {compiled[label].note}"
        )
    return "\n".join(lines)


def report(found: Mapping[str, Speeds], compiled: Mapping[str, Compiled], checkpoint: Path) -> dict[str, Any]:
    rows = {label: dataclasses.asdict(speeds) | speeds.medians() for label, speeds in found.items()}
    ahead = {label: found[OURS].ahead(speeds) for label, speeds in found.items() if label != OURS}
    models = {label: dataclasses.asdict(one) for label, one in compiled.items()}
    return {"cpu": cpu_name(), "checkpoint": str(checkpoint), "models": models, "speeds": rows, "ahead": ahead}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experts_beside_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="default: three layers of A2.7B at random")
    add("--peer-python", default=sys.executable, metavar="PATH", help="interpreter that has llama-cpp-python and gguf")
    add("--quants", default="Q4_0", metavar="Q,...", help='of llama.cpp; "": without it; default Q4_0')
    add("--ik-llama-bench", type=Path, metavar="PATH", help=f"{IK_LLAMA}'s llama-bench, with llama-quantize beside it")
    add("--prompt", type=int, default=512, metavar="N", help="default 512")
    add("--generate", type=int, default=64, metavar="N", help="default 64")
    add("--rounds", type=int, metavar="N", help="default 5")
    add(
        "--threads", type=int, default=num_cpus(), metavar="N", help="default: the processors that this process may use"
    )
    add("--quick", action="store_true", help="some seconds: the tiny shape, one round")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    if args.ik_llama_bench is not None:
        try:
            check_binary(args.ik_llama_bench)
        except ValueError as error:
            parser.error(f"--ik-llama-bench: {error}")
    checkpoint = args.checkpoint or build_folder() / ("moe-tiny" if args.quick else "moe-a2.7b-3-layers")
    if args.checkpoint is None and not (checkpoint / "config.json").is_file():
        shutil.rmtree(checkpoint, ignore_errors=True)  # an earlier one that was interrupted
        write_checkpoint(*(("tiny", checkpoint) if args.quick else ("a2.7b", checkpoint, 3)))
    check_checkpoint(parser, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] != "qwen2_moe":
        parser.error(f"{checkpoint} is a {config['model_type']}; give a qwen2_moe that benchmarks.experts wrote")
    folder = build_folder() / f"{checkpoint.name}-models"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        made = make_models(checkpoint, folder, args)
        found = in_turns.measure(
            {label: model for label, (model, _) in made.items()}, args.prompt, args.generate,
            args.rounds or (1 if args.quick else 5), args.threads, folder, config["vocab_size"],
        )  # fmt: skip
    except (QwenchError, WorkerError) as error:
        sys.exit(f"{parser.prog}: error: {error}; logs are in {folder}")
    finally:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)  # the logs stay
    compiled = {label: one for label, (_, one) in made.items()}
    print(f"machine  {cpu_name()}, {args.threads} threads\nmodel    {checkpoint}")
    print(f"work     a prompt of {args.prompt}, {args.generate} generated; tokens/s, ahead: qwench's speed over it\n")
    print(render(found, compiled))
    write_json(report(found, compiled, checkpoint), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
