"""Where benchmarks read and write: the checkpoint they are given, the folder for what they build, the report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT


def check_checkpoint(parser: argparse.ArgumentParser, checkpoint: Path) -> None:
    """Ends with the parser's error unless the folder has a config.json."""
    if not (checkpoint / "config.json").is_file():
        parser.error(f"{checkpoint} has no config.json; give the folder of a Qwen2 checkpoint")


def build_folder() -> Path:
    """build/benchmarks, made if it isn't there."""
    folder = ROOT / "build" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(report: Any, path: Path | None) -> None:
    """As `--json` asks for; None: it doesn't."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")
