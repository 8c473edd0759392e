"""`python -m benchmarks.same_file FILE.gguf... --peer-python PYTHON`: one GGUF file run by qwench and by llama.cpp.

Both read a random prompt and generate, in turns; medians. Says too how many of the greedy tokens are the same ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import in_turns
from benchmarks.in_turns import Model
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.host import cpu_name, num_cpus

CONTENDERS = ("qwench", "llama.cpp")


def measure(file: Path, python: str, num_prompt: int, num_generate: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Tokens a second of prompt and answer by contender, medians; and how far the greedy answers agree."""
    artifact = folder / file.stem
    compile_checkpoint(file, artifact, QwenchConfig(max_seq_len=max(num_prompt + num_generate, 1024)))
    ours, theirs = Model("qwench", sys.executable, str(artifact)), Model("llama.cpp", python, str(file))
    models = {model.contender: model for model in (ours, theirs)}
    found = in_turns.measure(models, num_prompt, num_generate, rounds, num_cpus(), folder)
    first, second = (found[name] for name in CONTENDERS)
    medians = {name: speeds.medians() for name, speeds in found.items()}
    same, of = first.num_same(second), len(first.answer)
    return {"file": file.name, "tokens_per_s": medians, "same_tokens": same, "of_tokens": of}


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
