"""docs/parity.md keeps its word: its commands run in a clone, or, where they take long, are at least possible."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from qwench.cli import main as command_line

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs/parity.md").read_text(encoding="utf-8").splitlines()
# In tables: every command of the last column, and whether a star marks it as long.
COMMANDS = [
    (command, bool(star))
    for line in LINES
    if line.startswith("| ") and not line.startswith(("| |", "|---"))
    for command, star in re.findall(r"`([^`]+)`( \*)?", re.split(r"(?<!\\)\|", line)[-2])
]
SET_UP = [line.strip() for line in LINES if line.startswith("    ")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone, with room for what the commands build."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def run(command: str) -> int:
    """Runs `qwench ...` in this process."""
    program, *arguments = shlex.split(command)
    assert program == "qwench"
    return command_line.main(arguments)


def test_each_row_has_a_command() -> None:
    rows = [line for line in LINES if line.startswith("| ") and not line.startswith(("| |", "|---"))]
    assert len(rows) > 20
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 5 and re.search(r"`[^`]+`", cells[-1]), row


def test_what_is_set_up_is_what_the_makefile_and_the_program_know() -> None:
    make, path, *rest = SET_UP
    assert re.search(rf"^{make.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)
    assert path == "export PATH=$PWD/.venv/bin:$PATH"
    assert rest and all(line.startswith("qwench ") for line in rest)


def test_the_quick_commands_run(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the order of the document, as a reader would."""
    monkeypatch.chdir(clone)
    commands = [command for command, is_long in COMMANDS if command.startswith("qwench ") and not is_long]
    for command in [line for line in SET_UP if line.startswith("qwench ")] + commands:
        code = run(command)
        out, err = capfd.readouterr()
        assert code == 0, f"{command}: {err}"
        assert out, f"{command} says nothing"


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS if command.startswith("qwench ")])
def test_every_command_is_one_that_the_program_knows(command: str) -> None:
    arguments = shlex.split(command)[1:]
    assert command_line._parser(arguments[0]).parse_args(arguments).execute


@pytest.mark.parametrize("command", sorted({c for c, _ in COMMANDS if not c.startswith("qwench ")}))
def test_other_commands_name_what_exists(command: str) -> None:
    """Tests run in their own right, benchmarks and make targets by hand."""
    program, *arguments = shlex.split(command)
    if program == "pytest":
        path, _, test = next(a for a in arguments if not a.startswith("-")).partition("::")
        assert (ROOT / path).exists(), path
        assert not test or f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), test
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M), command
    else:
        assert (program, arguments[0]) == ("python", "-m") and arguments[1].startswith("benchmarks"), command
        module = arguments[1].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists(), command
