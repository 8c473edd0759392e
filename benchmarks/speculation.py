"""`python -m benchmarks.speculation MODEL`: what prompt lookup gains on text that repeats, and costs where it doesn't.

The answers are dictated: after each step the logits are changed so that the next token is that of a given text. So any
model of the right shape will do, random weights included, and the guesses that turn out right are those that would if a
model wrote this text. Steps, lookups, wrong guesses and sampling are the engine's own. `--own` adds an answer that
nobody dictates, which says something only of a trained model.

Each text is answered with and without lookup at the same time, by two engines over one executor: the one that is
behind takes the next step. So both meet the same moments of a shared machine. Time is that of the answer after its
first token; ratios are taken within a round, medians count.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.folders import write_json
from benchmarks.llm_options import add_llm_options, llm_keywords
from qwench import LLM, SamplingParams
from qwench.host import cpu_name, num_cpus
from qwench.runtime.engine import Engine
from qwench.runtime.request import Request
from qwench.targets.target import LOGIT_GROUP, Executor, Float32, StepBatch
from qwench.text.chat import render_chat

TEXTS = Path(__file__).parent / "texts"
FAR_ABOVE = 1e6  # of any logit
GUESSES = (1, 4, 16)  # a step, in the table of bounds
CONTROL = "both without"  # what is left of it is noise
Found: TypeAlias = "dict[str, dict[str, list[tuple[Sample, Sample]]]]"  # text -> kind -> (without, with) by round


@dataclass(frozen=True)
class Work:
    """A prompt and the answer dictated to it, in tokens; answer None: the model's own, greedy."""

    name: str
    prompt: list[int]
    answer: list[int] | None


@dataclass(frozen=True)
class Sample:
    """One answer to each user. seconds: of the steps after the first tokens, in which the others came."""

    seconds: float
    num_tokens: int
    num_steps: int
    drafted: int
    accepted: int
    tokens: list[int]


def rows_of(batch: StepBatch) -> Iterator[int]:
    """The position of the token whose logits each row has."""
    ends, lengths = batch.query_start[1:].tolist(), batch.seq_lens.tolist()
    sequence = 0
    for row in batch.logit_rows.tolist():
        while row >= ends[sequence]:
            sequence += 1
        yield lengths[sequence] - (ends[sequence] - row)


class DictatingExecutor:
    """Half of an executor's cache, and logits under which the likeliest token after position p is `text[p + 1]`."""

    def __init__(self, executor: Executor, first_block: int) -> None:
        self.executor, self.first_block = executor, first_block
        self.text: list[int] = []

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        moved = dataclasses.replace(batch, block_tables=batch.block_tables + np.int32(self.first_block))
        result = self.executor.step(moved, logits, hidden, maxima)
        for i, position in enumerate(rows_of(batch)):
            if position + 1 < len(self.text):
                token = self.text[position + 1]
                result[i, token] = FAR_ABOVE
                if maxima is not None:
                    maxima[i, token // LOGIT_GROUP] = FAR_ABOVE
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)


def two_engines(engine: Engine) -> tuple[Engine, Engine]:
    """Two that share the executor of `engine` and halve its cache."""
    half = dataclasses.replace(engine.cache, num_blocks=engine.cache.num_blocks // 2)
    one, other = (
        Engine(
            DictatingExecutor(engine.executor, first_block), engine.vocab_size, half, max_seq_len=engine.max_seq_len,
            max_num_seqs=engine.max_num_seqs, max_step_tokens=engine.scheduler.max_step_tokens,
        )
        for first_block in (0, half.num_blocks)
    )  # fmt: skip
    return one, other


class FixedGuesses:
    """In place of a lookup: always as many guesses as there may be, all right or all wrong."""

    def __init__(self, text: list[int], is_right: bool) -> None:
        self.text, self.is_right = text, is_right

    def has_guess(self, num_tokens: int) -> bool:
        return num_tokens < len(self.text)

    def propose(self, num_tokens: int, limit: int) -> Iterator[tuple[int, float]]:
        for token in self.text[num_tokens : num_tokens + limit]:
            yield (token if self.is_right else token ^ 1), 1.0


class Answering:
    """The work on its way through one engine, for several users at once. Made once they all have their first token."""

    def __init__(
        self, engine: Engine, work: Work, num_tokens: int, num_guesses: int, num_users: int,
        change: Callable[[Request], None] | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.seconds = engine, 0.0
        self.tokens: list[int] = []
        assert isinstance(engine.executor, DictatingExecutor)
        engine.executor.text = [] if work.answer is None else work.prompt + work.answer
        params = SamplingParams(
            max_tokens=num_tokens, temperature=0, ignore_eos=True, prompt_lookup_num_tokens=num_guesses
        )
        waiting = [engine.add_request(work.prompt, params) for _ in range(num_users)]
        self.first = waiting[0]
        for request in engine.scheduler.waiting if change else ():
            assert change is not None
            change(request)
        while waiting:
            answered = self._step()
            waiting = [name for name in waiting if name not in answered]
        self.seconds, self._before = 0.0, engine.metrics.to_dict()

    def step(self) -> None:
        self._step()

    def _step(self) -> set[str]:
        start = time.perf_counter()
        outputs = self.engine.step()
        self.seconds += time.perf_counter() - start
        self.tokens += [o.token_id for o in outputs if o.request_id == self.first and o.token_id is not None]
        return {output.request_id for output in outputs}

    def sample(self) -> Sample:
        spent = {name: int(value - self._before[name]) for name, value in self.engine.metrics.to_dict().items()}
        return Sample(
            self.seconds, spent["generated_tokens"], spent["steps"], spent["drafted_tokens"],
            spent["accepted_tokens"], self.tokens,
        )  # fmt: skip


def race(runs: Sequence[Answering]) -> list[Sample]:
    """Both to the end, the one that is behind first. Fails if their answers differ."""
    number = 0
    while going := [run for run in runs if run.engine.has_unfinished()]:
        number += 1
        going = going[::-1] if number // 2 % 2 else going  # of equals, now the one, now the other
        min(going, key=lambda run: len(run.tokens)).step()
    samples = [run.sample() for run in runs]
    assert samples[0].tokens == samples[1].tokens, "speculation must not change an answer"
    return samples


def make_works(llm: LLM, num_generate: int, own: str | None) -> list[Work]:
    """The texts, cut to `num_generate` tokens of answer."""
    encode, rng = llm.text_engine.encode, random.Random(0)
    few = [rng.randrange(llm.engine.vocab_size) for _ in range(20)]

    def read(name: str) -> str:
        return (TEXTS / f"{name}.txt").read_text(encoding="utf-8")

    def work(name: str, prompt: str, answer: str) -> Work:
        return Work(name, encode(prompt), encode(answer)[:num_generate])

    def at_random(name: str, vocabulary: Sequence[int]) -> Work:
        return Work(name, rng.choices(vocabulary, k=256), rng.choices(vocabulary, k=num_generate))

    works = [
        work("code edit", f"Rename entries to bookings; use Decimal for money.\n\n{read('code-before')}\n\n",
             read("code-after")),
        work("summary", f"{read('article')}\n\nIn short:\n\n", read("summary")),
        work("story", "Tell me a story.\n\n", read("story")),
        at_random("random tokens", range(llm.engine.vocab_size)),
        at_random("20 tokens at random", few),
    ]  # fmt: skip
    if own is not None:
        assert llm.tokenizer is not None
        prompt = render_chat(llm.tokenizer, [{"role": "user", "content": own}]) if llm.tokenizer.chat_template else own
        works.append(Work(f"its own: {own}", encode(prompt), None))
    return works


def measure(engines: tuple[Engine, Engine], works: Sequence[Work], args: argparse.Namespace) -> Found:
    """Samples of each text, and of each number of fixed guesses, in the order of rounds."""
    found: Found = {}
    for number in range(args.rounds + 1):  # the first only warms up
        pair = engines[:: -1 if number % 2 else 1]
        control = next((work for work in works if work.name == "story"), works[0])
        for name, work, guesses in [*((w.name, w, args.guesses) for w in works), (CONTROL, control, 0)]:
            count = args.generate if work.answer is None else len(work.answer)
            runs = [Answering(e, work, count, n, args.users) for e, n in zip(pair, (0, guesses), strict=True)]
            samples = race(runs)
            assert work.answer is None or samples[0].tokens == work.answer[:count], "it says what is dictated"
            keep(found, name, "with", samples)
        for guesses in GUESSES if args.bounds else ():
            for kind in ("right", "wrong"):
                keep(found, str(guesses), kind, race(fixed(engines, works[0], guesses, kind == "right", args.users)))
        say(f"round {number} of {args.rounds}{' (warming up)' * (number == 0)}")
    return {name: {kind: pairs[1:] for kind, pairs in kinds.items()} for name, kinds in found.items()}


def fixed(engines: tuple[Engine, Engine], work: Work, guesses: int, is_right: bool, num_users: int) -> list[Answering]:
    """Without guesses, and with `guesses` in each step that are all right or all wrong, on some tokens of a text."""
    assert work.answer is not None
    count = min(len(work.answer), max(48, 3 * guesses))
    text = work.prompt + work.answer[:count]

    def change(request: Request) -> None:
        request.lookup = FixedGuesses(text, is_right)  # type: ignore[assignment]

    return [
        Answering(engines[0], work, count, 0, num_users),
        Answering(engines[1], work, count, guesses, num_users, change),
    ]


def keep(found: Found, name: str, kind: str, samples: list[Sample]) -> None:
    found.setdefault(name, {}).setdefault(kind, []).append((samples[0], samples[1]))


def summarise(pairs: list[tuple[Sample, Sample]]) -> dict[str, Any]:
    """Medians with guesses beside those without; `faster` is the median of each round's own ratio."""
    ratios = [plain.seconds / guessing.seconds for plain, guessing in pairs]
    last = pairs[-1][1]
    return {
        "tokens_per_s_without": statistics.median(plain.num_tokens / plain.seconds for plain, _ in pairs),
        "tokens_per_s": statistics.median(guessing.num_tokens / guessing.seconds for _, guessing in pairs),
        "faster": statistics.median(ratios), "faster_min": min(ratios), "faster_max": max(ratios),
        "num_tokens": last.num_tokens, "num_steps": last.num_steps, "drafted": last.drafted, "accepted": last.accepted,
        "seconds": [(plain.seconds, guessing.seconds) for plain, guessing in pairs],
    }  # fmt: skip


def make_report(llm: LLM, works: Sequence[Work], found: Found, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": {"cpu": cpu_name(), "threads": args.threads or num_cpus()},
        "model": args.model,
        "kernels": sorted(set(llm.engine.executor.kernels().values())),
        "users": args.users, "guesses": args.guesses, "num_rounds": args.rounds,
        "texts": [
            {"name": w.name, "prompt_tokens": len(w.prompt), "is_dictated": w.answer is not None,
             **summarise(found[w.name]["with"])}
            for w in works
        ],
        "control": summarise(found[CONTROL]["with"]),
        "bounds": [
            {"guesses": count, "right": summarise(found[str(count)]["right"]),
             "wrong": summarise(found[str(count)]["wrong"])}
            for count in (GUESSES if args.bounds else ())
        ],
    }  # fmt: skip


def render(report: dict[str, Any]) -> str:
    """The report as a table."""
    machine = report["machine"]
    lines = [
        f"machine  {machine['cpu']}, {machine['threads']} threads",
        f"model    {report['model']}; {report['users']} user{'s' * (report['users'] > 1)}, up to {report['guesses']} "
        f"guesses a step; medians of {report['num_rounds']} rounds, lowest and highest behind",
        "",
        f"{'answer':24} {'prompt':>6} {'tokens':>6} {'tokens/s':>8} {'with':>8} {'faster':>7} {'':14} "
        f"{'right of guessed':>16} {'tokens a step':>13}",
    ]
    for text in [*report["texts"], {"name": CONTROL, "prompt_tokens": "", **report["control"]}]:
        spread = f"{text['faster_min']:.2f} to {text['faster_max']:.2f}"
        lines.append(
            f"{text['name'][:24]:24} {text['prompt_tokens']:>6} {text['num_tokens']:6} "
            f"{text['tokens_per_s_without']:8.1f} {text['tokens_per_s']:8.1f} {text['faster']:6.2f}x {spread:14} "
            f"{text['accepted']:8} of {text['drafted']:4} {text['num_tokens'] / text['num_steps']:13.2f}"
        )
    if report["bounds"]:
        lines += ["", "in each step guesses that are          all right     all wrong"]
    for bound in report["bounds"]:
        lines.append(f"{bound['guesses']:12}{bound['right']['faster']:35.2f}x{bound['wrong']['faster']:13.2f}x")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculation", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("model", help="artifact, checkpoint folder or hub id, with a tokenizer")
    add("--guesses", type=int, default=16, metavar="N", help="a step at most; default 16")
    add("--users", type=int, default=1, metavar="N", help="who ask the same at the same time; default 1")
    add("--own", metavar="PROMPT", help="also an answer of the model's own")
    add("--texts", nargs="+", metavar="NAME", help='only these, such as "story" "random tokens"')
    add("--no-bounds", dest="bounds", action="store_false", help="leave out what guesses cost that are always wrong")
    add_llm_options(parser)
    args = parser.parse_args()
    with LLM(args.model, **llm_keywords(args)) as llm:
        works = make_works(llm, args.generate, args.own)
        if args.texts is not None:
            names = [work.name for work in works]
            if unknown := sorted(set(args.texts) - set(names)):
                parser.error(f"--texts: there is no {', '.join(unknown)}; there are: {', '.join(names)}")
            works = [work for work in works if work.name in args.texts]
        report = make_report(llm, works, measure(two_engines(llm.engine), works, args), args)
    print(render(report))
    write_json(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
