"""What `make wheel` makes: installed where there is no compiler and no cmake, it answers with the default model."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "qwench-tiny"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(["make", "wheel", f"DIST={folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_answers_where_nothing_can_be_built(dist: Path, tmp_path: Path) -> None:
    [wheel] = dist.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    bare = {"PATH": str(programs), "HOME": str(tmp_path), "QWENCH_CACHE": str(tmp_path / "cache")}
    assert not any(shutil.which(tool, path=bare["PATH"]) for tool in ("c++", "g++", "clang++", "cc", "cmake", "ninja"))
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python", "install"]
    install += ["-q", "--no-compile", "--only-binary", ":all:", "-c", ROOT / "requirements/dev.txt", wheel]
    done = subprocess.run(install, env=pip | bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ask = [programs / "qwench", "run", MODEL, "-p", "Hello.", "--temperature", "0", "--max-new-tokens", "8", "--json"]
    done = subprocess.run(ask, env=bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ask[:1] = [sys.executable, "-m", "qwench.cli.main"]
    here = subprocess.run(ask, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["text"] and answer["token_ids"] == json.loads(here.stdout)["token_ids"]


def test_what_is_in_them(dist: Path) -> None:
    """The wheel says which Pythons and which Linux it is for, and holds no sources; the sdist holds what builds it."""
    [wheel] = dist.glob("*.whl")
    python = "cp312-abi3" if sys.version_info >= (3, 12) else "cp{0}{1}-cp{0}{1}".format(*sys.version_info)
    assert f"-{python}-manylinux_2_" in wheel.name and wheel.name.endswith(f"_{platform.machine()}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"qwench/py.typed", "qwench/evaluate/data/prompts.json"} <= set(names)
    package = ROOT / "src" / "qwench"
    page = {file.relative_to(package.parent).as_posix() for file in (package / "serve/http/ui").rglob("*.*")}
    assert {name for name in page if (package.parent / name).is_file()} <= set(names)
    assert any(name.endswith("licenses/src/qwench/serve/http/ui/vendor/katex/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".inl")) or name.split("/")[0] == "tests"]
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CMakeLists.txt", "LICENSE", "src/qwench/targets/cpu/native/bindings.cpp"} <= files
