"""The run itself: every contender does every work, round by round, one at a time; then the next format.

Within a round the contenders follow each other, each right after the ceilings of that moment; each round starts with
another one. Makes plain samples; what they mean is the business of `report.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.contenders.contender import Compiled
from benchmarks.cost import Shape
from benchmarks.machine import TOLERATED_CPUS, Ceiling, LoadWatch, Machine, measure_copy_s
from benchmarks.plan import ANSWER, COMPILE, OURS, PROFILE, START, START_WORK, WARM_UP, Plan, Work
from benchmarks.process import Worker, WorkerError


@dataclass(frozen=True)
class Sample:
    """One contender's doing of one work in one round; `values` as the worker measured them, bytes and seconds.

    ceiling: measured right before; None where no arithmetic is compared.
    """

    format_name: str
    work: str
    round_number: int
    contender: str
    values: dict[str, Any]
    ceiling: Ceiling | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether others used so much of the machine that the figure means little."""
        return float(self.values["others_cpus"]) > TOLERATED_CPUS


@dataclass
class Measured:
    """All that a run found. skipped: what was left out, and the word why.

    models: format -> contender -> what it made. copy_s: (format, round) -> seconds of copying as many bytes.
    profiles: format -> what `qwench bench --profile --json` said. seconds: of the whole run.
    """

    machine: dict[str, Any]
    shape: Shape
    plan: Plan
    versions: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    models: dict[str, dict[str, Compiled]] = field(default_factory=dict)
    copy_s: dict[tuple[str, int], float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


class Run:
    """One run of `plan` over `checkpoint`. folder: for models and logs. pythons: contender -> its interpreter.

    keep: compiled models stay in the folder, and those already there aren't compiled again. say: told what happens.
    programs: contender -> its binary, of those that are one.
    """

    def __init__(
        self, plan: Plan, checkpoint: Path, folder: Path, pythons: dict[str, str], keep: bool,
        say: Callable[[str], None], programs: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.plan, self.checkpoint, self.folder, self.pythons = plan, checkpoint, folder, pythons
        self.keep, self.say, self.programs = keep, say, programs
        self._machine = Machine(plan.threads, plan.target)
        self._found = Measured(self._machine.describe(), Shape.from_folder(checkpoint), plan)
        self._single: set[str] = set()  # contenders that answer one user at a time
        self._failed: set[tuple[str, str]] = set()  # (format, contender)
        self._slow: set[tuple[str, str, str]] = set()  # (format, work, contender) beyond the patience

    def measure(self) -> Measured:
        """Runs the plan. What a contender can't do is skipped with a word; Ctrl-C ends the run with what there is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        start_s = time.perf_counter()
        try:
            offered = self._describe()
            for format_name in self.plan.formats:
                self._measure_format(format_name, offered)
        except KeyboardInterrupt:
            self._skip("everything after that", "interrupted")
        self._found.seconds = time.perf_counter() - start_s
        return self._found

    def _describe(self) -> dict[str, list[str]]:
        """Contender -> the formats that it offers, of those whose library is there."""
        offered: dict[str, list[str]] = {}
        for name in self.plan.contenders:
            with self._attempt("", name), self._worker(name) as worker:
                reply = worker.ask("describe")
                offered[name], self._found.versions[name] = reply["formats"], reply["version"]
                self.say(f"{name}: {reply['version']}, Python {reply['python']}")
                if not reply["serves_many"]:
                    self._single.add(name)
                    self._skip(f"{name} with several users", "llama-batched-bench isn't beside its llama-bench")
        return offered

    def _measure_format(self, format_name: str, offered: dict[str, list[str]]) -> None:
        names = [name for name in offered if format_name in offered[name]]
        for name in offered:
            if name not in names:
                self._skip(f"{name} {format_name}", "not one of its formats here")
        self._compile(format_name, names)
        if self.plan.answers(format_name):
            self._answer(format_name, names)
        if START in self.plan.works:
            self._start(format_name, names)
        if PROFILE in self.plan.works and OURS in self._in_turn(format_name, names, 0):
            self._profile(format_name)
        if not self.keep:
            for name in names:
                shutil.rmtree(self._model_folder(format_name, name), ignore_errors=True)

    # ---- compile

    def _compile(self, format_name: str, names: list[str]) -> None:
        """Fills `models`, timed from the start of a fresh process."""
        models = self._found.models.setdefault(format_name, {})
        for number in range(self.plan.compile_rounds):
            for name in self._in_turn(format_name, names, number):
                with self._attempt(format_name, name):
                    models[name] = self._kept(format_name, name) or self._compile_one(format_name, name, number)
            if COMPILE in self.plan.works and models:
                num_bytes = next(iter(models.values())).weight_bytes
                copy_s = measure_copy_s(self.checkpoint, num_bytes, self.folder / "copy")
                self._found.copy_s[format_name, number] = copy_s

    def _compile_one(self, format_name: str, name: str, number: int) -> Compiled:
        folder = self._model_folder(format_name, name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with self._worker(name) as worker:
            reply = worker.ask(
                "compile", checkpoint=str(self.checkpoint), format_name=format_name,
                out=str(folder / "model"), max_positions=self.plan.max_positions, threads=self.plan.threads,
                target=self.plan.target,
            )  # fmt: skip
            compiled = Compiled(**reply["compiled"])
            values = self._life(worker) | {"work_s": reply["work_s"]}
            values["seconds"] -= compiled.trial_s
        if compiled.path != str(self.checkpoint):
            self._record(format_name, COMPILE, number, name, values)
        kept = {"max_positions": self.plan.max_positions, "compiled": dataclasses.asdict(compiled)}
        (folder / "model.json").write_text(json.dumps(kept))
        return compiled

    def _kept(self, format_name: str, name: str) -> Compiled | None:
        """What an earlier run made, if it is to be used and holds sequences that are long enough."""
        path = self._model_folder(format_name, name) / "model.json"
        if not self.keep or not path.is_file():
            return None
        kept = json.loads(path.read_text())
        return Compiled(**kept["compiled"]) if kept["max_positions"] >= self.plan.max_positions else None

    def _model_folder(self, format_name: str, name: str) -> Path:
        return self.folder / f"{name}-{format_name}"

    # ---- answers

    def _answer(self, format_name: str, names: list[str]) -> None:
        """All works of a loaded model; the models of one format are in memory together, their processes stopped."""
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name in self._in_turn(format_name, names, 0):
                with self._attempt(format_name, name):
                    workers[name] = stack.enter_context(self._worker(name))
                    self._load(workers[name], format_name)
            for number in range(self.plan.rounds):
                for work in self.plan.answers(format_name):
                    self._round(format_name, work, number, workers)

    def _load(self, worker: Worker, format_name: str) -> None:
        works = self.plan.answers(format_name)
        path = self._found.models[format_name][worker.contender].path
        positions = max(w.num_users * w.num_positions for w in works)
        users = max(w.num_users for w in works)
        worker.ask("load", path=path, threads=self.plan.threads, positions=positions, users=users)
        self._ask_answer(worker, WARM_UP, 0)
        worker.pause()

    def _round(self, format_name: str, work: Work, number: int, workers: dict[str, Worker]) -> None:
        names = [name for name in workers if work.num_users == 1 or name not in self._single]
        for name in self._due(format_name, work.name, names, number):
            with self._attempt(format_name, name):
                values, ceiling = self._least_disturbed(workers[name], work, number)
                if number == 0 and work is ANSWER:
                    values = workers[name].ask("memory") | values
                workers[name].pause()
                self._record(format_name, work.name, number, name, values, ceiling)

    def _least_disturbed(self, worker: Worker, work: Work, number: int) -> tuple[dict[str, Any], Ceiling]:
        """One measurement, or the better of two if others used the processors during the first or its ceiling."""
        tries = []
        for _ in range(2):
            load = LoadWatch(os.getpid())
            ceiling = self._machine.measure()
            others = load.others_cpus()
            values = self._ask_answer(worker, work, number)
            values["others_cpus"] = max(others, values["others_cpus"])
            tries.append((values, ceiling))
            if values["others_cpus"] <= TOLERATED_CPUS or _seconds(values) > self.plan.patience_s:
                break
        return min(tries, key=lambda one: float(one[0]["others_cpus"]))

    def _ask_answer(self, worker: Worker, work: Work, number: int) -> dict[str, Any]:
        prompts = work.prompts(self._found.shape.vocab_size, self.plan.seed + number)
        return worker.ask("answer", prompts=prompts, num_generate=work.num_generate)

    # ---- start

    def _start(self, format_name: str, names: list[str]) -> None:
        """A fresh process up to its first token. Its files are in the page cache, since the answers have read them."""
        first = 0 if self.plan.answers(format_name) else -1  # a round for the cache alone
        for number in range(first, self.plan.rounds):
            for name in self._due(format_name, START, names, number):
                with self._attempt(format_name, name), self._worker(name) as worker:
                    path = self._found.models[format_name][name].path
                    worker.ask(
                        "load", path=path, threads=self.plan.threads, positions=START_WORK.num_positions, users=1
                    )
                    self._ask_answer(worker, START_WORK, number)
                    values = self._life(worker)
                    if number >= 0:
                        self._record(format_name, START, number, name, values)

    # ---- where qwench's time goes

    def _profile(self, format_name: str) -> None:
        """Time, bytes and operations of each op, by qwench's own command."""
        path = self._found.models[format_name][OURS].path
        options = f"--profile --json --prompt {ANSWER.num_prompt} --generate 16 --threads {self.plan.threads}"
        code = "import sys; from qwench.cli.main import main; sys.exit(main(sys.argv[1:]))"
        command = [self.pythons[OURS], "-c", code, "bench", path, *options.split(), "--rounds", str(self.plan.rounds)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            self._found.profiles[format_name] = json.loads(done.stdout)
            self.say(f"{format_name} {PROFILE}")
        else:
            self._skip(f"{PROFILE} {format_name}", done.stderr.strip().rpartition("\n")[2])

    # ---- common

    def _life(self, worker: Worker) -> dict[str, Any]:
        """Seconds since the worker's process was started, and what others used meanwhile."""
        return {"seconds": time.perf_counter() - worker.started_s, "others_cpus": worker.load.others_cpus()}

    def _worker(self, name: str) -> Worker:
        return Worker(name, self.pythons[name], self.folder / f"{name}.log", self.programs.get(name))

    def _in_turn(self, format_name: str, names: list[str], number: int) -> list[str]:
        """Those that still stand; each round begins with another one."""
        standing = [name for name in names if (format_name, name) not in self._failed]
        first = number % len(standing) if standing else 0
        return standing[first:] + standing[:first]

    def _due(self, format_name: str, work: str, names: list[str], number: int) -> list[str]:
        """Of those, the ones that the plan has the patience for."""
        turn = self._in_turn(format_name, names, number)
        return [name for name in turn if (format_name, work, name) not in self._slow]

    @contextlib.contextmanager
    def _attempt(self, format_name: str, name: str) -> Iterator[None]:
        """A contender that fails within is out for this format, with a word."""
        try:
            yield
        except WorkerError as error:
            self._failed.add((format_name, name))
            self._skip(f"{name} {format_name}".strip(), f"{'not installed, ' if error.is_absent else ''}{error}")

    def _skip(self, what: str, why: str) -> None:
        self._found.skipped.append(f"{what}: {why}")
        self.say(f"skipped {what}: {why}")

    def _record(
        self, format_name: str, work: str, number: int, name: str, values: dict[str, Any],
        ceiling: Ceiling | None = None,
    ) -> None:  # fmt: skip
        self._found.samples.append(Sample(format_name, work, number, name, values, ceiling))
        seconds, others = _seconds(values), values["others_cpus"]
        if seconds > self.plan.patience_s and others <= TOLERATED_CPUS:
            self._slow.add((format_name, work, name))
        disturbed = f", others used {others:.1f} processors" if others > TOLERATED_CPUS else ""
        self.say(f"{format_name} {work}, round {number + 1}: {name} {seconds:.2f} s{disturbed}")


def _seconds(values: dict[str, Any]) -> float:
    """How long a measurement took."""
    return float(values["seconds"] if "seconds" in values else values["prefill_s"] + values["decode_s"])
