"""`python -m benchmarks`: reads the options, runs, prints the table, writes JSON and picture."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import plan as plans
from benchmarks.contenders import CONTENDERS, IK_LLAMA
from benchmarks.contenders.ik_llama_bench import check_binary
from benchmarks.folders import check_checkpoint, write_json
from benchmarks.picture import draw
from benchmarks.process import ROOT
from benchmarks.synthetic import SHAPES, write_checkpoint
from benchmarks.table import render

DEFAULT_FOLDER = ROOT / "build" / "benchmarks"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="folder of a Qwen2 checkpoint; default: random weights of --shape")
    add("--shape", choices=tuple(SHAPES), default="0.5b", help="of the random checkpoint; default 0.5b")
    everybody = tuple(CONTENDERS)
    add(
        "--contenders", type=plans.names(everybody), metavar="A,B",
        help=f"of {', '.join(everybody)}; default: all, {IK_LLAMA} if its binary is named",
    )  # fmt: skip
    add("--formats", type=plans.names(tuple(plans.FORMATS)), metavar="A,B", help=f"of {', '.join(plans.FORMATS)}")
    add("--works", type=plans.names(plans.WORK_NAMES), metavar="A,B", help=f"of {', '.join(plans.WORK_NAMES)}")
    add("--rounds", type=int, help="default 3")
    add("--compile-rounds", type=int, default=1, metavar="N", help="default 1")
    add("--patience", type=float, default=15.0, metavar="S", help="what takes longer isn't repeated; default 15 s")
    add("--threads", type=int, metavar="N", help="default: the processors that this process may use")
    add("--target", default="cpu", help="qwench's, such as cpu-avx2; peers are built for one; default cpu")
    add("--seed", type=int, default=0, help="of the random prompts; default 0")
    add("--quick", action="store_true", help="about three minutes: 4 bits, one round, no long prompt")
    add(
        "--peer-python", action="append", default=[], metavar="[NAME=]PATH",
        help="interpreter of one peer, or of all; default: this one",
    )  # fmt: skip
    add("--ik-llama-bench", type=Path, metavar="PATH", help=f"{IK_LLAMA}'s llama-bench, with llama-quantize beside it")
    add("--folder", type=Path, default=DEFAULT_FOLDER, help="for models and logs; default build/benchmarks")
    add("--keep", action="store_true", help="keep compiled models there, and use those that are there")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--plot", type=Path, metavar="FILE", help="draw it, as PNG or SVG; needs matplotlib")
    add("--replay", type=Path, metavar="FILE", help="measure nothing; print and draw what --json wrote earlier")
    return parser


def make_plan(args: argparse.Namespace) -> plans.Plan:
    """What the options ask for; --quick fills in what wasn't given."""
    from qwench.host import num_cpus

    formats = args.formats or (plans.QUICK_FORMATS if args.quick else plans.DEFAULT_FORMATS)
    works = args.works or (plans.QUICK_WORKS if args.quick else plans.WORK_NAMES)
    contenders = args.contenders or tuple(name for name in CONTENDERS if name != IK_LLAMA or args.ik_llama_bench)
    return plans.Plan(
        contenders, formats, works, args.rounds or (1 if args.quick else 3), args.compile_rounds, args.patience,
        args.threads or num_cpus(), args.seed, args.target, is_explicit=args.works is not None,
    )  # fmt: skip


def interpreters(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, str]:
    """Contender -> interpreter; qwench runs under this one."""
    pythons = dict.fromkeys(CONTENDERS, sys.executable)
    for text in given:
        name, _, path = text.rpartition("=")
        if name and name not in CONTENDERS:
            parser.error(f"--peer-python: {name!r} is none of {', '.join(CONTENDERS)}")
        pythons |= dict.fromkeys([name] if name else [n for n in CONTENDERS if n != "qwench"], path)
    return pythons


def programs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """Contender -> the binary that it is; ends with the parser's error where that is missing or another program's."""
    if args.ik_llama_bench is None:
        if IK_LLAMA in (args.contenders or ()):
            parser.error(f"--contenders {IK_LLAMA} needs its binary: --ik-llama-bench PATH")
        return {}
    try:
        check_binary(args.ik_llama_bench)
    except ValueError as error:
        parser.error(f"--ik-llama-bench: {error}")
    return {IK_LLAMA: str(args.ik_llama_bench.resolve())}


def measure(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """One run, as a report."""
    from benchmarks.measure import Run
    from benchmarks.report import make_report

    start_s = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start_s:5.0f} s] {text}", file=sys.stderr, flush=True)

    checkpoint, folder, binaries = args.checkpoint, args.folder, programs(parser, args)
    if checkpoint is None:
        checkpoint = folder / f"qwen2-{args.shape}-random"
        say(f"random weights: {checkpoint}")
        write_checkpoint(args.shape, checkpoint)
    check_checkpoint(parser, checkpoint)
    run = Run(
        make_plan(args), checkpoint, folder / checkpoint.name, interpreters(parser, args.peer_python), args.keep, say,
        binaries,
    )  # fmt: skip
    return make_report(run.measure())


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    report = json.loads(args.replay.read_text()) if args.replay else measure(parser, args)
    print(render(report))
    write_json(report, args.json)
    if args.plot:
        draw(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
