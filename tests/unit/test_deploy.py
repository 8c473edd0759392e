"""The files in deploy/: what they run is a command line that exists, and systemd understands the unit."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwench.cli.main import _parser

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT, DOCKERFILE = (DEPLOY / "qwench.service").read_text(), (DEPLOY / "Dockerfile").read_text()


def setting(name: str) -> str:
    """Of the unit; there is one of it."""
    [value] = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


def test_the_unit_runs_a_good_command_line() -> None:
    program, *arguments = shlex.split(setting("ExecStart"))
    args = _parser("serve").parse_args(arguments)
    assert program.endswith("/qwench") and args.host == "0.0.0.0" and args.api_key_file is not None
    assert int(setting("TimeoutStopSec")) > args.drain


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "qwench.service"
    unit.write_text(UNIT.replace("/opt/qwench/bin/qwench", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0 and "qwench.service" not in done.stderr, done.stderr


def test_the_image_runs_a_good_command_line() -> None:
    words = [json.loads(line) for line in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    [entrypoint, command] = words
    args = _parser("serve").parse_args([*entrypoint, *command][1:])
    assert (
        entrypoint[0] == "qwench"
        and args.host == "0.0.0.0"
        and str(args.port) in re.findall(r"EXPOSE (\d+)", DOCKERFILE)
    )


@pytest.mark.parametrize("text", [UNIT, DOCKERFILE], ids=["unit", "image"])
def test_commands_in_the_comments_exist(text: str) -> None:
    for words in re.findall(r"^#     .*?qwench (compile|serve) (.*)$", text, re.MULTILINE):
        _parser(words[0]).parse_args(shlex.split(" ".join(words)))
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for kept in (line[1:] for line in ignored if line.startswith("!")):
        assert (DEPLOY.parent / kept).exists(), kept
