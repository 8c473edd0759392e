"""MODEL and how to load it: the options that commands share, and the QwenchConfig and LLM that they give."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwench.config import QwenchConfig
    from qwench.llm import LLM

DEFAULT_MODEL = Path("models/qwench-tiny")
WEIGHTS_HELP = "bf16, int8 or int4, for a MODEL still to be compiled; default bf16"
ROPE_SCALING_HELP = (
    "instead of the checkpoint's: TYPE:FACTOR such as yarn:4, which also makes the context so much longer, or a JSON "
    "object as in config.json"
)


def add_model(parser: ArgumentParser) -> None:
    """MODEL, and how to load it."""
    parser.add_argument("model", metavar="MODEL", help="artifact, checkpoint folder, .gguf file or hub id")
    parser.add_argument("--weights", metavar="KIND", help=WEIGHTS_HELP)
    add_loading(parser)


def add_loading(parser: ArgumentParser) -> None:
    """How to load a model, beside `--weights`."""
    add = parser.add_argument
    add("--threads", type=int, metavar="N", help="default: the processors this process may use")
    add("--max-seq-len", type=int, metavar="N", help="tokens of prompt and answer, for a MODEL still to be compiled")
    add("--rope-scaling", metavar="S", help=ROPE_SCALING_HELP)
    add("--target", metavar="T", help="run with other kernels, such as cpu-generic")
    add_ranks(parser)
    add("--memory", metavar="SIZE", help="what the loaded model may use, such as 8GiB; default: what is free")
    add("--kvcache-num-blocks", type=int, metavar="N", help="cache blocks; default: what memory allows")
    add("--timeout", type=float, metavar="SECONDS", help="fail a request that takes longer; default: no limit")


def add_draft(parser: ArgumentParser) -> None:
    """A model that guesses."""
    parser.add_argument("--draft", metavar="MODEL", help="a small model of the same tokenizer that guesses tokens, "
        "which MODEL checks several at a time: the same answer, sooner")  # fmt: skip


def add_ranks(parser: ArgumentParser) -> None:
    """In how many processes to compute."""
    add = parser.add_argument
    add("--tensor-parallel-size", type=int, metavar="N", help="processes that compute each step together, each "
        "with its share of weights and cache; same bits")  # fmt: skip
    add("--shares", metavar="A,B,...", help="how much each of them takes, as 2,1,1; default: alike")


def add_lora(parser: ArgumentParser) -> None:
    """For commands of one user."""
    parser.add_argument("--lora", metavar="FOLDER", help="answer with this LoRA adapter, as PEFT saves it")


def default_model() -> str:
    """The model that comes with a clone: beside the working folder, or beside the source that is running. Raises
    CheckpointError where there is none, as after `pip install` from an index."""
    import qwench
    from qwench.errors import CheckpointError

    clone = Path(qwench.__file__).parents[2]
    for folder in (Path(), clone):
        if (folder / DEFAULT_MODEL / "config.json").is_file():
            return str(folder / DEFAULT_MODEL)
    raise CheckpointError(
        f"there is no MODEL, and no {DEFAULT_MODEL} here: the default model comes with a clone of the repository; run "
        "this there, or name an artifact, a checkpoint folder or a hub id"
    )


def config_of(args: Namespace) -> QwenchConfig:
    """The options of a command that are fields of QwenchConfig. Raises ConfigError."""
    from qwench.cli.sizes import parse_size
    from qwench.config import QwenchConfig
    from qwench.program.recipes import read_overrides

    names = [field.name for field in dataclasses.fields(QwenchConfig)]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if "memory" in given:
        given["memory"] = parse_size(given["memory"], "--memory")
    if "overrides" in given:
        given["overrides"] = read_overrides(given["overrides"])
    return QwenchConfig(**given)


def load_llm(args: Namespace) -> LLM:
    """The model, compiled first if need be, with progress on stderr."""
    from qwench.cli.terminal.progress import ProgressDisplay
    from qwench.llm import LLM

    with ProgressDisplay() as progress:
        lora = {args.lora: args.lora} if getattr(args, "lora", None) else None
        return LLM(
            args.model, config=config_of(args), num_threads=args.threads, on_progress=progress, lora=lora,
            draft=getattr(args, "draft", None),
        )  # fmt: skip
