"""What needs a GPU: `TRITON_INTERPRET=0 pytest tests/gpu`, which skips everything where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qwench.errors import QwenchError
from qwench.targets.registry import get_target
from qwench.targets.target import DeviceTarget

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("engine", "kernels")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and (reason := _why_not()):
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


def _why_not() -> str:
    try:
        target = get_target("cuda")
        assert isinstance(target, DeviceTarget)
        target.available_bytes()
    except QwenchError as error:
        return str(error)
    return ""
