"""The cuda target's kernels as compilers see them: machine code for GPUs that are not here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
MULTIPLIERS = ("product", "shrink", "expand")
SCRIPT = Path(__file__).with_name("compiled_kernels.py")
ARCHITECTURES = ["80", "90", "100", "gfx942"]
FORMATS = [  # weights, activations, cache
    ("bf16", "bf16", "bf16"), ("bf16", "fp32", "fp32"), ("int8/g128", "int8", "int8"), ("int4/g128", "int8", "bf16"),
    ("int4/g32/fp16+zero", "int16", "bf16"), ("int8/g64/fp32+min", "fp32", "bf16"),
]  # fmt: skip


def compiled(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def steps_of(kernels: list[dict[str, Any]]) -> set[str]:
    """The instructions of products, but for how many tokens they take at once."""
    found = {i for k in kernels if k["kernel"].endswith(MULTIPLIERS) for i in k["instructions"]}
    assert found
    return {re.sub(r"n(16|32|64|128)k", "nXk", instruction) for instruction in found}


def test_one_token_and_a_prompt_take_the_same_instruction_on_hopper(tmp_path: Path) -> None:
    arguments = ("dense", "90", "bf16", "bf16", "bf16")
    few, many = (compiled(tmp_path, *arguments, tokens, "float_product") for tokens in ("1", "512"))
    assert steps_of(few) == steps_of(many) == {"wgmma.mma_async.sync.aligned.m64nXk16.f32.bf16.bf16"}
    assert all(kernel["fits"] for kernel in few + many)


def check(kernels: list[dict[str, Any]], architecture: str) -> None:
    """Each has machine code; on NVIDIA's also within the shared memory that there is, with one instruction."""
    assert all(kernel["machine_code_bytes"] for kernel in kernels)
    if architecture.isdigit():
        assert not [kernel for kernel in kernels if not kernel["fits"]]
        for name in {kernel["kernel"] for kernel in kernels if kernel["kernel"].endswith(MULTIPLIERS)}:
            assert len(steps_of([kernel for kernel in kernels if kernel["kernel"] == name])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("fmt", "activations", "cache"), FORMATS)
def test_every_kernel_compiles(architecture: str, fmt: str, activations: str, cache: str, tmp_path: Path) -> None:
    """For a token and for a prompt."""
    kernels = compiled(tmp_path, "dense", architecture, fmt, activations, cache, "1,512")
    names = {kernel["kernel"] for kernel in kernels}
    assert len(names) >= 11 and "join_columns" in names
    check(kernels, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("fmt", "activations", "cache"), FORMATS)
def test_kernels_of_mixtures_compile(architecture: str, fmt: str, activations: str, cache: str, tmp_path: Path) -> None:
    """Those that dense models haven't, or have otherwise."""
    product = "expert_float_product" if fmt == "bf16" else "expert_group_product"
    names = ("route", "sort_by_expert", product, "rms_norm")
    kernels = compiled(tmp_path, "mixture", architecture, fmt, activations, cache, "1,512", *names)
    assert {kernel["kernel"] for kernel in kernels} == set(names)
    check(kernels, architecture)
