"""Closed, full and abandoned standard streams: one line on stderr at most, a conventional exit code, no traceback."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwench.cli.main import COMMANDS, main

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
CLOSED, FULL = "stdout: Bad file descriptor", "stdout: No space left on device"

# What each command is asked here, and whether its answer goes to stdout; {artifact} and {folder} are replaced.
ASKED = {
    "compile": (f"compile {MODEL} -o {{folder}}/compiled", True),
    "run": ("run {artifact} -p Hi --temperature 0 --max-new-tokens 4", True),
    "chat": ("chat {artifact} --temperature 0 --max-new-tokens 4", True),
    "serve": ("serve {artifact} --port 99999", False),
    "prefix": ("prefix list {folder}", True),
    "demo": ("demo {artifact} --users 2 --iterations 4", True),
    "bench": ("bench {artifact} --prompt 32 --generate 4 --users 1 --rounds 1", True),
    "bench-serve": ("bench-serve http://127.0.0.1:9 --requests 1", False),
    "verify": (f"verify {{artifact}} --against {MODEL} --truth reference --greedy 0 --max-tokens 4", True),
    "eval": ("eval {artifact} --max-tokens 64", True),
    "inspect": ("inspect {artifact}", True),
    "plan": (f"plan {MODEL}", True),
    "pull": ("pull ../no-id", False),
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("streams") / "artifact"
    assert main(["compile", str(MODEL), "-o", str(out), "--weights", "int8"]) == 0
    return out


def run(command: str, redirection: str = "") -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines on stderr, with something on stdin for the commands that read it."""
    line = f"{shlex.quote(sys.executable)} -m qwench.cli.main {command} {redirection}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        input="Hello\n", capture_output=True, text=True, env=ENVIRONMENT, timeout=120,
    )  # fmt: skip
    for word in ("Traceback", "unexpected", "Exception ignored"):
        assert word not in done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_all_commands_are_asked() -> None:
    assert ASKED.keys() == set(COMMANDS)


@pytest.mark.parametrize("command", ASKED)
def test_a_command(artifact: Path, tmp_path: Path, command: str) -> None:
    text, prints = ASKED[command]
    asked = text.format(artifact=artifact, folder=tmp_path)
    for redirection, fault in ((">&-", CLOSED), (">/dev/full", FULL)):
        again = " --overwrite" if command == "compile" else ""
        code, _, says = run(asked + again, redirection)
        assert code == 2 and len(says) == 1
        assert says[0] == f"qwench: error: {fault}" if prints else says[0].startswith("qwench: error: ")


@pytest.mark.parametrize("command", ["run", "chat", "inspect", "pull"])
def test_nobody_hears_stderr(artifact: Path, tmp_path: Path, command: str) -> None:
    """Closed, what was said there goes nowhere, above all not to stdout; full, the exit code tells of it."""
    asked = ASKED[command][0].format(artifact=artifact, folder=tmp_path)
    code, printed, _ = run(asked)
    assert run(asked, "2>&-")[:2] == (code, printed)
    full, printed_then, _ = run(asked, "2>/dev/full")
    assert printed_then == printed and full == (2 if command in ("run", "pull") else 0)
    assert run(asked, "<&- >&- 2>&-")[1:] == ("", [])


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    assert run(f"{command} --help", ">/dev/full") == (2, "", [f"qwench: error: {FULL}"])
    assert run(f"{command} --help", "| true")[2] == []


def test_nothing_to_read(artifact: Path) -> None:
    code, _, says = run(f"run {artifact}", "<&-")
    assert code == 2 and len(says) == 1 and "the prompt on stdin is empty" in says[0]
    assert run(f"chat {artifact}", "<&-") == (0, "", [])


def test_a_reader_that_leaves(artifact: Path) -> None:
    assert run(f"run {artifact} --raw -p Once --max-new-tokens 400", "| head -c 1") == (0, " ", [])
    for asked in (f"inspect {artifact}", f"plan {MODEL}", f"run {artifact} --json"):
        assert run(asked, "| true") == (0, "", [])


def test_a_server_needs_no_stream(artifact: Path, tmp_path: Path) -> None:
    """As a daemon: it is ready, and ends when it is told to."""
    (log := tmp_path / "log").touch()
    command = f"{shlex.quote(sys.executable)} -m qwench.cli.main serve {artifact} --port 0 --threads 1"
    server = subprocess.Popen(["bash", "-c", f"exec {command} <&- >&- 2>{log}"], env=ENVIRONMENT)
    try:
        while "ready after" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    assert len(log.read_text().splitlines()) == 1
