"""`make vendor`: brings the libraries of the server's page into the package, exactly those that vendor.json pins.

npm fetches each package; its sha512 must be the one in vendor.json, or nothing is written. Of each only the files that
are listed come along, under their own names. vendor.sha256, as sha256sum writes it, says what lies there then, and
tests/serve/test_vendor.py holds the files to it. Runs with Python's own library alone.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
PINS = HERE / "vendor.json"
SUMS = HERE / "vendor.sha256"
FOLDER = HERE.parent / "src" / "qwench" / "serve" / "http" / "ui" / "vendor"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for package, pin in json.loads(PINS.read_text()).items():
            archive = fetch(f"{package}@{pin['version']}", pin["integrity"], Path(name))
            unpack(archive, pin["files"], pin.get("below", ""), Path(name) / "vendor" / folder_of(package))
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.move(Path(name) / "vendor", FOLDER)
    SUMS.write_text("".join(f"{digest}  {path}\n" for path, digest in sums().items()))


def folder_of(package: str) -> str:
    """@highlightjs/cdn-assets lies in highlightjs."""
    return package.lstrip("@").partition("/")[0]


def fetch(package: str, integrity: str, folder: Path) -> Path:
    """The package's archive, once its sha512 is the one that was pinned."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"npm can't fetch {package}: {done.stderr}")
    archive = folder / done.stdout.strip()
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != integrity:
        sys.exit(f"{package} is not what vendor.json pins: its integrity is {found}")
    return archive


def unpack(archive: Path, patterns: Sequence[str], below: str, folder: Path) -> None:
    """The files that the patterns name, without the folders `below` which they are; each must name one at least."""
    with tarfile.open(archive) as tar:
        members = {member.name.partition("/")[2]: member for member in tar if member.isfile()}
        for pattern in patterns:
            chosen = fnmatch.filter(members, pattern)
            if not chosen:
                sys.exit(f"{archive.name} has no {pattern}")
            for name in chosen:
                content = tar.extractfile(members[name])
                assert content is not None
                file = folder / name.removeprefix(below)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())


def sums() -> dict[str, str]:
    """The sha256 of each file that lies there, by its path within FOLDER."""
    files = sorted(file for file in FOLDER.rglob("*") if file.is_file())
    return {file.relative_to(FOLDER).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    main()
