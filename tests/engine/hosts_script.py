"""What the tests of hosts run, alone and under `mpiexec`: prints one JSON object of everything that must not depend on
the number of hosts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from qwench import LLM, SamplingParams
from qwench.parallel.cpu_team_executor import CpuTeamExecutor

PARAMS = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, logprobs=3)
# Of a row one group is looked at, four of them, and all.
EXCHANGED: list[dict[str, Any]] = [{"temperature": 0.0}, {"top_k": 4}, {"temperature": 0.0, "logprobs": 0}]


def prompts(vocab_size: int) -> list[list[int]]:
    return [np.random.default_rng(n).integers(0, vocab_size, n).tolist() for n in (5, 130, 1, 600)]


def answers(llm: LLM, **options: Any) -> list[Any]:
    outputs = llm.generate(prompts(llm.engine.vocab_size), PARAMS, **options)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


def sampled(llm: LLM) -> list[list[int]]:
    """Of rows that need all logits and rows that need some groups of them, in one batch."""
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"top_k": 3}, {"top_k": 20, "top_p": 0.8}, {"top_p": 0.9}]
    params = [SamplingParams(max_tokens=10, ignore_eos=True, seed=7, **kind) for kind in kinds]
    return [output.outputs[0].token_ids for output in llm.generate(prompts(llm.engine.vocab_size), params)]


def main() -> None:
    model, options, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    found: dict[str, Any] = {}
    with LLM(model, **options) as llm:
        found["answers"] = answers(llm)
        found["sampled"] = sampled(llm)
        found["embeddings"] = [vector.tolist() for vector in llm.embed(prompts(llm.engine.vocab_size))]
        if adapter := next(folder.glob("adapter"), None):
            llm.load_lora("a", adapter)
            found["adapted"] = answers(llm, lora=["a", None, "a", "a"])
        prefix = folder / "p.prefix"
        if prefix.exists():
            llm.load_prefix(prefix)
        else:
            llm.save_prefix(prompts(llm.engine.vocab_size)[3][:256], prefix)
        executor = llm.engine.executor
        if isinstance(executor, CpuTeamExecutor):
            found["exchanged"] = []
            for kind in EXCHANGED:
                before = executor.exchanged()
                llm.generate([1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True, seed=7, **kind))
                found["exchanged"].append([b - a for a, b in zip(before, executor.exchanged(), strict=True)])
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
