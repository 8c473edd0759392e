"""What LoRA adapters and ranks cost: ratios of speeds, in turns within one run, medians.

    python -m benchmarks.adapters_and_ranks ARTIFACT [--rounds N]

Adapters are random, of rank 16 for the seven matrices of each layer; ranks are two of one thread each beside one
process with two. Prints the speed without, and how many times it is with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qwench import LLM, SamplingParams
from qwench.checkpoint.spec import ModelSpec
from qwench.program.models import adaptable_shapes

RANK, NUM_ADAPTERS, NUM_USERS, PROMPT = 16, 4, 16, 512
Loras = list[str | None]


def write_adapter(folder: Path, spec: ModelSpec, seed: int) -> Path:
    rng, tensors = np.random.default_rng(seed), {}
    for name, (n, k) in adaptable_shapes(spec).items():
        if name.endswith("_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = rng.standard_normal((RANK, k), np.float32) / 100
            tensors[f"{module}.lora_B.weight"] = rng.standard_normal((n, RANK), np.float32) / 100
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    return folder


def generation(llm: LLM, loras: Loras) -> float:
    """Tokens per second of all users together, from the last one's first token on."""
    prompts, count = np.random.default_rng().integers(0, 1000, (len(loras), 8)).tolist(), 48
    params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    timings = [output.outputs[0].timings for output in llm.generate(prompts, params, lora=loras)]
    first = max(t.first_token_s or 0.0 for t in timings)
    return len(loras) * (count - 1) / (max(t.finished_s or 0.0 for t in timings) - first)


def prompt(llm: LLM, loras: Loras) -> float:
    """Tokens per second of a prompt."""
    ids, start = np.random.default_rng().integers(0, 1000, PROMPT).tolist(), time.perf_counter()
    llm.generate(ids, SamplingParams(temperature=0.0, max_tokens=1), lora=loras)
    return PROMPT / (time.perf_counter() - start)


def compare(name: str, rounds: int, without: Callable[[], float], with_it: Callable[[], float]) -> None:
    pairs = [(without(), with_it()) for _ in range(rounds + 1)][1:]  # the first one warms up
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{name:32} {statistics.median(a for a, _ in pairs):8.1f} tokens/s without, {ratio:.3f} times with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    works = {"one user": (generation, 1), "16 users": (generation, NUM_USERS), "prompt of 512": (prompt, 1)}
    with LLM(args.artifact, num_threads=2) as one, tempfile.TemporaryDirectory() as folder:
        assert one._artifact is not None
        for i in range(NUM_ADAPTERS):
            one.load_lora(str(i), write_adapter(Path(folder) / str(i), one._artifact.program.spec, i))
        for name, (work, users) in works.items():
            plain: Loras = [None] * users
            adapted: Loras = [str(i % NUM_ADAPTERS) for i in range(users)]
            compare(f"adapters, {name}", args.rounds, lambda: work(one, plain), lambda: work(one, adapted))  # noqa: B023
        with LLM(args.artifact, num_threads=2, tensor_parallel_size=2) as two:
            for name, (work, users) in works.items():
                plain = [None] * users
                compare(f"two ranks, {name}", args.rounds, lambda: work(one, plain), lambda: work(two, plain))  # noqa: B023


if __name__ == "__main__":
    main()
