"""With CI=true a skip that nobody foresaw fails the run, and says why; elsewhere it is only listed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPS = """
import pytest
def test_passes(): pass
def test_skips(): pytest.skip({reason!r})
"""
MODULE = "import pytest; pytest.importorskip('no_such_module', reason='a whole file')"


@pytest.mark.parametrize(
    ("ci", "options", "test", "code", "says"),
    [
        ("true", (), SKIPS.format(reason="needs Chromium"), 1, "doesn't name: needs Chromium"),
        ("true", ("-n", "1"), SKIPS.format(reason="needs Chromium"), 1, "doesn't name: needs Chromium"),
        ("true", ("-n", "1"), MODULE, 1, "doesn't name: a whole file"),
        ("true", (), SKIPS.format(reason="needs systemd"), 0, "1 passed, 1 skipped"),
        ("", (), SKIPS.format(reason="needs Chromium"), 0, "1 passed, 1 skipped"),
    ],
)
def test_a_skip(tmp_path: Path, ci: str, options: tuple[str, ...], test: str, code: int, says: str) -> None:
    """In a process that tests, or in one that has workers do it."""
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", tmp_path, "-c", os.devnull, "-p", "xdist", *options]
    environment = {**os.environ, "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # most of them take long to import
    done = subprocess.run([*command, tmp_path], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, says in done.stdout) == (code, True), done.stdout
