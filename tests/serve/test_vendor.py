"""What the page takes from others is what requirements/vendor.py brought, byte for byte, each with its licence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from qwench.serve.http.page import FOLDER

PINS = Path(__file__).parents[2] / "requirements"
VENDOR = FOLDER / "vendor"


def test_nothing_was_changed_added_or_lost() -> None:
    lines = (PINS / "vendor.sha256").read_text().splitlines()
    expected = {path: digest for digest, path in (line.split("  ", 1) for line in lines)}
    files = [file for file in VENDOR.rglob("*") if file.is_file()]
    found = {file.relative_to(VENDOR).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found == expected


def test_each_has_its_licence() -> None:
    pins = json.loads((PINS / "vendor.json").read_text())
    assert {folder.name for folder in VENDOR.iterdir()} == {package.lstrip("@").partition("/")[0] for package in pins}
    for folder in VENDOR.iterdir():
        [licence] = folder.glob("LICENSE*")
        assert len(licence.read_text()) > 500
