"""`qwench eval`: how good a compiled model is at text: perplexity, and the book test.

With --against its checkpoint's own figures stand beside it. `evaluate/` measures; this reads the text and prints. Exits
with code 1 when a limit is missed.
"""

from __future__ import annotations

import functools
import json
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.options.loading import add_model, config_of
from qwench.cli.terminal.progress import ProgressDisplay, show_tokens

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact
    from qwench.evaluate.book import Book
    from qwench.evaluate.perplexity import LogitRows
    from qwench.evaluate.truth import Truth
    from qwench.targets.target import Int32

NOT_GOOD_ENOUGH = 1
DEFAULT_WINDOW = 1024


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help="what to read; default: a scene of Shakespeare's that comes with qwench",
    )
    add("--window", type=int, metavar="N", help=f"tokens read at once; default {DEFAULT_WINDOW}, or the model's limit")
    add("--stride", type=int, metavar="N", help="tokens from one window to the next; default half a window")
    add("--max-tokens", type=int, metavar="N", help="of the text; default all")
    add("--against", metavar="CHECKPOINT", help="measure the checkpoint in fp32 as well: folder or hub id")
    add("--truth", choices=("auto", "transformers", "reference"), default="auto", help="who runs it; see verify")
    add("--also", choices=("transformers-bf16",), action="append", default=[], help="and a further model")
    add("--book", type=Path, metavar="FILE", help="compare 511 predictions with those stored in FILE")
    add("--write-book", type=Path, metavar="FILE", help="store those of the checkpoint (--against) on this text")
    add("--max-loss", type=float, metavar="PERCENT", help="exit with 1 if the perplexity is worse by more (--against)")
    add("--json", action="store_true", help="print one JSON object instead of a table")


def execute(args: Namespace) -> int:
    """Measure perplexity on a text, and agreement with the original's predictions."""
    from qwench.cli.reports.eval_report import print_report
    from qwench.host import num_cpus
    from qwench.load import resolve_model

    _check(args)
    with ProgressDisplay() as progress:
        artifact = resolve_model(args.model, config_of(args), progress=progress)
    threads = num_cpus() if args.threads is None else args.threads
    ids = _token_ids(args, artifact)
    window, stride = _window(args, artifact)
    originals = _originals(args, artifact, threads)
    book = _book(args, artifact, originals[0] if originals else None, ids)
    report: dict[str, Any] = {
        "model": args.model,
        "text": str(args.text or "shipped"),
        "num_tokens": len(ids),
        "window": window,
        "stride": stride,
        "book": book and book.made_by,
        "rows": _rows(artifact, originals, threads, ids, window, stride, book),
    }
    ok = _judge(args, report)
    if args.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return 0 if ok else NOT_GOOD_ENOUGH


def _check(args: Namespace) -> None:
    from qwench.errors import ConfigError

    for name in ("write_book", "max_loss"):
        if getattr(args, name) is not None and args.against is None:
            raise ConfigError(f"--{name.replace('_', '-')} needs --against CHECKPOINT")
    if args.also and args.against is None:
        raise ConfigError("--also needs --against CHECKPOINT")
    if args.max_tokens is not None and args.max_tokens < 2:
        raise ConfigError(f"--max-tokens is {args.max_tokens}; it must be at least 2")


def _token_ids(args: Namespace, artifact: Artifact) -> Int32:
    """The tokens of the text. Raises RequestError for what can't be read or encoded."""
    from importlib import resources

    import numpy as np

    from qwench.checkpoint.tokenizer_files import has_tokenizer
    from qwench.errors import RequestError
    from qwench.text.tokenizer import Tokenizer

    if not has_tokenizer(artifact.path):
        raise RequestError(f"{args.model} has no tokenizer files, so no text can be read to it")
    shipped = resources.files("qwench.evaluate") / "data" / "text.txt"
    try:
        text = (shipped if args.text is None else args.text).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{args.text} is not UTF-8 (byte {error.start})") from None
    ids = Tokenizer(artifact.path).encode(text)
    return np.array(ids[: args.max_tokens], np.int32)


def _window(args: Namespace, artifact: Artifact) -> tuple[int, int]:
    """Window and stride. Raises ConfigError for a window that the model can't read at once."""
    from qwench.errors import ConfigError

    limit = artifact.config.max_seq_len
    assert limit is not None, "an artifact's config is resolved"
    window = min(DEFAULT_WINDOW, limit) if args.window is None else args.window
    if window > limit:
        raise ConfigError(f"--window is {window}, but the model was compiled for sequences of up to {limit} tokens")
    return window, window // 2 if args.stride is None else args.stride


def _originals(args: Namespace, artifact: Artifact, threads: int) -> list[Truth]:
    """The checkpoint in fp32, then what --also names; none without --against."""
    if args.against is None:
        return []
    from qwench.checkpoint.hub import find_checkpoint
    from qwench.checkpoint.open_checkpoint import open_checkpoint
    from qwench.evaluate.truth import open_transformers, open_truth
    from qwench.evaluate.verify import check_same_model

    checkpoint, _ = find_checkpoint(args.against, None)
    check_same_model(artifact, open_checkpoint(checkpoint).spec)
    also = [open_transformers(checkpoint, "bf16", artifact.config, threads) for _ in dict.fromkeys(args.also)]
    return [open_truth(checkpoint, artifact.config, args.truth, threads), *also]


def _book(args: Namespace, artifact: Artifact, truth: Truth | None, ids: Int32) -> Book | None:
    """The stored book, else one that the checkpoint writes now, else none."""
    from qwench.evaluate.book import NUM_TOKENS, load_book, make_book, save_book
    from qwench.evaluate.perplexity import truth_rows

    limit = artifact.config.max_seq_len
    assert limit is not None
    book = None if args.book is None else load_book(args.book, artifact.program.spec.vocab_size)
    is_possible = limit >= NUM_TOKENS and (len(ids) >= NUM_TOKENS or args.write_book is not None)
    if truth is not None and is_possible and (book is None or args.write_book is not None):
        made = make_book(truth_rows(truth), ids, f"{truth.name}, {Path(args.against).name}")
        if args.write_book is not None:
            save_book(made, args.write_book)
        book = book or made
    return book


def _rows(
    artifact: Artifact, originals: list[Truth], threads: int, ids: Int32, window: int, stride: int, book: Book | None
) -> list[dict[str, Any]]:
    from qwench.evaluate.compiled import CompiledModel
    from qwench.evaluate.perplexity import truth_rows

    num_weights = sum(math.prod(weight.shape) for weight in artifact.program.weights.values())
    with CompiledModel(artifact, threads) as model:
        name = f"qwench {artifact.config.weights}"
        ours = {"name": name, "bits_per_weight": 8 * artifact.weights_bytes / num_weights}
        rows = [ours | _measure(name, model.logit_rows, ids, window, stride, book)]
    for original in originals:
        figures = _measure(original.name, truth_rows(original), ids, window, stride, book)
        rows.append({"name": original.name, "bits_per_weight": None} | figures)
    return rows


def _measure(name: str, rows: LogitRows, ids: Int32, window: int, stride: int, book: Book | None) -> dict[str, Any]:
    from qwench.evaluate.book import compare
    from qwench.evaluate.perplexity import perplexity

    found = perplexity(rows, ids, window, stride, functools.partial(show_tokens, f"{name}:"))
    agreement = None if book is None else compare(rows, book)
    return {
        "perplexity": found.value,
        "nll": found.nll,
        "num_scored": found.num_scored,
        "top1": agreement and agreement.top1,
        "top5": agreement and agreement.top5,
    }


def _judge(args: Namespace, report: dict[str, Any]) -> bool:
    """Adds to the report by how many percent our perplexity is worse than the checkpoint's. Returns whether that is
    within --max-loss."""
    ours, *originals = report["rows"]
    report["loss_percent"] = 100 * (ours["perplexity"] / originals[0]["perplexity"] - 1) if originals else None
    report["max_loss_percent"] = args.max_loss
    report["ok"] = bool(args.max_loss is None or report["loss_percent"] <= args.max_loss)
    return bool(report["ok"])
