"""`python -m benchmarks.same_file FILE.gguf... --peer-python PYTHON`: one GGUF file run by qwench and by llama.cpp.

Both read a random prompt and generate, in turns; medians. Says too how many of the greedy tokens are the same ones.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.process import Worker
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.host import cpu_name, num_cpus

CONTENDERS = ("qwench", "llama.cpp")


def measure(file: Path, python: str, num_prompt: int, num_generate: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Tokens a second of prompt and answer by contender, medians; and how far the greedy answers agree."""
    threads, positions = num_cpus(), num_prompt + num_generate
    artifact = folder / file.stem
    compile_checkpoint(file, artifact, QwenchConfig(max_seq_len=max(positions, 1024)))
    paths, pythons = (str(artifact), str(file)), (sys.executable, python)
    workers = [Worker(name, p, folder / f"{name}.log") for name, p in zip(CONTENDERS, pythons, strict=True)]
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    answers: dict[str, list[int]] = {}
    try:
        for worker, path in zip(workers, paths, strict=True):
            worker.ask("describe")
            worker.ask("load", path=path, threads=threads, positions=positions, users=1)
            worker.pause()
        for round_ in range(rounds + 1):  # the first warms up
            prompt = random.Random(round_).choices(range(1000), k=num_prompt)
            for name, worker in zip(CONTENDERS, workers, strict=True):
                reply = worker.ask("answer", prompts=[prompt], num_generate=num_generate)
                worker.pause()
                answers[name] = reply["tokens"]
                if round_:
                    speeds[name].append((num_prompt / reply["prefill_s"], reply["decode_tokens"] / reply["decode_s"]))
    finally:
        for worker in workers:
            worker.close()
    medians = {
        name: {"prompt": statistics.median(s[0] for s in v), "answer": statistics.median(s[1] for s in v)}
        for name, v in speeds.items()
    }
    first, second = (answers[name] for name in CONTENDERS)
    same = next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), len(first))
    return {"file": file.name, "tokens_per_s": medians, "same_tokens": same, "of_tokens": len(first)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_file", description=__doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE")
    add("--peer-python", required=True, metavar="PATH", help="interpreter that has llama-cpp-python")
    add("--prompt", type=int, default=512, metavar="N")
    add("--generate", type=int, default=64, metavar="N")
    add("--rounds", type=int, default=3, metavar="N")
    add("--json", action="store_true")
    args = parser.parse_args()
    print(f"machine  {cpu_name()}, {num_cpus()} threads; prompt {args.prompt}, answer {args.generate}, tokens/s")
    for file in args.files:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(file, args.peer_python, args.prompt, args.generate, args.rounds, Path(folder))
        if args.json:
            print(json.dumps(found))
            continue
        ours, theirs = (found["tokens_per_s"][name] for name in CONTENDERS)
        told = (f"{w} {ours[w]:.1f} to {theirs[w]:.1f}, {ours[w] / theirs[w]:.2f} times" for w in ours)
        print(f"{file.name}  {'; '.join(told)}; same tokens {found['same_tokens']} of {found['of_tokens']}")


if __name__ == "__main__":
    main()
