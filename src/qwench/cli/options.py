"""Options that several commands share, and the LLM, config and SamplingParams that they give."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwench.config import QwenchConfig
    from qwench.llm import LLM
    from qwench.runtime.sampling.sampling_params import SamplingParams
    from qwench.runtime.structured_output.grammar import Grammar

DEFAULT_MAX_NEW_TOKENS = 512
DEFAULT_GUESSES = 16  # more don't pay, not even in text that is copied whole
DEFAULT_MODEL = Path("models/qwench-tiny")
WEIGHTS_HELP = "bf16, int8 or int4, for a MODEL still to be compiled; default bf16"
ROPE_SCALING_HELP = (
    "instead of the checkpoint's: TYPE:FACTOR such as yarn:4, which also makes the context so much longer, or a JSON "
    "object as in config.json"
)
SAMPLING = ("temperature", "top_k", "top_p", "seed", "max_thinking_tokens", "prompt_lookup_num_tokens")


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


def add_sampling(parser: ArgumentParser) -> None:
    """How to choose the tokens of an answer, and how many."""
    add = parser.add_argument
    add(
        "--max-new-tokens", type=int, metavar="N",
        help=f"tokens of an answer; default {DEFAULT_MAX_NEW_TOKENS}, or what the context leaves",
    )  # fmt: skip
    add(
        "--temperature", type=float, metavar="T",
        help="0 takes the likeliest token each time; default, here and below: what the model's generation_config.json "
        "says",
    )  # fmt: skip
    add("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens; 0: all")
    add("--top-p", type=float, metavar="P", help="sample among the likeliest that together reach P; 1: all")
    add(
        "--max-thinking-tokens", type=int, metavar="N",
        help="of a model that thinks before it answers, how many tokens its thought may have; 0: none",
    )  # fmt: skip
    add("--seed", type=int, metavar="S", help="same seed, same answer")
    add(
        "--prompt-lookup", dest="prompt_lookup_num_tokens", type=int, nargs="?", const=DEFAULT_GUESSES, metavar="N",
        help="check up to N tokens a step that followed the last ones earlier in the text: the same answer, sooner "
        f"where it repeats the prompt or itself; N is {DEFAULT_GUESSES} unless given",
    )  # fmt: skip


def add_grammar(parser: ArgumentParser) -> None:
    """Structured output."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json-schema", type=Path, metavar="FILE", help="the answer is JSON that this schema describes")
    forms.add_argument("--regex", metavar="R", help="the whole answer matches this regular expression (Rust's dialect)")


def grammar(args: Namespace) -> Grammar | None:
    """The grammar of the options of `add_grammar`, not compiled yet. Raises GrammarError."""
    from qwench.errors import GrammarError
    from qwench.runtime.structured_output.grammar import Grammar

    if args.regex is not None:
        return Grammar("regex", args.regex)
    if args.json_schema is None:
        return None
    try:
        return Grammar("json_schema", args.json_schema.read_text(encoding="utf-8"))
    except OSError as error:
        raise GrammarError(f"--json-schema {args.json_schema} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GrammarError(f"--json-schema {args.json_schema} is not UTF-8 (byte {error.start})") from None


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


def load(args: Namespace) -> LLM:
    """The model, compiled first if need be, with progress on stderr."""
    from qwench.cli.progress import ProgressDisplay
    from qwench.llm import LLM

    with ProgressDisplay() as progress:
        lora = {args.lora: args.lora} if getattr(args, "lora", None) else None
        return LLM(
            args.model, config=config_of(args), num_threads=args.threads, on_progress=progress, lora=lora,
            draft=getattr(args, "draft", None),
        )  # fmt: skip


def sampling_params(args: Namespace, llm: LLM) -> SamplingParams:
    """The defaults of the model's generation_config.json, overridden by the given options. Raises RequestError."""
    asked: dict[str, Any] = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    return dataclasses.replace(llm.defaults.params, **asked)
