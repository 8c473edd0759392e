"""`qwench bench-serve`: a running server under load, from its clients' side; `evaluate/load/` does the work."""

from __future__ import annotations

import asyncio
import json
import os
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.cli.terminal.progress import AnswerCount
from qwench.errors import ConfigError

if TYPE_CHECKING:
    from qwench.evaluate.load.plan import LoadPlan


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("url", type=_with_scheme, metavar="URL", help="a server with OpenAI's API: qwench's, llama.cpp's, vLLM's")
    add("--users", type=int, metavar="N", help="each asks again when the last answer is there; default 8")
    add("--rate", type=float, metavar="R", help="instead: requests a second, whatever is open (Poisson); inf: at once")
    add("--requests", type=int, default=64, metavar="N", help="in all; default 64")
    add("--prompt", default="512", metavar="LENGTH", help="tokens: N, LOW-HIGH or exp:MEAN; default 512")
    add("--answer", default="64", metavar="LENGTH", help="tokens, likewise; default 64")
    add(
        "--lengths", type=Path, metavar="FILE", help='instead: drawn from lines of {"prompt": TOKENS, "answer": TOKENS}'
    )
    add("--stop-early", action="store_true", help="let answers end where the model ends them, not at their length")
    add("--model", metavar="NAME", help="default: the server's first one")
    add("--api-key-file", type=Path, metavar="FILE", help="its first line is the key; or $OPENAI_API_KEY")
    add("--ttft-goal", type=float, metavar="S", help="first token within S seconds, for the goodput")
    add("--tpot-goal", type=float, metavar="S", help="S seconds per token after it, likewise")
    add("--timeout", type=float, default=600.0, metavar="S", help="without a byte from the server; default 600")
    add("--seed", type=int, default=0, metavar="N", help="of lengths, texts and arrivals; default 0")
    add("--json", type=Path, metavar="FILE", help="write figures and every request")
    add("--plot", type=Path, metavar="FILE", help="draw it: .png, .svg or .pdf")


def execute(args: Namespace) -> None:
    """Put a running server under load: what its users wait for, and how many answers keep the goals."""
    from qwench.cli.reports import load_report
    from qwench.evaluate.fidelity_plot import check_can_draw
    from qwench.evaluate.load.client import LoadClient
    from qwench.evaluate.load.figures import Goals, figures

    plan, goals = _plan(args), Goals(args.ttft_goal, args.tpot_goal)
    if any(value is not None and not value > 0 for value in (args.timeout, goals.ttft_s, goals.tpot_s)):
        raise ConfigError("--timeout, --ttft-goal and --tpot-goal are seconds above 0")
    if args.plot is not None:
        check_can_draw(args.plot)
    client = LoadClient(
        args.url, model=args.model, key=_key(args.api_key_file), timeout_s=args.timeout, stop_early=args.stop_early
    )
    with AnswerCount(len(plan.requests)) as counter:
        outcomes = asyncio.run(client.run(plan, args.seed, counter.show))
    result = figures(outcomes, goals)
    load_report.print_report(args.url, plan, result)
    if args.json is not None:
        report = {"url": args.url, "figures": result.to_dict(), "requests": [asdict(o) for o in outcomes]}
        args.json.write_text(json.dumps(report), encoding="utf-8")
    if args.plot is not None:
        from qwench.evaluate.load.plot import draw

        draw(outcomes, goals, f"{args.url}: {load_report.who(plan)}", args.plot)


def _with_scheme(url: str) -> str:
    """localhost:8000, as curl takes it."""
    return url if "://" in url else f"http://{url}"


def _plan(args: Namespace) -> LoadPlan:
    from qwench.evaluate.load.plan import make_plan, parse_length, read_lengths

    users = 8 if args.users is None and args.rate is None else args.users
    if args.lengths is not None:
        pairs = read_lengths(args.lengths)
        return make_plan(
            args.requests,
            lambda random: pairs[random.integers(len(pairs))],
            users=users,
            rate=args.rate,
            seed=args.seed,
        )
    prompt, answer = parse_length(args.prompt), parse_length(args.answer)
    return make_plan(
        args.requests, lambda random: (prompt(random), answer(random)), users=users, rate=args.rate, seed=args.seed
    )


def _key(path: Path | None) -> str | None:
    """Raises ConfigError."""
    if path is None:
        return os.environ.get("OPENAI_API_KEY")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API key in {path} can't be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{path} holds no API key")
    return keys[0]
