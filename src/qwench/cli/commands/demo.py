"""`qwench demo`: users who all ask at once, and what they notice.

Turns options into a plan; `evaluate/users.py` runs it, `cli/reports/demo_report.py` shows what came of it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.failure import OUR_FAULT
from qwench.cli.options.loading import WEIGHTS_HELP, add_loading, config_of, default_model
from qwench.cli.terminal.progress import AnswerCount, ProgressDisplay
from qwench.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from qwench.evaluate.users import Plan
    from qwench.llm import LLM
    from qwench.progress import Progress
    from qwench.runtime.engine import Engine
    from qwench.runtime.outputs import TokenOutput

STYLES = ("instruct", "general")  # values of --weights that say how prompts are put, not how weights are stored
DEFAULT_USERS = 32
DETERMINISM_ROUNDS = 3


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="artifact, checkpoint folder or hub id; default: models/qwench-tiny")
    add(
        "--weights", metavar="KIND", action="append", default=[],
        help="instruct: prompts go through the chat template, the default if there is one; general: they are continued "
        f"as they are. May be given twice, since it is also, as elsewhere, {WEIGHTS_HELP}",
    )  # fmt: skip
    add("--raw", action="store_true", help="the same as --weights general")
    add("--users", type=int, metavar="N", help=f"who ask at the same time; default {DEFAULT_USERS}, or what fits")
    add(
        "--batches", type=_counts, metavar="N,...",
        help="questions of each user, the next one when the last is answered; default 1. 1,2,3 makes three runs",
    )  # fmt: skip
    add("--prompts", type=Path, metavar="FILE", help="JSON list of {prompt, context?, max_length?}; default: samples")
    add("--fetch", action="store_true", help="download contexts of the prompt file that are URLs")
    add("--iterations", type=int, default=120, metavar="N", help="tokens of an answer after its first; default 120")
    add(
        "--determinism", action="store_true",
        help=f"{DETERMINISM_ROUNDS} rounds of the same prompts, each time in other slots, must give the same tokens "
        "and the same logits; exit code 1 if they don't",
    )  # fmt: skip
    add("--show", type=int, default=2, metavar="N", help="answers to print; default 2")
    add("--verbose", action="store_true", help="print each iteration, once the clock has stopped")
    add("--json", metavar="FILE", help="write all that was measured and answered to FILE; -: print it, and only it")
    add_loading(parser)


def execute(args: Namespace) -> int:
    """Let users ask all at once, and measure what they notice."""
    from qwench.cli.reports import demo_report

    args.model = args.model or default_model()
    style, args.weights = _split_weights(args.weights, args.raw)
    llm, loaded = _load(args)
    with llm:
        style = _check_style(style, llm)
        texts, plans = _plans(args, llm, style)
        report = loaded | demo_report.work(style, plans[0])
        if args.json != "-":
            demo_report.print_header(report)
        code = (_run_determinism if args.determinism else _run)(args, llm, plans, texts, report)
    if args.json == "-":
        print(json.dumps(report))
    elif args.json is not None:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return code


def _counts(text: str) -> list[int]:
    """The numbers of "1,2,3"."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"{text!r} is not a number from 1, or several with commas between")
    return [int(part) for part in parts]


def _split_weights(values: Sequence[str], raw: bool) -> tuple[str | None, str | None]:
    """What --weights says of the prompts' style, and what of the weights' format; each at most once."""
    styles = {value for value in values if value in STYLES} | ({"general"} if raw else set())
    formats = {value for value in values if value not in STYLES}
    if len(styles) > 1 or len(formats) > 1:
        given = " ".join(f"--weights {value}" for value in values) + " --raw" * raw
        raise ConfigError(f"{given} contradict each other; give one style ({', '.join(STYLES)}) and one format")
    return next(iter(styles), None), next(iter(formats), None)


def _load(args: Namespace) -> tuple[LLM, dict[str, Any]]:
    """The model, and what the report says of it. compile_s is None if it had been compiled before.

    No prompt is looked up in the cache, so that each is read for real.
    """
    from qwench.artifact.artifact import is_artifact
    from qwench.host import cpu_name, num_cpus
    from qwench.llm import LLM
    from qwench.load import resolve_model

    config = config_of(args)
    if args.users is not None and args.users > DEFAULT_USERS and not is_artifact(Path(args.model)):
        config = dataclasses.replace(config, batch_size=args.users)
    stages: set[str] = set()
    start_s = time.perf_counter()
    with ProgressDisplay() as display:

        def on_progress(progress: Progress) -> None:
            stages.add(progress.stage)
            display(progress)

        artifact = resolve_model(args.model, config, progress=on_progress)
    compile_s = time.perf_counter() - start_s if "pack" in stages else None
    llm = LLM(artifact.path, config=config.at_load(), num_threads=args.threads, enable_prefix_caching=False)
    threads = num_cpus() if args.threads is None else args.threads
    return llm, {
        "model": args.model,
        "weights": artifact.config.weights,
        "machine": {"cpu": cpu_name(), "threads": threads, "target": artifact.config.target},
        "compile_s": compile_s,
        "load_s": llm.load_s,
    }


def _check_style(style: str | None, llm: LLM) -> str:
    """The style asked for, or what suits the model. Raises RequestError when the model can't serve it."""
    if llm.tokenizer is None:
        raise RequestError("this model has no tokenizer files, and prompts are text; add tokenizer.json to it")
    if style == "instruct" and not llm.tokenizer.chat_template:
        raise RequestError("this model has no chat template for --weights instruct; use --weights general")
    return style or ("instruct" if llm.tokenizer.chat_template else "general")


def _plans(args: Namespace, llm: LLM, style: str) -> tuple[list[str], list[Plan]]:
    """The prompts as the model gets them, and for each number of batches the plan that asks them."""
    from qwench.evaluate.users import Plan
    from qwench.runtime.sampling.sampling_params import SamplingParams
    from qwench.text.chat import render_chat
    from qwench.text.generation import chat_params
    from qwench.text.prompt_file import read_prompts, sample_file

    assert llm.tokenizer is not None
    prompts = read_prompts(args.prompts or sample_file(style), fetch=args.fetch)
    stops: tuple[int, ...] = ()
    if style == "general":
        texts = [prompt.as_text() for prompt in prompts]
        tokens = [llm.tokenizer.encode(text) for text in texts]
    else:
        texts = [prompt.as_instruction() for prompt in prompts]
        turns = [render_chat(llm.tokenizer, [{"role": "user", "content": text}]) for text in texts]
        tokens = [llm.tokenizer.encode(turn, add_special_tokens=False) for turn in turns]
        stops = tuple(chat_params(SamplingParams(), llm.tokenizer, llm.engine.eos_token_ids).stop_token_ids)
    users = _default_users(llm.engine, tokens, args.iterations) if args.users is None else args.users
    if args.determinism:
        if args.batches is not None:
            raise ConfigError(f"--determinism always makes {DETERMINISM_ROUNDS} rounds; leave --batches out")
        return texts, [Plan(tokens[:users], users, DETERMINISM_ROUNDS, args.iterations, stops)]
    return texts, [Plan(tokens, users, batches, args.iterations, stops) for batches in args.batches or [1]]


def _default_users(engine: Engine, prompts: Sequence[Sequence[int]], num_iterations: int) -> int:
    """As many as the demo has by default, or as batch_size and cache allow."""
    blocks = engine.scheduler.most_blocks(max(map(len, prompts)) + num_iterations)
    return max(1, min(DEFAULT_USERS, engine.max_num_seqs, engine.cache.num_blocks // blocks))


def _run(args: Namespace, llm: LLM, plans: Sequence[Plan], texts: Sequence[str], report: dict[str, Any]) -> int:
    """Measures each plan and puts it into the report."""
    from qwench.cli.reports import demo_report
    from qwench.evaluate.users import run_users

    recordings = []
    for plan in plans:
        with AnswerCount(plan.num_users * plan.num_batches) as count:
            recordings.append(run_users(llm.engine, plan, _counting(count)))
    report["runs"] = [demo_report.run_report(recording, llm, texts) for recording in recordings]
    if args.json != "-":
        demo_report.print_runs(report["runs"], args.verbose, args.show)
    return 0


def _run_determinism(
    args: Namespace, llm: LLM, plans: Sequence[Plan], texts: Sequence[str], report: dict[str, Any]
) -> int:
    """Checks the one plan; the exit code says whether it holds."""
    from qwench.cli.reports import demo_report
    from qwench.evaluate.determinism import check_determinism

    [plan] = plans
    with AnswerCount(plan.num_users * plan.num_batches) as count:
        found = check_determinism(llm.engine, plan, _counting(count))
    report["determinism"] = demo_report.determinism_report(found)
    if args.json != "-":
        demo_report.print_determinism(report["determinism"])
    return OUR_FAULT if found.differences else 0


def _counting(count: AnswerCount) -> Callable[[list[TokenOutput]], None]:
    """Shows how many answers the outputs of all steps so far have completed."""
    done = 0

    def watch(outputs: list[TokenOutput]) -> None:
        nonlocal done
        done += sum(output.finish_reason is not None for output in outputs)
        count.show(done)

    return watch
