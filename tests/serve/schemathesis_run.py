"""Runs schemathesis over a server's OpenAPI document, as one would by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ServerProcess

# The schema shows each field in its plain form, and other forms are taken as well; request_table.py has those.
CONFIG = """
[checks]
negative_data_rejection.enabled = false
positive_data_acceptance.enabled = false
"""


def run_schemathesis(server: ServerProcess, folder: Path, *, phases: str, max_examples: int) -> str:
    """Its summary, once it has found nothing. All its checks, but that whatever the schema allows is accepted (a
    request can be too long for the context, or name a model that isn't there) and nothing else is."""
    pytest.importorskip("schemathesis", reason="makes requests of the OpenAPI document: pip install qwench[dev]")
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "--no-color", "run"]
    command += [f"{server.url}/openapi.json", "--phases", phases, "--max-examples", str(max_examples), "--seed", "1"]
    command += ["--generation-deterministic", "--no-shrink", "--continue-on-failure", "--warnings", "off"]
    command += ["--suppress-health-check", "all", "--request-timeout", "120"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "COLUMNS": "120"})
    said = re.sub(r"(?m)^(.{300}).*$", r"\1 ...", done.stdout)
    assert done.returncode == 0, said + done.stderr
    return said[said.index("Test cases:") :]
