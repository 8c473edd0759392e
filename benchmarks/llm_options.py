"""Options of benchmarks that measure the answers of an `LLM`, and the keywords that it is loaded with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_llm_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", metavar="KIND", help="bf16, int8 or int4, for a model still to be compiled")
    add("--generate", type=int, default=192, metavar="N", help="tokens of an answer at most; default 192")
    add("--rounds", type=int, default=5, metavar="N", help="default 5")
    add("--threads", type=int, metavar="N", help="default: the processors that this process may use")
    add("--json", type=Path, metavar="FILE", help="write everything measured")


def llm_keywords(args: argparse.Namespace) -> dict[str, Any]:
    return {"num_threads": args.threads} | ({"weights": args.weights} if args.weights else {})
