"""The cuda target on the GPU that is here: one command, a table of goals, and JSON that is whole after every row.

    python -m benchmarks.gpu --json gpu.json [--minutes 13] [--rows 7b]

Rows come in the order of what is wanted most; each is written down at once, a failure as well, so that a run that is
cut off keeps what it had. Ceilings are measured first: copying memory and cuBLAS's bf16 peak, both with torch. Weights
are random and made on the spot (random_model.py), so nothing is downloaded. Needs a GPU, qwench[cuda] and, for ceilings
and the comparison, torch and transformers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_model import RandomModel, config_of, random_model

PROMPT = 32  # tokens before an answer that is measured


@dataclass
class Row:
    """A figure beside its ceiling, or why there is none. goal: what ratio (or value, where there is no ceiling) is
    wanted."""

    name: str
    value: float | None = None
    unit: str = ""
    ceiling: float | None = None
    ratio: float | None = None
    goal: float | None = None
    error: str | None = None
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """The rows so far, on disk after each. until: when no row is begun any more, by time.monotonic."""

    path: Path
    until: float
    wanted: str = ""
    rows: dict[str, Row] = field(default_factory=dict)

    def measure(self, name: str, work: Callable[[Row], None], goal: float | None = None) -> None:
        """Runs `work`, which fills in the row."""
        row = Row(name, goal=goal)
        if self.wanted and self.wanted not in name and not name.startswith("ceiling"):
            return
        if time.monotonic() > self.until:
            row.error = "no time was left"
        else:
            start = time.monotonic()
            try:
                work(row)
            except Exception as error:  # the next row may be well
                row.error = f"{type(error).__name__}: {error}"
            row.seconds = round(time.monotonic() - start, 2)
            _free_memory()
        if row.value is not None and row.ceiling:
            row.ratio = row.value / row.ceiling
        self.rows[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps([asdict(row) for row in self.rows.values()], indent=1) + "\n")
        print(_line(row), flush=True)

    def value(self, name: str) -> float | None:
        """Of a row measured before."""
        return self.rows[name].value if name in self.rows else None


def _line(row: Row) -> str:
    if row.error:
        return f"{row.name:<40} {row.error[:160]}"
    beside = "" if row.ratio is None else f"{row.ratio:8.2f} of {row.ceiling:,.1f}"
    wanted = "" if row.goal is None else f"  goal {row.goal:g}"
    return f"{row.name:<40} {row.value or 0:12,.1f} {row.unit:<10}{beside}{wanted}"


def _free_memory() -> None:
    """Of the GPU, that the row before took."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


# ---- ceilings


def copy_rate(row: Row) -> None:
    """GB/s, bytes read and written together."""
    import torch

    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    row.value, row.unit = 2 * source.numel() / _gpu_seconds(lambda: target.copy_(source)) / 1e9, "GB/s"
    row.details = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}


def cublas_peak(row: Row) -> None:
    """TFLOP/s of a bf16 product on random numbers."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    row.value, row.unit = 2 * 8192**3 / _gpu_seconds(lambda: a @ b) / 1e12, "TFLOP/s"


def _gpu_seconds(work: Callable[[], Any], rounds: int = 10) -> float:
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.monotonic()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.monotonic() - start) / rounds


# ---- the engine


@contextmanager
def engine_of(model: RandomModel) -> Iterator[Any]:
    from qwench.runtime.loading import load_engine

    engine = load_engine(model, enable_prefix_caching=False)
    try:
        yield engine
    finally:
        engine.close()


def run(engine: Any, num_users: int, prompt: int, answer: int, seed: int = 0) -> list[float]:
    """The times after each step, from the start on; all users ask at once, with the engine's adapters in turns."""
    from qwench.runtime.sampling.sampling_params import SamplingParams

    random, adapters = np.random.default_rng(seed), engine.adapters.names or (None,)
    for user in range(num_users):
        ids = random.integers(0, engine.vocab_size - 2, prompt).astype(np.int32)
        params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True)
        engine.add_request(ids, params, adapter=adapters[user % len(adapters)])
    start, times = time.monotonic(), []
    while engine.has_unfinished():
        for output in engine.step():
            if output.error is not None:
                raise output.error
        times.append(time.monotonic() - start)
    return times


def load_adapters(engine: Any, count: int) -> None:
    """Of rank 16 for all matrices of the layers. Their values are the same, their memory is not."""
    from qwench.lora.adapter import LoraAdapter, LoraPair
    from qwench.program.models import adaptable_shapes

    random, pairs = np.random.default_rng(0), {}
    for name, (n, k) in adaptable_shapes(engine.executor.program.spec).items():
        if name.endswith("_proj.weight"):
            a, b = random.standard_normal((16, k), np.float32), random.standard_normal((n, 16), np.float32)
            pairs[name] = LoraPair(a / 100, b / 100, 1.0)
    adapter = LoraAdapter(pairs)
    for i in range(count):
        engine.adapters.load(str(i), adapter)


def generation(
    report: Report, shape: str, num_users: int, answer: int, num_adapters: int = 0, beside: str = "", **options: Any
) -> Callable[[Row], None]:
    """Tokens/s of all users while each gets one token a step. beside: the row that is the ceiling of several users."""

    def work(row: Row) -> None:
        made = time.monotonic()
        model = random_model(shape, batch_size=num_users, max_seq_len=PROMPT + answer, **options)
        loaded = time.monotonic()
        with engine_of(model) as engine:
            ready = time.monotonic()
            load_adapters(engine, num_adapters)
            run(engine, num_users, PROMPT, 4)
            times = run(engine, num_users, PROMPT, answer, seed=1)
            step = statistics.median(b - a for a, b in zip(times[-answer:], times[1 - answer :]))
        row.value, row.unit = num_users / step, "tokens/s"
        rate = report.value("ceiling: copy")
        if rate and num_users == 1:
            row.ceiling = rate * 1e9 / model.weight_bytes
        elif beside:
            row.ceiling = report.value(beside)
        row.details = {"weight_bytes": model.weight_bytes, "made_s": loaded - made, "loaded_s": ready - loaded,
                       "step_ms": 1000 * step}  # fmt: skip

    return work


def prompt(report: Report, shape: str, length: int, chunk: int, **options: Any) -> Callable[[Row], None]:
    """TFLOP/s from a prompt to its first token."""

    def work(row: Row) -> None:
        model = random_model(shape, batch_size=1, max_seq_len=length + 2, prefill_chunk_size=chunk, **options)
        with engine_of(model) as engine:
            run(engine, 1, length, 1)
            seconds = min(run(engine, 1, length, 1, seed)[-1] for seed in (1, 2))
        row.value, row.unit = prompt_operations(shape, length) / seconds / 1e12, "TFLOP/s"
        row.ceiling = report.value("ceiling: cuBLAS bf16")
        row.details = {"first_token_ms": 1000 * seconds, "tokens_per_s": length / seconds}

    return work


def prompt_operations(shape: str, length: int) -> float:
    """Multiplications and additions, of attention those that a causal mask leaves, of experts those of the chosen."""
    c = config_of(shape)
    hidden, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    kv, intermediate = hidden // heads * c["num_key_value_heads"], c["intermediate_size"]
    if "num_experts" in c:
        of_chosen = c["num_experts_per_tok"] * c["moe_intermediate_size"]
        intermediate = of_chosen + c.get("shared_expert_intermediate_size", 0)
    weights = layers * hidden * (2 * hidden + 2 * kv + 3 * intermediate)
    attention = length * length * hidden * layers
    return float(2 * (weights * length + attention + hidden * c["vocab_size"]))


def transformers_generation(shape: str, answer: int) -> Callable[[Row], None]:
    """One user, bf16, a static cache and torch.compile."""

    def work(row: Row) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**config_of(shape))
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            ids = torch.randint(0, config.vocab_size - 2, (1, PROMPT))
        options = {"do_sample": False, "cache_implementation": "static", "eos_token_id": None, "pad_token_id": 0}
        seconds = []
        for count in (8, 8, answer, 2 * answer):
            torch.cuda.synchronize()
            start = time.monotonic()
            model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
            torch.cuda.synchronize()
            seconds.append(time.monotonic() - start)
        row.value, row.unit = answer / (seconds[3] - seconds[2]), "tokens/s"

    return work


def measure_all(report: Report, target: str) -> None:
    """The rows, those first that decide most."""
    bf16: dict[str, Any] = {"target": target, "weights": "bf16", "activations": "bf16"}
    int8: dict[str, Any] = {"target": target, "weights": "int8"}
    int4 = int8 | {"weights": "int4"}

    report.measure("ceiling: copy", copy_rate)
    report.measure("ceiling: cuBLAS bf16", cublas_peak)
    report.measure("0.5b: one user, bf16", generation(report, "0.5b", 1, 128, **bf16), 900)
    report.measure("7b: one user, bf16", generation(report, "7b", 1, 128, **bf16), 0.85)
    report.measure("7b: prompt of 2048, bf16", prompt(report, "7b", 2048, 2048, **bf16), 0.6)
    report.measure("7b: 32 users, bf16", generation(report, "7b", 32, 64, **bf16), 25)
    adapted = generation(report, "7b", 32, 64, num_adapters=4, beside="7b: 32 users, bf16", **bf16)
    report.measure("7b: 32 users, four adapters, bf16", adapted)
    report.measure("7b: prompt of 32768, bf16", prompt(report, "7b", 32768, 2048, **bf16), 0.4)
    exact = {**bf16, "activations": "fp32"}
    report.measure("7b: one user, bf16, fp32 activations", generation(report, "7b", 1, 64, **exact))
    report.measure("7b: one user, int4", generation(report, "7b", 1, 128, **int4), 2.6)
    report.measure("7b: one user, int8", generation(report, "7b", 1, 128, **int8), 1.6)
    report.measure("a2.7b: one user, int4", generation(report, "a2.7b", 1, 128, **int4), 0.85)
    report.measure("a2.7b: prompt of 512, int4", prompt(report, "a2.7b", 512, 512, **int4), 0.6)
    report.measure("0.5b: 32 users, bf16", generation(report, "0.5b", 32, 64, **bf16))
    report.measure("7b: transformers, one user, bf16", transformers_generation("7b", 64))


def goals(report: Report) -> Iterator[str]:
    """What the rows mean to each other, as far as they are there."""
    one = report.value("7b: one user, bf16")
    for name, goal in (("int4", 2.6), ("int8", 1.6)):
        other = report.value(f"7b: one user, {name}")
        if one and other:
            yield f"7b, {name} beside bf16: {other / one:.2f}, goal {goal}"
    if one and (crowd := report.value("7b: 32 users, bf16")):
        yield f"7b, 32 users beside one: {crowd / one:.1f}, goal 25"
    if one and (other := report.value("7b: transformers, one user, bf16")):
        yield f"7b, beside transformers: {one / other:.2f}, goal 1.3"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/gpu.json"))
    parser.add_argument("--minutes", type=float, default=13, help="after which no row is begun")
    parser.add_argument("--rows", default="", help="only those with this in their name, and the ceilings")
    parser.add_argument("--target", default="cuda")
    args = parser.parse_args()
    report = Report(args.json, time.monotonic() + 60 * args.minutes, args.rows)
    measure_all(report, args.target)
    print(*goals(report), sep="\n")


if __name__ == "__main__":
    main()
