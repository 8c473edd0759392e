"""What the tests against transformers share: one torch thread, a cache folder of their own, a model and its truth."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models: more threads only wait for each other."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled models go to a folder that goes away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _cpu_runs() -> bool:
    from qwench.errors import TargetError
    from qwench.targets.registry import get_target

    try:
        get_target("cpu")
    except (ImportError, TargetError):
        return False
    return True


@pytest.fixture(scope="session")
def best_target() -> str:
    """The fastest target: of bf16 weights, transformers' fp32 tokens are expected of it."""
    return "cpu" if _cpu_runs() else "reference"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, best_target: str) -> tuple[Any, Any]:
    """(qwench's model, transformers' model) of one small checkpoint, shared by the tests that only generate."""
    from transformers_parity import load_truth, write_checkpoint

    from qwench import QwenchForCausalLM

    folder = write_checkpoint(tmp_path_factory.mktemp("pair"), seed=7)
    model = QwenchForCausalLM.from_pretrained(
        folder, qwench_target=best_target, qwench_prefill_chunk_size=16, qwench_kvcache_block_size=16
    )
    return model, load_truth(folder)


@pytest.fixture(scope="session")
def pair_folder(pair: tuple[Any, Any]) -> Path:
    return Path(pair[1].name_or_path)
