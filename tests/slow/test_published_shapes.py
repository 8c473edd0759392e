"""The published sizes for real: compile, start, run, within time and memory.

The checkpoints are synthetic, made by ../shared/tools/make_checkpoint.py; without it these tests skip. Set
QWENCH_TEST_CHECKPOINTS to a folder to keep them (the 7B one takes ten minutes to make and 16 GB).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAKE = Path(__file__).parents[3] / "shared" / "tools" / "make_checkpoint.py"
QWENCH = [sys.executable, "-m", "qwench.cli.main"]

pytestmark = pytest.mark.skipif(not MAKE.exists(), reason=f"needs ../shared/tools/{MAKE.name}")


def checkpoint(shape: str, tmp_path_factory: pytest.TempPathFactory, disk_bytes: float) -> Path:
    kept = os.environ.get("QWENCH_TEST_CHECKPOINTS")
    folder = Path(kept) / shape if kept else tmp_path_factory.mktemp("checkpoints") / shape
    if not (folder / "model.safetensors.index.json").exists():
        if shutil.disk_usage(folder.parent).free < disk_bytes:
            pytest.skip(f"needs at least {disk_bytes / 1e9:.0f} GB of disk")
        subprocess.run([sys.executable, MAKE, shape, folder], check=True)
    return folder


def run_json(*command: str | Path) -> dict:
    done = subprocess.run([*QWENCH, *map(str, command)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def half_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("0.5b", tmp_path_factory, 3e9)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_half_billion_compiles_starts_and_keeps_up(half_billion: Path, tmp_path: Path, weights: str) -> None:
    out = tmp_path / weights
    start = time.monotonic()
    run_json("compile", half_billion, "-o", out, "--weights", weights, "--json")
    compile_s = time.monotonic() - start
    first = [run_json("run", out, "-p", "Hello!", "--max-new-tokens", "4", "--json") for _ in range(5)]
    ttft_s = min(run["timings"]["ttft_s"] for run in first)
    bench = run_json("bench", out, "--prompt", "512", "--generate", "32", "--json")
    ceiling = bench["ceiling"]
    print(f"\n{weights}: compiled in {compile_s:.1f} s, first token after {ttft_s:.2f} s, "
          f"prefill {bench['prefill_tokens_per_s']:.0f} tokens/s ({ceiling['prefill_ratio']:.0%} of the ceiling), "
          f"decode {bench['decode_tokens_per_s']:.1f} ({ceiling['decode_ratio']:.0%})")  # fmt: skip
    assert compile_s < 20
    assert ttft_s < 1.0
    # Guards against a collapse; what was measured, and where the rest goes, is in docs/log.md.
    assert ceiling["prefill_ratio"] > 0.2
    assert ceiling["decode_ratio"] > 0.35


def test_seven_billion_int4_compiles_and_runs_within_24_gib(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source, out = checkpoint("7b", tmp_path_factory, 25e9), tmp_path / "int4"
    run_json("compile", source, "-o", out, "--weights", "int4", "--max-seq-len", "4096", "--json")
    # Memory-mapped files count as resident, so this bounds more than what had to be held.
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    answer = run_json("run", out, "-p", "Hello!", "--max-new-tokens", "8", "--json")
    print(f"\n7B int4: peak {peak_bytes / 2**30:.1f} GiB, {answer['timings']}")
    assert len(answer["token_ids"]) == 8 or answer["finish_reason"] == "stop"
    assert peak_bytes < 24 * 2**30
