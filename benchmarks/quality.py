"""`python -m benchmarks.quality CHECKPOINT`: perplexity and agreement of qwench and llama.cpp in one table.

The truth is the checkpoint in fp32 with transformers; its bf16 stands beside it. What is measured and how is
`qwench eval`'s (`qwench.evaluate`): every model reads the same token ids and the same code judges its logits. llama.cpp
runs in a worker of its own interpreter and hands its logits over in a file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks import plan as plans
from benchmarks.contenders.qwench_engine import OPTIONS
from benchmarks.folders import build_folder, check_checkpoint, write_json
from benchmarks.process import ROOT, Worker, WorkerError
from qwench.artifact.artifact import Artifact, open_artifact
from qwench.checkpoint.spec import ModelSpec
from qwench.cli.terminal.table import print_table
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.evaluate.book import NUM_TOKENS, Book, compare, make_book
from qwench.evaluate.compiled import CompiledModel
from qwench.evaluate.metrics import kl_divergence
from qwench.evaluate.perplexity import BLOCK, LogitRows, perplexity, truth_rows
from qwench.evaluate.truth import open_transformers
from qwench.host import num_cpus
from qwench.program.models import build_program
from qwench.targets.target import Float32, Int32
from qwench.text.tokenizer import Tokenizer

LLAMA = "llama.cpp"
LLAMA_NAMES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0", "int4-head8": "Q4_0, head Q8_0"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder of a Qwen2 checkpoint with its tokenizer")
    add("--text", type=Path, help="what to read; default: the text that comes with qwench")
    add("--window", type=int, default=1024, help="tokens read at once; default 1024")
    add("--stride", type=int, help="default half a window")
    add("--max-tokens", type=int, metavar="N", help="of the text; default all")
    known = tuple(OPTIONS)
    add("--formats", type=plans.names(known), default=known, metavar="A,B", help=f"of {', '.join(known)}")
    add("--artifact", type=Path, action="append", default=[], help="a compiled folder of the same model to set beside")
    add("--peer-python", default=sys.executable, metavar="PATH", help="interpreter that has llama-cpp-python and gguf")
    add("--no-bf16", action="store_true", help="leave transformers' bf16 out, which is slow on some processors")
    add("--threads", type=int, metavar="N", help="default: the processors that this process may use")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def _kept(rows: LogitRows, file: BinaryIO) -> LogitRows:
    """The same rows, written to `file` on their way."""

    def wrapped(token_ids: Int32, first: int) -> Iterator[tuple[int, Float32]]:
        for at, block in rows(token_ids, first):
            np.ascontiguousarray(block, np.float32).tofile(file)
            yield at, block

    return wrapped


def _compared(rows: LogitRows, file: BinaryIO, divergences: list[float]) -> LogitRows:
    """The same rows; the divergence of each from the truth's row in `file` goes to `divergences`."""

    def wrapped(token_ids: Int32, first: int) -> Iterator[tuple[int, Float32]]:
        for at, block in rows(token_ids, first):
            for start in range(0, len(block), BLOCK):
                part = block[start : start + BLOCK]
                truth = np.fromfile(file, np.float32, part.size).reshape(part.shape)
                divergences.extend(kl_divergence(part, truth))
            yield at, block

    return wrapped


class Judge:
    """Measures models on one text and keeps their figures in the order in which they came. The first one is the truth;
    its logits go to the file `truth`, 4 bytes for each token of the text times each of the vocabulary."""

    def __init__(
        self, token_ids: Int32, window: int, stride: int, book: Book | None, num_weights: int, truth: Path
    ) -> None:
        self._ids, self._window, self._stride, self._book = token_ids, window, stride, book
        self._num_weights, self._truth = num_weights, truth
        self.rows: list[dict[str, Any]] = []

    def measure(self, name: str, rows: LogitRows, weight_bytes: int | None = None) -> None:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        divergences: list[float] = []
        with self._truth.open("rb" if self.rows else "wb") as file:
            watched = _compared(rows, file, divergences) if self.rows else _kept(rows, file)
            found = perplexity(watched, self._ids, self._window, self._stride)
        agreement = None if self._book is None else compare(rows, self._book)
        self.rows.append(
            {
                "name": name,
                "bits_per_weight": weight_bytes and 8 * weight_bytes / self._num_weights,
                "perplexity": found.value,
                "nll": found.nll,
                "kl": float(np.mean(divergences)) if divergences else None,
                "top1": agreement and agreement.top1,
                "top5": agreement and agreement.top5,
            }
        )


def read_text(path: Path | None, checkpoint: Path, max_tokens: int | None) -> Int32:
    """Token ids of the text."""
    source = path or ROOT / "src" / "qwench" / "evaluate" / "data" / "text.txt"
    ids = Tokenizer(checkpoint).encode(source.read_text(encoding="utf-8"))
    return np.array(ids[:max_tokens], np.int32)


def measure_qwench(judge: Judge, artifact: Artifact, name: str, threads: int) -> None:
    with CompiledModel(artifact, threads) as model:
        judge.measure(name, model.logit_rows, artifact.weights_bytes)


@contextmanager
def llama_rows(worker: Worker, compiled: str, positions: int, threads: int, folder: Path) -> Iterator[LogitRows]:
    """llama.cpp's logits, by way of a file."""
    worker.ask("load", path=compiled, threads=threads, positions=positions, users=1)
    path = folder / "logits.npy"

    def rows(token_ids: Int32, first: int) -> Iterator[tuple[int, Float32]]:
        worker.ask("logits", token_ids=token_ids.tolist(), first=first, out=str(path))
        yield first, np.load(path)

    try:
        yield rows
    finally:
        path.unlink(missing_ok=True)


def measure_llama(judge: Judge, args: argparse.Namespace, folder: Path, threads: int) -> None:
    """Each format in a worker of its own; says so and goes on without where it can't run."""
    for name in args.formats:
        log = folder / "llama.log"
        try:
            with Worker(LLAMA, args.peer_python, log) as worker:
                version = worker.ask("describe")["version"]
                made = worker.ask(
                    "compile", checkpoint=str(args.checkpoint), format_name=name, out=str(folder / f"gguf-{name}"),
                    max_positions=args.window, threads=threads, target="cpu",
                )  # fmt: skip
                with llama_rows(worker, made["path"], max(args.window, NUM_TOKENS), threads, folder) as rows:
                    judge.measure(f"{LLAMA} {LLAMA_NAMES[name]} ({version})", rows, made["weight_bytes"])
            shutil.rmtree(folder / f"gguf-{name}")
        except WorkerError as error:
            why = "isn't installed there" if error.is_absent else log.read_text(errors="replace")[-300:]
            print(f"{LLAMA} {name} is left out: {error} ({why})", file=sys.stderr)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One run, as a report."""
    threads, stride = args.threads or num_cpus(), args.stride or args.window // 2
    ids = read_text(args.text, args.checkpoint, args.max_tokens)
    truth = open_transformers(args.checkpoint, "fp32", num_threads=threads)
    book = make_book(truth_rows(truth), ids, truth.name) if len(ids) >= NUM_TOKENS else None
    weights = build_program(ModelSpec.from_folder(args.checkpoint)).weights.values()
    num_weights = sum(int(np.prod(weight.shape)) for weight in weights)
    with tempfile.TemporaryDirectory(prefix="quality-", dir=build_folder()) as made:
        folder = Path(made)
        judge = Judge(ids, args.window, stride, book, num_weights, folder / "truth")
        judge.measure(truth.name, truth_rows(truth))
        if not args.no_bf16:
            bf16 = open_transformers(args.checkpoint, "bf16", num_threads=threads)
            judge.measure(bf16.name, truth_rows(bf16))
        for name in args.formats:
            kind, head = OPTIONS[name]
            config = QwenchConfig(weights=kind, head_weights=head, max_seq_len=max(args.window, NUM_TOKENS))
            artifact = compile_checkpoint(args.checkpoint, folder / name, config)
            measure_qwench(judge, artifact, f"qwench {name}", threads)
        for path in args.artifact:
            measure_qwench(judge, open_artifact(path), f"qwench {path.name}", threads)
        measure_llama(judge, args, folder, threads)
    return {
        "checkpoint": str(args.checkpoint),
        "text": str(args.text or "shipped"),
        "num_tokens": len(ids),
        "window": args.window,
        "stride": stride,
        "rows": judge.rows,
    }


def show(report: dict[str, Any]) -> None:
    truth = report["rows"][0]["perplexity"]
    print(
        f"{report['checkpoint']} on {report['text']}: {report['num_tokens']} tokens, window {report['window']}, stride "
        f"{report['stride']}; KL from fp32 in nats; top-1 and top-5 of 511 predictions after 512 tokens"
    )
    headings = ("", "bits a weight", "perplexity", "to fp32", "KL", "top-1", "top-5")
    print_table(headings, [_cells(row, truth) for row in report["rows"]], right=headings[1:])


def _cells(row: dict[str, Any], truth: float) -> tuple[str, ...]:
    def cell(value: float | None, kind: str) -> str:
        return "" if value is None else format(value, kind)

    return (
        row["name"], cell(row["bits_per_weight"], ".2f"), cell(row["perplexity"], ".4f"),
        cell(row["perplexity"] / truth - 1, "+.3%"), cell(row["kl"], ".1e"), cell(row["top1"], ".2%"),
        cell(row["top5"], ".2%"),
    )  # fmt: skip


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    check_checkpoint(parser, args.checkpoint)
    report = measure(args)
    show(report)
    write_json(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
