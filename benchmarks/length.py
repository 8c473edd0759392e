"""`python -m benchmarks.length MODEL`: time and memory of long contexts, as a curve over their length.

Reading a prompt goes in steps, and what a step costs depends only on where it begins. So for each length the cache is
filled (with copies of one block: time doesn't depend on what is in it), the last step of a prompt of this length is
timed, and one token after it. The whole prompt's time is the sum over its steps, those between the measured ones
interpolated. `--whole N` reads N tokens for real through the engine and continues them: that shows how true the sum is,
and how true the memory plan.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.folders import write_json
from qwench import SamplingParams
from qwench.config import QwenchConfig
from qwench.evaluate.profile import block_tables
from qwench.host import cpu_name, num_cpus
from qwench.load import resolve_model
from qwench.runtime.engine import Engine
from qwench.runtime.loading import CompiledModel, load_engine, memory_budget
from qwench.targets.target import StepBatch

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
ANSWER = 32  # tokens that continue a whole prompt


def resident_bytes() -> int:
    """What this process holds in memory now."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def planned_bytes(model: CompiledModel, length: int) -> int:
    """Weights, activations, logits, and RoPE and cache of one sequence of `length` tokens."""
    config, spec = model.config, model.program.spec
    assert config.max_seq_len is not None, "an artifact's config is resolved"
    blocks = config.cache(1).block_bytes(model.program) * config.blocks_of_one_sequence(spec, length)
    later_rope = (config.max_seq_len - length) * spec.head_dim * 4
    return memory_budget(model).used - later_rope + blocks


class Measuring:
    """One engine, whose executor is given steps directly."""

    def __init__(self, engine: Engine, length: int, repeats: int) -> None:
        self.engine, self.executor, self.repeats = engine, engine.executor, repeats
        self.tables = block_tables(engine, 1, length)
        self.tokens = np.random.default_rng(0).integers(0, engine.vocab_size, length, np.int32)
        self._run(0, engine.cache.block_size)  # so that there is a block to copy

    def _run(self, start: int, count: int) -> float:
        """Seconds of a step of `count` tokens from position `start` on."""
        batch = StepBatch(
            self.tokens[start : start + count], np.array([0, count], np.int32), np.array([start + count], np.int32),
            self.tables, np.array([count - 1], np.int32),
        )  # fmt: skip
        begin = time.perf_counter()
        self.executor.step(batch)
        return time.perf_counter() - begin

    def fill(self, start: int, stop: int) -> None:
        """Puts copies of one block, the first, where positions from `start` to `stop` lie."""
        size, source = self.engine.cache.block_size, int(self.tables[0, 0])
        tables = self.tables.reshape(len(self.engine.scheduler.windows), -1)
        blocks = sorted(set(tables[:, start // size : -(-stop // size)].ravel().tolist()) - {source})
        self.executor.copy_blocks([source] * len(blocks), blocks)

    def at(self, length: int) -> dict[str, float]:
        """The last step of a prompt of `length` tokens, and one token more; the fastest of `repeats` each."""
        count = min(self.engine.scheduler.max_step_tokens, length - 1)
        start = length - 1 - count
        step_s = min(self._run(start, count) for _ in range(self.repeats))
        decode_s = min(self._run(length - 1, 1) for _ in range(max(3, self.repeats)))
        return {"length": length, "start": start, "step_s": step_s, "decode_s": decode_s}


def prompt_seconds(points: list[dict[str, Any]], length: int, step_tokens: int) -> float:
    """The sum over the steps of a prompt, of which those at `start` took `step_s`; the last may be shorter."""
    starts = np.arange(0, length, step_tokens)
    sizes = np.minimum(starts + step_tokens, length) - starts
    seconds = np.interp(starts, [p["start"] for p in points], [p["step_s"] for p in points])
    return float((seconds * sizes / step_tokens).sum())


def measure_curve(engine: Engine, model: CompiledModel, lengths: list[int], repeats: int, before: int) -> list[Any]:
    """One entry per length. before: bytes that the process held without the model."""
    measuring = Measuring(engine, lengths[-1], repeats)
    step_tokens = engine.scheduler.max_step_tokens
    points, filled = [measuring.at(min(step_tokens + 1, lengths[0]))], 0
    for length in lengths:
        measuring.fill(filled, length)
        filled = length
        points.append(measuring.at(length))
        points[-1] |= {"planned_bytes": planned_bytes(model, length), "measured_bytes": resident_bytes() - before}
        points[-1]["prompt_s"] = prompt_seconds(points, length, step_tokens)
        say(f"{length} tokens: the last step of the prompt {points[-1]['step_s']:.2f} s")
    return points[1:]


def measure_whole(engine: Engine, model: CompiledModel, length: int, before: int) -> dict[str, Any]:
    """Reads `length` - ANSWER tokens for real and generates ANSWER more; memory at its highest beside the plan."""
    prompt = np.random.default_rng(1).integers(0, engine.vocab_size, length - ANSWER, np.int32)
    begin, first_s, highest, answer = time.perf_counter(), 0.0, 0, 0
    engine.add_request(prompt, SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True))
    reports = iter(np.linspace(0, len(prompt), 17)[1:-1])
    next_report = next(reports)
    while engine.has_unfinished():
        outputs = engine.step()
        highest = max(highest, resident_bytes())
        num_read = sum(request.num_computed for request in engine.scheduler.running)
        if num_read >= next_report:
            say(f"{num_read} of {length} tokens read after {time.perf_counter() - begin:.0f} s")
            next_report = next((report for report in reports if report > num_read), np.inf)
        if outputs and not first_s:
            first_s = time.perf_counter() - begin
        answer += len(outputs)
        assert not any(output.error for output in outputs)
    return {
        "length": length, "prompt_s": first_s, "answer_tokens": answer,
        "decode_s": (time.perf_counter() - begin - first_s) / max(1, answer - 1),
        "planned_bytes": planned_bytes(model, length), "measured_bytes": highest - before,
    }  # fmt: skip


def render(report: dict[str, Any]) -> str:
    """The report as a table."""
    machine = report["machine"]
    lines = [
        f"machine  {machine['cpu']}, {machine['threads']} threads",
        f"model    {report['model']}: {report['options']}",
        "",
        f"{'length':>8} {'prompt':>10} {'tokens/s':>9} {'last step':>10} {'decoding':>9} {'memory plan':>12} "
        f"{'measured':>10}",
        f"{'':>8} {'s':>10} {'':>9} {'tokens/s':>10} {'tokens/s':>9} {'MiB':>12} {'MiB':>10}",
    ]
    rows = [(point, "") for point in report["points"]]
    rows += [(point, "  for real") for point in report["whole"]]
    for point, note in rows:
        step_s = point.get("step_s")
        last = "" if step_s is None else f"{(point['length'] - 1 - point['start']) / step_s:.1f}"
        lines.append(
            f"{point['length']:8} {point['prompt_s']:10.1f} {point['length'] / point['prompt_s']:9.1f} {last:>10} "
            f"{1 / point['decode_s']:9.1f} {point['planned_bytes'] / 2**20:12.1f} "
            f"{point['measured_bytes'] / 2**20:10.1f}{note}"
        )
    return "\n".join(lines) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """Three panels over the length: the prompt's time, decoding, memory. Needs matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    points, whole = report["points"], report["whole"]
    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "reading the prompt, seconds": lambda p: float(p["prompt_s"]),
        "decoding, tokens/s": lambda p: 1 / p["decode_s"],
        "memory, GiB": lambda p: p["measured_bytes"] / 2**30,
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        axis.plot([p["length"] for p in points], [value(p) for p in points], "o-", label="measured")
        if whole:
            axis.plot([p["length"] for p in whole], [value(p) for p in whole], "x", ms=9, label="read for real")
        if "memory" in title:
            axis.plot([p["length"] for p in points], [p["planned_bytes"] / 2**30 for p in points], "--", label="plan")
        axis.set(title=title, xlabel="tokens", xscale="log", yscale="linear" if "memory" in title else "log")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"{report['model']} on {report['machine']['cpu']}, {report['machine']['threads']} threads")
    figure.savefig(path)
    pyplot.close(figure)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("model", help="artifact, checkpoint folder or hub id")
    add("--weights", metavar="KIND", help="bf16, int8 or int4, for a model still to be compiled")
    add("--rope-scaling", metavar="S", help="such as yarn:4, for a model still to be compiled")
    add("--lengths", type=int, nargs="*", default=LENGTHS, metavar="N", help=f"default: {' '.join(map(str, LENGTHS))}")
    add("--whole", type=int, nargs="*", default=(), metavar="N", help="also lengths to read for real")
    add("--repeats", type=int, default=2, metavar="N", help="of each step, the fastest counts; default 2")
    add("--threads", type=int, metavar="N", help="default: the processors that this process may use")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--plot", type=Path, metavar="FILE", help="draw it, as PNG or SVG; needs matplotlib")
    args = parser.parse_args(arguments)
    args.lengths, args.whole = sorted(set(args.lengths)), sorted(set(args.whole))
    if not args.lengths and not args.whole:
        parser.error("give --lengths or --whole")
    if min([*args.lengths, *args.whole]) < 2 * ANSWER or args.repeats < 1:
        parser.error(f"lengths must be at least {2 * ANSWER} tokens, --repeats at least 1")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return args


def load(model: CompiledModel, threads: int | None) -> Engine:
    """With a cache for one sequence."""
    blocks = model.config.blocks_of_one_sequence(model.program.spec)
    return load_engine(model, num_threads=threads, num_blocks=blocks, enable_prefix_caching=False)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    longest = max([*args.lengths, *args.whole])
    options = QwenchConfig(
        weights=args.weights, rope_scaling=args.rope_scaling, max_seq_len=longest, batch_size=1
    )  # fmt: skip
    resolve_model(args.model, options)  # compiles, so that only loading counts below
    before = resident_bytes()
    model = resolve_model(args.model, options)
    points, whole = [], []
    if args.lengths:
        with closing(load(model, args.threads)) as engine:
            points = measure_curve(engine, model, args.lengths, args.repeats, before)
    for length in args.whole:
        with closing(load(model, args.threads)) as engine:
            whole.append(measure_whole(engine, model, length, before))
        say(f"{length} tokens for real: {whole[-1]['prompt_s']:.1f} s")
    config = model.config
    report = {
        "machine": {"cpu": cpu_name(), "threads": args.threads or num_cpus()},
        "model": args.model,
        "options": f"{config.weights} weights, {config.kv_cache} cache, rope_scaling {config.rope_scaling}",
        "points": points,
        "whole": whole,
    }
    print(render(report))
    write_json(report, args.json)
    if args.plot:
        draw(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
