"""Cache groups: which layers share blocks, and that the bound on a sequence's blocks is one, and a tight one."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import CONFIG

from qwench.checkpoint.spec import ModelSpec
from qwench.program.cache_groups import cache_groups, first_position, most_blocks
from qwench.program.passes import fuse
from qwench.program.qwen2 import build_qwen2
from qwench.targets.target import CacheConfig


def spec_of(layers: int, first: int, window: int = 64) -> ModelSpec:
    sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first}
    return ModelSpec.from_config(CONFIG | sliding | {"num_hidden_layers": layers})


def test_without_windows_all_layers_are_one_group() -> None:
    [group] = cache_groups(ModelSpec.from_config(CONFIG))
    assert (group.window, group.layers) == (None, (0, 1))


@pytest.mark.parametrize(
    ("layers", "first", "full", "sliding"),
    [(32, 28, 7, 1), (28, 21, 3, 1), (24, 0, 0, 1), (24, 24, 1, 0), (10, 7, 7, 3), (6, 2, 1, 2)],
)
def test_groups_are_equally_large_and_waste_nothing(layers: int, first: int, full: int, sliding: int) -> None:
    spec = spec_of(layers, first)
    groups = cache_groups(spec)
    assert [group.window for group in groups] == [None] * full + [64] * sliding
    assert len({len(group.layers) for group in groups}) == 1
    assert sorted(layer for group in groups for layer in group.layers) == list(range(layers))
    assert all(spec.sliding_windows[layer] == group.window for group in groups for layer in group.layers)
    whole = 2 * layers * spec.num_kv_heads * 16 * 16 * 4  # of 16 positions over all layers, as without groups
    assert CacheConfig(1, 16, "fp32").block_bytes(fuse(build_qwen2(spec))) * len(groups) == whole


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 90), st.sampled_from([16, 32, 48]), st.data())
def test_no_step_needs_more_than_the_bound(window: int, most: int, size: int, data: st.DataObject) -> None:
    """However a sequence is cut into steps: blocks of the step's tokens and of all that these can see."""
    at, held = 0, 0
    while at < 700:
        count = data.draw(st.integers(1, most))
        blocks = -(-(at + count) // size) - first_position(window, at) // size
        assert first_position(window, at) <= max(0, at + 1 - window)
        held, at = max(held, blocks), at + count
    bound = most_blocks((window,), at, size, most)
    assert held <= bound <= math.ceil((most + window + 63) / size) + 1
    assert most_blocks((None, window, None), at, size, most) == bound + 2 * -(-at // size)
    assert most_blocks((window,), 1, size, most) == 1
