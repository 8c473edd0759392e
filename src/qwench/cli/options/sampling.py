"""How an answer is sampled, and its form: options of run and chat, and the SamplingParams and Grammar they give."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwench.llm import LLM
    from qwench.runtime.sampling.sampling_params import SamplingParams
    from qwench.runtime.structured_output.grammar import Grammar

DEFAULT_MAX_NEW_TOKENS = 512
DEFAULT_GUESSES = 16  # more don't pay, not even in text that is copied whole
SAMPLING = ("temperature", "top_k", "top_p", "seed", "max_thinking_tokens", "prompt_lookup_num_tokens")


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


def grammar_of(args: Namespace) -> Grammar | None:
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


def sampling_params_of(args: Namespace, llm: LLM) -> SamplingParams:
    """The defaults of the model's generation_config.json, overridden by the given options. Raises RequestError."""
    asked: dict[str, Any] = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    return dataclasses.replace(llm.defaults.params, **asked)
