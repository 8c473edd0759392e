"""What a draft model gains: an answer with it and without, in turns within one run, medians of the ratios.

    python -m benchmarks.drafts models/qwench-tiny models/qwench-tiny-draft
    python -m benchmarks.drafts ARTIFACT DRAFT --acceptance 0.6,0.7,0.8,0 [--users 1,16]

The first has the model answer questions of several kinds, greedily and as its generation_config.json samples, and says
how many guesses were right. Weights of the second may be random: the draft computes all its steps, and then its logits
are overruled, so that the likeliest token is what the model will say with the given probability, else another one. The
answers must be the same to the token, or the run fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.folders import write_json
from benchmarks.llm_options import add_llm_options, llm_keywords
from benchmarks.speculation import FAR_ABOVE, rows_of
from qwench import LLM, SamplingParams
from qwench.host import cpu_name, num_cpus
from qwench.runtime.outputs import RequestTimings
from qwench.targets.target import LOGIT_GROUP, Executor, Float32, StepBatch
from qwench.text.chat import render_chat

QUESTIONS = {
    "stories": ("Tell me a story about a fox.", "Tell me a story about a lighthouse.", "Write a story about a baker."),
    "chats": ("Hello! Who are you?", "How are you today?", "My name is Ada. What can you do?"),
    "facts": ("What is the capital of France?", "How many legs does a spider have?", "Why is the sky blue?"),
    "recipes and letters": ("How do I make pancakes?", "Write a letter to my aunt.", "Give me a shopping list."),
}
SEEDS = (1, 2)


@dataclass(frozen=True)
class Work:
    """The same prompt for `users`, or different ones with a seed each."""

    name: str
    prompts: list[list[int]]
    params: list[SamplingParams]


class DictatedDraft:
    """A draft's executor whose likeliest token after position p is `text[p + 1]`, or with probability 1 - acceptance
    another one."""

    def __init__(self, executor: Executor, vocab_size: int) -> None:
        self.executor, self.vocab_size = executor, vocab_size
        self.text: list[int] = []
        self.acceptance, self._rng = 0.0, random.Random(0)

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        result = self.executor.step(batch, logits, hidden, maxima)
        assert maxima is not None
        for row, position in enumerate(rows_of(batch)):
            if position + 1 < len(self.text):
                token = self.text[position + 1]
                if self._rng.random() >= self.acceptance:
                    token = (token + 1) % self.vocab_size
                if token >= result.shape[1]:  # padding of the model's vocabulary that the draft's doesn't have
                    continue
                result[row, token] = FAR_ABOVE
                maxima[row, token // LOGIT_GROUP] = FAR_ABOVE
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


def answer(llm: LLM, work: Work) -> tuple[float, list[list[int]], dict[str, float]]:
    """Tokens per second of all together from the last one's first token on, the tokens, and what the engine counted."""
    before = llm.metrics.to_dict()
    outputs = [output.outputs[0] for output in llm.generate(work.prompts, work.params)]
    spent = {name: value - before[name] for name, value in llm.metrics.to_dict().items()}
    tokens = [output.token_ids for output in outputs]
    return sum(len(t) - 1 for t in tokens) / _seconds([o.timings for o in outputs]), tokens, spent


def _seconds(timings: Sequence[RequestTimings]) -> float:
    return max(t.finished_s or 0.0 for t in timings) - max(t.first_token_s or 0.0 for t in timings)


def compare(plain: LLM, drafting: LLM, work: Work, rounds: int) -> dict[str, Any]:
    """Medians over rounds in turns, after one that warms up."""
    pairs = []
    for number in range(rounds + 1):
        runs = [(answer(llm, work)) for llm in ((plain, drafting) if number % 2 else (drafting, plain))]
        one, other = runs if number % 2 else runs[::-1]
        assert one[1] == other[1], "a draft must not change an answer"
        pairs.append((one, other))
    counted = [other[2] for _, other in pairs[1:]]
    total = {name: sum(spent[name] for spent in counted) for name in counted[0]}
    ratios = [other[0] / one[0] for one, other in pairs[1:]]
    return {
        "work": work.name, "users": len(work.prompts),
        "tokens_per_s_without": statistics.median(one[0] for one, _ in pairs[1:]),
        "tokens_per_s": statistics.median(other[0] for _, other in pairs[1:]),
        "faster": statistics.median(ratios), "faster_min": min(ratios), "faster_max": max(ratios),
        "drafted": total["drafted_tokens"], "accepted": total["accepted_tokens"],
        "tokens_per_step": total["generated_tokens"] / total["steps"],
        "draft_steps_per_step": total["draft_steps"] / total["steps"],
    }  # fmt: skip


def questions(llm: LLM, num_tokens: int) -> list[list[Work]]:
    """One answer at a time, of each kind greedily and sampled."""
    assert llm.tokenizer is not None, "the model has no tokenizer: dictate what is accepted, with --acceptance"
    works = []
    for kind, asked in QUESTIONS.items():
        for way, temperature in (("greedy", 0.0), ("sampled", llm.defaults.params.temperature or 0.7)):
            params = dataclasses.replace(llm.defaults.params, max_tokens=num_tokens, temperature=temperature)
            texts = [render_chat(llm.tokenizer, [{"role": "user", "content": question}]) for question in asked]
            works.append([
                Work(f"{kind}, {way}", [llm.tokenizer.encode(text)], [dataclasses.replace(params, seed=seed)])
                for text in texts for seed in (SEEDS if temperature else SEEDS[:1])
            ])  # fmt: skip
    return works


def measure_questions(plain: LLM, drafting: LLM, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for works in questions(plain, args.generate):
        found = [compare(plain, drafting, work, args.rounds) for work in works]
        row = {name: statistics.median(each[name] for each in found) for name in found[0] if name != "work"}
        row |= {name: sum(each[name] for each in found) for name in ("drafted", "accepted")}
        rows.append({"work": works[0].name, **row})
        print(".", end="", file=sys.stderr, flush=True)
    return rows


def measure_dictated(plain: LLM, drafting: LLM, args: argparse.Namespace) -> list[dict[str, Any]]:
    draft = drafting.engine.speculation.draft
    assert draft is not None
    dictated = DictatedDraft(draft.executor, plain.engine.vocab_size)
    draft.executor, draft.chain = dictated, None  # all guesses are dictated, step by step
    rng, rows = np.random.default_rng(0), []
    prompt = rng.integers(0, min(plain.engine.vocab_size, 100_000), args.prompt).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=args.generate, ignore_eos=True)
    dictated.text = prompt + plain.generate([prompt], params)[0].outputs[0].token_ids
    for users in map(int, args.users.split(",")):
        for acceptance in map(float, args.acceptance.split(",")):
            dictated.acceptance = acceptance
            work = Work(f"{acceptance:.0%} accepted", [prompt] * users, [params] * users)
            rows.append(compare(plain, drafting, work, args.rounds))
            print(".", end="", file=sys.stderr, flush=True)
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'':32} {'users':>5} {'tokens/s':>8} {'with':>8} {'faster':>7} {'':14} {'right of guessed':>16} "
        f"{'tokens a step':>13} {'steps of the draft':>18}"
    ]
    for row in rows:
        spread = f"{row['faster_min']:.2f} to {row['faster_max']:.2f}"
        right = row["accepted"] / row["drafted"] if row["drafted"] else 0.0
        lines.append(
            f"{row['work']:32} {row['users']:5.0f} {row['tokens_per_s_without']:8.1f} {row['tokens_per_s']:8.1f} "
            f"{row['faster']:6.2f}x {spread:14} {right:16.0%} {row['tokens_per_step']:13.2f} "
            f"{row['draft_steps_per_step']:18.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="artifact, checkpoint folder or hub id")
    add("draft", help="likewise")
    add("--acceptance", metavar="P,...", help="dictate how many guesses are right, instead of asking questions")
    add("--users", default="1", metavar="N,...", help="at the same time, with --acceptance; default 1")
    add("--prompt", type=int, default=64, metavar="N", help="random tokens, with --acceptance; default 64")
    add_llm_options(parser)
    args = parser.parse_args()
    options = llm_keywords(args) | {"enable_prefix_caching": False}
    with LLM(args.model, **options) as plain, LLM(args.model, draft=args.draft, **options) as drafting:
        measure = measure_dictated if args.acceptance else measure_questions
        rows = measure(plain, drafting, args)
    print(f"\nmachine  {cpu_name()}, {args.threads or num_cpus()} threads\nmodel    {args.model}, draft {args.draft}\n")
    print(render(rows))
    write_json({"cpu": cpu_name(), "model": args.model, "draft": args.draft, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
