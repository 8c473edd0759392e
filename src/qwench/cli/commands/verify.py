"""`qwench verify`: is the compiled model still the checkpoint? `evaluate/` compares, `verify_report.py` shows it.

Exits with code 1 when a limit is missed.
"""

from __future__ import annotations

import functools
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.cli.options.loading import add_ranks, config_of
from qwench.cli.terminal.progress import show_tokens

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact
    from qwench.evaluate.fidelity import Limits
    from qwench.evaluate.prompts import Prompt
    from qwench.evaluate.truth import Truth

NOT_FAITHFUL = 1
TRUTHS = ("auto", "transformers", "reference")
OTHERS = ("transformers-bf16",)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="folder that `qwench compile` wrote")
    add("--against", required=True, metavar="CHECKPOINT", help="what it was compiled from: folder or hub id")
    add(
        "--prompts", type=Path, metavar="FILE",
        help="JSON list of texts, of objects with a `prompt` or of lists of token ids; else text with a prompt a line. "
        "Default: 28 that come with qwench, or random token ids where the model has no tokenizer",
    )  # fmt: skip
    add("--max-tokens", type=int, default=512, metavar="N", help="of each prompt; default 512, or the model's limit")
    add("--greedy", type=int, default=32, metavar="N", help="tokens of each greedy answer; 0: none; default 32")
    add("--seed", type=int, default=0, metavar="S", help="of random token ids; default 0")
    add(
        "--truth",
        choices=TRUTHS,
        default="auto",
        help="who runs the checkpoint in fp32; default transformers, if there",
    )
    add("--also", choices=OTHERS, action="append", default=[], help="compare a further model; ours must be no worse")
    add("--min-pcc", type=float, metavar="P", help="limit for the worst token's logits; default bf16 and int8: 0.999")
    add("--min-top1", type=float, metavar="P", help="limit for top-1 agreement, 0 to 1; default int8: 0.98, int4: 0.95")
    add("--threads", type=int, metavar="N", help="default: the processors this process may use")
    add_ranks(parser)
    add("--json", type=Path, metavar="FILE", help="write all figures; - for stdout, instead of tables")
    add("--plot", type=Path, metavar="FILE", help="draw errors by layer and by token, as .png, .svg or .pdf")


def execute(args: Namespace) -> int:
    """Compare a compiled model with its checkpoint, layer by layer and at the logits."""
    from qwench.cli.reports import verify_report
    from qwench.evaluate.verify import verify
    from qwench.host import num_cpus

    if args.plot is not None:
        from qwench.evaluate.fidelity_plot import check_can_draw, draw

        check_can_draw(args.plot)
    artifact, truth, others, prompts = _open(args)
    found = verify(
        artifact, truth, prompts, num_threads=args.threads or num_cpus(), num_greedy=args.greedy, others=others,
        limits=_limits(args, artifact), report=functools.partial(show_tokens, "compared"),
    )  # fmt: skip
    report = verify_report.describe(found, artifact, args.against)
    if args.json is not None and str(args.json) != "-":
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        draw(found, f"{artifact.path} ({found.weights}) against {found.truth}", args.plot)
    if str(args.json) == "-":
        print(json.dumps(report))
    else:
        verify_report.print_report(found, report)
    return 0 if found.ok else NOT_FAITHFUL


def _open(args: Namespace) -> tuple[Artifact, Truth, list[Truth], list[Prompt]]:
    """Opens and checks all inputs before the first long computation."""
    from qwench.artifact.artifact import open_artifact
    from qwench.checkpoint.hub import find_checkpoint
    from qwench.checkpoint.open_checkpoint import open_checkpoint
    from qwench.checkpoint.tokenizer_files import has_tokenizer
    from qwench.evaluate.prompts import load_prompts
    from qwench.evaluate.truth import open_transformers, open_truth
    from qwench.evaluate.verify import check_same_model
    from qwench.load import with_options
    from qwench.text.tokenizer import Tokenizer

    _check_numbers(args)
    artifact = with_options(open_artifact(args.artifact), config_of(args))
    checkpoint, _ = find_checkpoint(args.against, None)
    check_same_model(artifact, open_checkpoint(checkpoint).spec)
    tokenizer = Tokenizer(artifact.path) if has_tokenizer(artifact.path) else None
    limit = artifact.config.max_seq_len
    assert limit is not None, "an artifact's config is resolved"
    vocab_size = artifact.program.spec.vocab_size
    prompts = load_prompts(args.prompts, tokenizer, vocab_size, min(args.max_tokens, limit), args.seed)
    truth = open_truth(checkpoint, artifact.config, args.truth, args.threads)
    others = [open_transformers(checkpoint, "bf16", artifact.config, args.threads) for _ in dict.fromkeys(args.also)]
    return artifact, truth, others, prompts


def _check_numbers(args: Namespace) -> None:
    from qwench.errors import ConfigError

    for name, low in (("max_tokens", 2), ("greedy", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {low}")
    for name in ("min_pcc", "min_top1"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be from 0 to 1")


def _limits(args: Namespace, artifact: Artifact) -> Limits:
    """The limits of the weights format, overridden by the given options."""
    from qwench.evaluate.fidelity import LIMITS, Limits

    usual = LIMITS.get(str(artifact.config.weights), Limits())
    return Limits(
        usual.min_pcc if args.min_pcc is None else args.min_pcc,
        usual.min_top1 if args.min_top1 is None else args.min_top1,
    )
