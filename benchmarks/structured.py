"""`python -m benchmarks.structured MODEL`: what it costs a step that answers obey a JSON schema.

Two kinds of model, both of MODEL's shape and with its steps. One knows what it wants to write: its logits are bent
towards the tokens of a document that obeys the schema, as those of a trained model are. The other one is MODEL as it
is; where its weights are random, the schema refuses nearly every token of its own choice: the worst case.

What a schema costs is work of the engine's own thread between two calls of the executor. So its processor time there is
measured, without the schema and with it, in rounds that take turns, and the difference set beside the time of a step:
on a shared machine that says more than the difference of two steps' times, which vary by more than it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwench import LLM, Grammar, SamplingParams
from qwench.errors import QwenchError
from qwench.host import cpu_name
from qwench.runtime.structured_output.matcher import GrammarCompiler
from qwench.targets.target import LOGIT_GROUP, Executor, Float32, StepBatch

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.com$"}, "kind": {"enum": ["guest", "member"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}}, "note": {"type": ["string", "null"]},
    },
    "required": ["name", "age", "email", "kind", "tags", "note"],
    "additionalProperties": False,
}  # fmt: skip
SCHEMA = {"type": "array", "items": PERSON}
DOCUMENT = [
    {"name": "Anna Maria", "age": 42, "email": "anna@example.com", "kind": "guest", "tags": ["early", "window seat"],
     "note": "Prefers to be called in the morning, and not before nine."},
]  # fmt: skip
PROMPT_TOKENS = 32
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True),
    "top_k 20, top_p 0.8": SamplingParams(temperature=0.7, top_k=20, top_p=0.8, seed=1, ignore_eos=True),
}


class Scripted:
    """An executor whose logits favour the tokens of a script, from the end of prompts of PROMPT_TOKENS on."""

    def __init__(self, executor: Executor, script: list[int]) -> None:
        self._executor, self._script, self.is_on = executor, np.array(script), True
        self.own_s = 0.0  # processor time of this thread in here

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        start = time.thread_time()
        result = self._executor.step(batch, logits, hidden, maxima)
        if self.is_on:
            assert logits is not None and maxima is not None, "the engine gives room for both"
            sequences = np.searchsorted(batch.query_start, batch.logit_rows, side="right") - 1
            tokens = self._script[batch.seq_lens[sequences] - PROMPT_TOKENS]
            rows = np.arange(len(tokens))
            best = maxima[: len(tokens)].max(axis=1) + 30
            logits[rows, tokens] = maxima[rows, tokens // LOGIT_GROUP] = best
        self.own_s += time.thread_time() - start
        return result


@dataclass(frozen=True)
class StepTimes:
    """Seconds per step: of the clock, and of the engine's thread beside the executor."""

    step_s: float
    beside_s: float


def time_steps(llm: LLM, executor: Scripted, users: int, params: SamplingParams) -> StepTimes:
    """Of the steps that give each user one more token; the prompts are read before the clock starts."""
    prompts = np.random.default_rng(0).integers(0, 1000, (users, PROMPT_TOKENS)).tolist()
    for prompt in prompts:
        llm.text_engine.add(prompt, params)
    while llm.engine.scheduler.waiting or any(r.num_generated == 0 for r in llm.engine.scheduler.running):
        llm.text_engine.step()
    steps, executor.own_s = 0, 0.0
    start, start_own = time.perf_counter(), time.thread_time()
    while llm.text_engine.has_unfinished():
        llm.text_engine.step()
        steps += 1
    beside_s = time.thread_time() - start_own - executor.own_s
    return StepTimes((time.perf_counter() - start) / steps, beside_s / steps)


def measure(llm: LLM, executor: Scripted, users: int, params: SamplingParams, forms: list[Any], rounds: int) -> str:
    """A line of the table; the first round doesn't count: its pages and caches are cold."""
    wanted = [dataclasses.replace(params, grammar=form) for form in forms]
    times = [[time_steps(llm, executor, users, each) for each in wanted] for _ in range(rounds + 1)][1:]
    step = statistics.median(each.step_s for each, _ in times)
    plain, formed = (statistics.median(each.beside_s for each in column) for column in zip(*times, strict=True))
    return f"{1e3 * step:9.2f} {1e3 * plain:9.3f} {1e3 * formed:9.3f} {100 * (formed - plain) / step:8.2f} %"


def print_preparation(llm: LLM, grammar: Grammar) -> None:
    """How long it takes before the first answer with a grammar."""
    tokenizer, vocab_size = llm.tokenizer, llm.engine.vocab_size
    assert tokenizer is not None
    compiler = GrammarCompiler(lambda: tokenizer.vocabulary(vocab_size))
    start = time.perf_counter()
    compiler.prepare()
    trie_s = time.perf_counter() - start
    start = time.perf_counter()
    compiler.compile(grammar)
    compile_s = time.perf_counter() - start
    print(f"vocabulary of {vocab_size} tokens prepared in {trie_s:.2f} s, schema compiled in {1e3 * compile_s:.1f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="an artifact or a checkpoint, with its tokenizer")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    try:
        llm = LLM(args.model)
        if llm.tokenizer is None:
            raise QwenchError(f"{args.model} has no tokenizer")
        print(cpu_name())
        print_preparation(llm, grammar)
    except QwenchError as error:
        print(error, file=sys.stderr)
        return 2
    script = llm.tokenizer.encode(json.dumps(DOCUMENT))
    executor = llm.engine.executor = Scripted(llm.engine.executor, script)
    print(f"{'':37} {'':>9} {'ms beside the executor':>19}")
    print(f"{'users':>5}  {'model':9} {'sampling':20} {'ms a step':>9} {'without':>9} {'with':>9} {'of a step':>10}")
    for users in args.users:
        for executor.is_on in (True, False):
            for name, params in SAMPLINGS.items():
                params = dataclasses.replace(params, max_tokens=len(script))
                line = measure(llm, executor, users, params, [None, grammar], args.rounds)
                print(f"{users:5}  {'obeys' if executor.is_on else 'refused':9} {name:20} {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
