"""`python -m benchmarks.serving CHECKPOINT`: qwench's server and llama.cpp's, the same load in turns.

Both serve the same weights at the same bits, and answer the requests of `qwench bench-serve` (`qwench.evaluate.load`):
so many users, each of whom asks again when answered, with prompts that no prefix cache knows. A server that isn't
asked doesn't compute, so both may stay up. Needs llama.cpp's `llama-server`, and for its model an interpreter with
`gguf` and llama-cpp-python.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import plan as plans
from benchmarks.contenders.qwench_engine import OPTIONS
from benchmarks.folders import build_folder, check_checkpoint, write_json
from benchmarks.process import Worker
from qwench.cli.terminal.table import print_table
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.evaluate.load.client import LoadClient
from qwench.evaluate.load.figures import Figures, Goals, figures
from qwench.evaluate.load.plan import make_plan
from qwench.host import cpu_name, num_cpus

OURS, THEIRS = "qwench", "llama.cpp"
READY_S = 120.0
MARGIN = 64  # positions beyond prompt and answer: prompts are words, and only about as many tokens as asked for


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=Path, help="folder of a Qwen2 checkpoint with its tokenizer")
    add("--llama-server", default="llama-server", metavar="PATH", help="llama.cpp's server; default: the one in PATH")
    add("--peer-python", default=sys.executable, metavar="PATH", help="interpreter with llama-cpp-python and gguf")
    known = tuple(OPTIONS)
    add("--formats", type=plans.names(known), default=("int8", "int4"), metavar="A,B", help=f"of {', '.join(known)}")
    add("--users", type=int, nargs="+", default=(1, 8, 32), metavar="N", help="at once; default 1 8 32")
    add("--prompt", type=int, default=128, metavar="N", help="tokens of each prompt, default 128")
    add("--answer", type=int, default=64, metavar="N", help="tokens of each answer, default 64")
    add("--each", type=int, default=2, metavar="N", help="requests of each user in a round, default 2")
    add("--rounds", type=int, default=3, metavar="N", help="default 3; medians count")
    add("--threads", type=int, metavar="N", help="default: the processors that this process may use")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


class Servers:
    """Compiles a checkpoint for both, and runs their servers one beside the other."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args, self._folder = args, folder
        self._threads = args.threads or num_cpus()
        self._positions, self._most_users = args.prompt + args.answer + MARGIN, max(args.users)

    @contextmanager
    def running(self, format_name: str) -> Iterator[dict[str, str]]:
        """The URL of each server, both ready."""
        with ExitStack() as stack:
            commands = {OURS: self._our_command(format_name), THEIRS: self._their_command(format_name)}
            urls = {name: stack.enter_context(self._server(name, command)) for name, command in commands.items()}
            yield urls

    def _our_command(self, format_name: str) -> list[str]:
        kind, head = OPTIONS[format_name]
        config = QwenchConfig(
            weights=kind, head_weights=head, max_seq_len=self._positions, batch_size=self._most_users
        )  # fmt: skip
        out = self._folder / f"qwench-{format_name}"
        compile_checkpoint(self._args.checkpoint, out, config)
        return [sys.executable, "-m", "qwench.cli.main", "serve", str(out), "--threads", str(self._threads)]

    def _their_command(self, format_name: str) -> list[str]:
        """A slot with its share of the context for each user; flash attention and batching as it decides itself."""
        with Worker(THEIRS, self._args.peer_python, self._folder / "compile.log") as worker:
            made = worker.ask(
                "compile", checkpoint=str(self._args.checkpoint), format_name=format_name,
                out=str(self._folder / f"gguf-{format_name}"), max_positions=self._positions,
                threads=self._threads, target="cpu",
            )  # fmt: skip
        threads, slots = str(self._threads), str(self._most_users)
        context = str(self._most_users * (-(-self._positions // 256) * 256))
        options = ["-t", threads, "-tb", threads, "-np", slots, "-c", context]
        return [self._args.llama_server, "-m", made["path"], *options]

    @contextmanager
    def _server(self, name: str, command: list[str]) -> Iterator[str]:
        port, log = _free_port(), self._folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Both answer /health with 200 once they are ready."""
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"the server at {url} didn't start: {log.read_text(errors='replace')[-500:]}")


def ask(url: str, args: argparse.Namespace, users: int, seed: int) -> Figures:
    """One round of one server."""
    load = make_plan(users * args.each, lambda _: (args.prompt, args.answer), users=users, rate=None, seed=seed)
    client = LoadClient(url, model=None, key=None, timeout_s=600.0, stop_early=False)
    found = figures(asyncio.run(client.run(load, seed, lambda _: None)), Goals())
    for reason, count in found.errors.items():
        say(f"{count} of {found.num_requests} requests without an answer: {reason}")
    if not found.num_answered:
        raise SystemExit(f"{url} answers nothing")
    return found


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One entry per format, number of users and server: the figures of each round."""
    servers, rows = Servers(args, folder), []
    for format_name in args.formats:
        with servers.running(format_name) as urls:
            for users in args.users:
                rounds: dict[str, list[Figures]] = {name: [] for name in urls}
                for number in range(args.rounds):
                    for name in sorted(urls, reverse=number % 2 == 0):
                        found = ask(urls[name], args, users, number)
                        rounds[name].append(found)
                        say(f"{format_name}, {users} users, {name}: {found.answer_tokens_per_s:.1f} tokens/s")
                rows += [
                    {"format": format_name, "users": users, "server": name, "rounds": [f.to_dict() for f in found]}
                    for name, found in rounds.items()
                ]
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "answers, tokens/s": lambda f: f["answer_tokens_per_s"],
    "first token, s": lambda f: f["ttft_s"]["p50"],
    "ms a token, median": lambda f: 1e3 * f["tpot_s"]["p50"],
    "p99": lambda f: 1e3 * f["tpot_s"]["p99"],
}


def show(report: dict[str, Any]) -> None:
    load = report["load"]
    print(
        f"{report['checkpoint']} on {report['cpu']}, {report['threads']} threads; prompts of about {load['prompt']} "
        f"tokens, answers of {load['answer']}; medians of {load['rounds']} rounds, of ratios within a round"
    )
    headings = ("weights", "users", "server", *COLUMNS, "speed beside llama.cpp")
    print_table(headings, [_cells(row, report["rows"]) for row in report["rows"]], right=headings[1:2] + headings[3:])


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[str, ...]:
    values = [statistics.median(of(figures) for figures in row["rounds"]) for of in COLUMNS.values()]
    ratio = ""
    if row["server"] == OURS:
        work = row["format"], row["users"], THEIRS
        other = next(r for r in rows if (r["format"], r["users"], r["server"]) == work)
        speeds = ([figures["answer_tokens_per_s"] for figures in r["rounds"]] for r in (row, other))
        ratio = f"{statistics.median(ours / theirs for ours, theirs in zip(*speeds)):.2f}"
    cells = (f"{values[0]:.1f}", f"{values[1]:.2f}", *(f"{value:.1f}" for value in values[2:]))
    return row["format"], str(row["users"]), row["server"], *cells, ratio


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    check_checkpoint(parser, args.checkpoint)
    if shutil.which(args.llama_server) is None:
        parser.error(f"{args.llama_server} isn't there; llama.cpp's releases have it, or build its target llama-server")
    with tempfile.TemporaryDirectory(prefix="serving-", dir=build_folder()) as folder:
        rows = measure(args, Path(folder))
    report = {
        "checkpoint": str(args.checkpoint),
        "cpu": cpu_name(),
        "threads": args.threads or num_cpus(),
        "load": {"prompt": args.prompt, "answer": args.answer, "each": args.each, "rounds": args.rounds},
        "rows": rows,
    }
    show(report)
    write_json(report, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
