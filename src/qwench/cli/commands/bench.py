"""`qwench bench`: the machine, its ceiling, what the model reaches, and the ratio of the two.

Whole steps by default, op by op with --profile; `evaluate/` measures, `cli/reports/bench_report.py` shows it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from qwench.cli.options.loading import add_draft, add_model, config_of
from qwench.errors import ConfigError

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact
    from qwench.evaluate.cost import CostModel
    from qwench.evaluate.machine import Machine
    from qwench.evaluate.throughput import Round, Workload
    from qwench.runtime.engine import Engine


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser)
    add_draft(parser)
    add = parser.add_argument
    add("--prompt", type=int, metavar="N", help="tokens of a prompt; default 512, or what fits")
    add("--generate", type=int, metavar="N", help="tokens of an answer; default 64, or what fits")
    add("--users", type=int, default=1, metavar="N", help="prompts at the same time; default 1")
    add("--rounds", type=int, default=3, metavar="N", help="ceiling and model, in turns; medians count; default 3")
    add("--seed", type=int, default=0, metavar="S", help="of the random prompts; default 0")
    add("--profile", action="store_true", help="time each op, and compare each with the ceiling")
    add("--json", action="store_true", help="print one JSON object instead of tables; with --profile, every op in it")


def execute(args: Namespace) -> None:
    """Measure speed beside what this machine could reach at most."""
    from qwench.cli.reports.bench_report import print_report
    from qwench.cli.terminal.progress import ProgressDisplay
    from qwench.evaluate.cost import CostModel
    from qwench.evaluate.machine import this_machine
    from qwench.host import num_cpus
    from qwench.load import resolve_model
    from qwench.load_draft import resolve_draft
    from qwench.runtime.loading import load_engine

    if args.draft and args.profile:
        raise ConfigError("--profile times the ops of one model; leave out --draft")
    with ProgressDisplay() as progress:
        artifact = resolve_model(args.model, config_of(args), progress=progress)
        draft = None if args.draft is None else resolve_draft(args.draft, artifact, progress)
    threads = num_cpus() if args.threads is None else args.threads
    engine = load_engine(artifact, num_threads=threads, enable_prefix_caching=False, draft=draft)
    try:
        workload = _workload(args, engine)
        assert artifact.config.target is not None, "an artifact's config is resolved"
        machine = this_machine(artifact.config.target, threads)
        costs = CostModel.for_target(artifact.program, artifact.get_target(), engine.cache)
        measure = _profile if args.profile else _throughput
        report = _header(args.model, artifact, engine, threads, workload)
        report |= measure(engine, costs, machine, workload)
    finally:
        engine.close()
    if args.json:
        print(json.dumps(report))
    else:
        print_report(report)


def _workload(args: Namespace, engine: Engine) -> Workload:
    """What was asked for; a default that the model's context can't hold is cut to what fits."""
    from qwench.evaluate.throughput import Workload

    generate = min(64, engine.max_seq_len // 4) if args.generate is None else args.generate
    prompt = max(1, min(512, engine.max_seq_len - generate)) if args.prompt is None else args.prompt
    return Workload(prompt, generate, args.users, args.rounds, args.seed)


def _header(model: str, artifact: Artifact, engine: Engine, threads: int, workload: Workload) -> dict[str, Any]:
    """What was measured on what: the start of both reports."""
    from qwench.host import cpu_name

    num_weights = sum(math.prod(weight.shape) for weight in artifact.program.weights.values())
    return {
        "model": model,
        "weights": artifact.config.weights,
        "bytes_per_weight": artifact.weights_bytes / num_weights,
        "machine": {"cpu": cpu_name(), "threads": threads, "target": artifact.config.target},
        "kernel_choice": artifact.get_target().kernel_choice(artifact.program),
        "kernels": sorted(set(engine.executor.kernels().values())),
        "workload": dataclasses.asdict(workload),
    }


def _throughput(engine: Engine, costs: CostModel, machine: Machine, workload: Workload) -> dict[str, Any]:
    """Medians over rounds, ratios as medians of each round's own, and every round."""
    from qwench.evaluate.throughput import measure_throughput, median

    rounds: list[Round] = measure_throughput(engine, costs, machine, workload)
    kinds, metrics = rounds[0].ceiling.peak_gops, engine.metrics
    guesses = {
        name: getattr(metrics, name)
        for name in ("drafted_tokens", "accepted_tokens", "draft_steps", "draft_s", "steps")
    }
    return {
        **({"draft": guesses} if engine.speculation.draft is not None else {}),
        "prefill_tokens_per_s": median(rounds, lambda r: r.speed.prefill_tokens_per_s),
        "decode_tokens_per_s": median(rounds, lambda r: r.speed.decode_tokens_per_s),
        "ttft_s": median(rounds, lambda r: r.speed.ttft_s),
        "ceiling": {
            "read_gbps": median(rounds, lambda r: r.ceiling.read_gbps),
            "peak_gops": {kind: median(rounds, lambda r, kind=kind: r.ceiling.peak_gops[kind]) for kind in kinds},  # type: ignore[misc]
            "prefill_tokens_per_s": median(rounds, lambda r: r.ceiling.prefill_tokens_per_s),
            "decode_tokens_per_s": median(rounds, lambda r: r.ceiling.decode_tokens_per_s),
            "prefill_ratio": median(rounds, lambda r: r.speed.prefill_tokens_per_s / r.ceiling.prefill_tokens_per_s),
            "decode_ratio": median(rounds, lambda r: r.speed.decode_tokens_per_s / r.ceiling.decode_tokens_per_s),
        },
        "rounds": [dataclasses.asdict(r) for r in rounds],
    }


def _profile(engine: Engine, costs: CostModel, machine: Machine, workload: Workload) -> dict[str, Any]:
    """Limits of the machine, and for prefill and decode every op, with the fields of `StepProfile` and `OpProfile`."""
    from qwench.evaluate.profile import measure_profile

    profile = measure_profile(engine, costs, machine, workload)
    return {
        "ceiling": dataclasses.asdict(profile.limits),
        "prefill": dataclasses.asdict(profile.prefill),
        "decode": dataclasses.asdict(profile.decode),
    }
