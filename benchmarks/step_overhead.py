"""`python -m benchmarks.step_overhead MODEL`: what a step costs beside the computation itself, by users and sampling.

All of it is processor time of the thread that steps, which other processes hardly change: of the executor
(what the thread computes, and how long it waits for others that do), of the engine beside it with its sampling, of the
text made of the tokens, and of the messages that the server's engine process makes of that text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qwench import LLM, SamplingParams
from qwench.errors import QwenchError
from qwench.host import cpu_name
from qwench.serve.processes.engine_process import piece_of
from qwench.serve.processes.wire import pack

PROMPT_TOKENS = 32
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True),
    "top_k 20, top_p 0.8, stop": SamplingParams(
        temperature=0.7, top_k=20, top_p=0.8, seed=1, ignore_eos=True, stop=("\n\n\n", "<|never|>")
    ),
    "temperature 1": SamplingParams(temperature=1.0, seed=1, ignore_eos=True),
}


class Timed:
    """Counts the thread's processor time in a method of an object, in place of which it is put."""

    def __init__(self, of: Any, name: str) -> None:
        self._call: Callable[..., Any] = getattr(of, name)
        self.seconds = 0.0
        setattr(of, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        result = self._call(*args, **kwargs)
        self.seconds += time.thread_time() - start
        return result


class Parts(NamedTuple):
    """Seconds a step."""

    executor: float
    engine: float
    text: float
    messages: float


class Stopwatch:
    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._executor = Timed(llm.engine.executor, "step")
        self._engine = Timed(llm.engine, "step")
        self._text = Timed(llm.text_engine, "step")

    def measure(self, users: int, params: SamplingParams) -> Parts:
        """Of the steps that give each user one more token; the prompts are read before."""
        text_engine, scheduler = self._llm.text_engine, self._llm.engine.scheduler
        for prompt in np.random.default_rng(0).integers(0, 1000, (users, PROMPT_TOKENS)).tolist():
            text_engine.add(prompt, params)
        while scheduler.waiting or any(request.num_generated == 0 for request in scheduler.running):
            text_engine.step()
        steps, messages = 0, 0.0
        self._executor.seconds = self._engine.seconds = self._text.seconds = 0.0
        while text_engine.has_unfinished():
            deltas = text_engine.step()
            start = time.thread_time()
            pack({"deltas": [piece_of(delta, self._llm.tokenizer) for delta in deltas]})
            messages += time.thread_time() - start
            steps += 1
        executor, engine, text = (part.seconds / steps for part in (self._executor, self._engine, self._text))
        return Parts(executor, engine - executor, text - engine, messages / steps)


def line(users: int, name: str, rounds: list[Parts]) -> str:
    executor, *others = (statistics.median(column) for column in zip(*rounds, strict=True))
    whole, cells = executor, ""
    for part in others:
        whole += part
        cells += f"  {1e6 * part / users:6.1f} {100 * part / whole:5.1f} %"
    return f"{users:5}  {name:25}  {1e3 * executor:8.2f}{cells}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="an artifact or a checkpoint")
    parser.add_argument("--weights", metavar="KIND", help="bf16, int8 or int4, for a model still to be compiled")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16, 64], metavar="N")
    parser.add_argument("--generate", type=int, default=100, metavar="N", help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    args = parser.parse_args()
    options = {"weights": args.weights} if args.weights else {}
    try:
        llm = LLM(args.model, num_threads=args.threads, batch_size=max(args.users), **options)
    except QwenchError as error:
        print(error, file=sys.stderr)
        return 2
    watch = Stopwatch(llm)
    print(f"{cpu_name()}; processor time, microseconds a row and share of the step with all to the left of it")
    print(f"{'users':>5}  {'sampling':25}  {'executor':>8}  {'engine':>16}{'text':>17}{'messages':>17}")
    for users in args.users:
        for name, params in SAMPLINGS.items():
            wish = SamplingParams(**{**vars(params), "max_tokens": args.generate})
            rounds = [watch.measure(users, wish) for _ in range(args.rounds + 1)][1:]
            print(line(users, name, rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
