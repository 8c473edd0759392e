"""Rotary frequencies and tables: those of transformers where it is there, the formulas in fp64 where it isn't."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import CONFIG

from qwench.checkpoint.rope import RopeSpec
from qwench.checkpoint.spec import ModelSpec
from qwench.program.rope import cos_sin, inverse_frequencies

SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn-mscale": {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn-no-truncate": {"rope_type": "yarn", "factor": 2.0, "truncate": False, "beta_fast": 24.0, "beta_slow": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192},
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
}  # fmt: skip


def longrope(head_dim: int) -> dict[str, Any]:
    steps = np.arange(head_dim // 2)
    return {
        "rope_type": "longrope", "original_max_position_embeddings": 32768,
        "short_factor": (1 + 0.02 * steps).tolist(), "long_factor": (1 + 0.7 * steps).tolist(),
    }  # fmt: skip


@pytest.mark.parametrize("head_dim", [2, 64, 80, 128])
def test_default_frequencies_are_the_formula(head_dim: int) -> None:
    inv_freq, factor = inverse_frequencies(RopeSpec(1e6), head_dim)
    exact = 1e6 ** -(np.arange(0, head_dim, 2) / head_dim)
    assert inv_freq.dtype == np.float32 and inv_freq.shape == (head_dim // 2,) and factor == 1.0
    np.testing.assert_allclose(inv_freq, exact, rtol=1e-6)


def test_yarn_interpolates_slow_and_keeps_fast_dimensions() -> None:
    parameters = {"original_max_position_embeddings": 4096.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                  "truncate": 1.0}  # fmt: skip
    plain, _ = inverse_frequencies(RopeSpec(1e4), 128)
    scaled, factor = inverse_frequencies(RopeSpec(1e4, "yarn", parameters), 128)
    rotations = 4096 * plain.astype(np.float64) / (2 * np.pi)
    np.testing.assert_allclose(scaled[rotations > 40], plain[rotations > 40], rtol=1e-6)
    np.testing.assert_allclose(scaled[rotations < 0.9], plain[rotations < 0.9] / 4, rtol=1e-6)
    assert factor == pytest.approx(0.1 * np.log(4) + 1)


def test_table_is_the_rotation_of_each_position() -> None:
    inv_freq, _ = inverse_frequencies(RopeSpec(1e4), 16)
    table = cos_sin(inv_freq, 0.5, 3, 9)
    angles = np.arange(3, 9)[:, None] * inv_freq.astype(np.float64)
    assert table.dtype == np.float32 and table.shape == (6, 16)
    np.testing.assert_allclose(table[:, :8], 0.5 * np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(table[:, 8:], 0.5 * np.sin(angles), atol=1e-6)


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_as_transformers(name: str, head_dim: int) -> None:
    compare_with_transformers(SCALINGS[name], head_dim, 131072, 131072)


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("seq_len", [100, 32768, 32769, 131072])
def test_longrope_as_transformers_at_the_length_compiled_for(seq_len: int, head_dim: int) -> None:
    for more in ({}, {"factor": 8.0}, {"attention_factor": 1.25}):
        compare_with_transformers(longrope(head_dim) | more, head_dim, 131072, seq_len)


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("seq_len", [100, 32768, 32769, 40000, 131072])
def test_dynamic_as_transformers_at_the_length_compiled_for(seq_len: int, head_dim: int) -> None:
    """transformers computes the frequencies anew for the longest position that it has met."""
    for factor in (1.0, 2.5, 4.0):
        compare_with_transformers({"rope_type": "dynamic", "factor": factor}, head_dim, 32768, seq_len)


def skip_what_older_releases_compute_otherwise(scaling: dict[str, Any] | None) -> None:
    release = tuple(int(part) for part in version("transformers").split(".")[:2])
    if release < (5, 23) and scaling is not None and scaling["rope_type"] in ("proportional", "longrope"):
        pytest.skip("this release of transformers computes such a RoPE in another way than today's")


def compare_with_transformers(
    scaling: dict[str, Any] | None, head_dim: int, max_position_embeddings: int, seq_len: int
) -> None:
    """Frequencies, and the table at places up to the last position of a sequence of `seq_len`."""
    torch = pytest.importorskip("torch", reason="needs qwench[hf] to compare with transformers")
    skip_what_older_releases_compute_otherwise(scaling)
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    config = CONFIG | {"head_dim": head_dim, "max_position_embeddings": max_position_embeddings, "rope_theta": 1e6}
    if scaling is not None:
        config["rope_scaling"] = scaling
    spec = ModelSpec.from_config(config).for_length(seq_len)
    inv_freq, factor = inverse_frequencies(spec.rope, spec.head_dim)
    rotary = Qwen2RotaryEmbedding(Qwen2Config(**copy.deepcopy(config)))
    positions = sorted({p for p in (0, 1, 511, 32767, 100_000) if p < seq_len} | {seq_len - 1})
    cos, sin = rotary(torch.zeros(1), torch.tensor([positions]))
    # Where a scaled theta is itself fp32, the power of its last bit adds another.
    np.testing.assert_array_max_ulp(
        inv_freq, rotary.inv_freq.numpy(), maxulp=2 if spec.rope.rope_type == "dynamic" else 1
    )
    table = np.stack([cos_sin(rotary.inv_freq.numpy(), factor, p, p + 1)[0] for p in positions])
    half = head_dim // 2
    # NumPy's and torch's cosine differ in the last place; the angle they are given must not.
    np.testing.assert_allclose(table[:, :half], cos[0, :, :half].numpy(), atol=3e-7)
    np.testing.assert_allclose(table[:, half:], sin[0, :, :half].numpy(), atol=3e-7)


def test_dynamic_scaling_leaves_short_models_alone_and_slows_long_ones() -> None:
    """The formula of NTK scaling in fp64: theta * (factor * length / original - factor + 1) ** (d / (d - 2))."""
    spec = ModelSpec.from_config(CONFIG | {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}, "head_dim": 16})
    plain, _ = inverse_frequencies(RopeSpec(1e4), 16)
    np.testing.assert_array_equal(inverse_frequencies(spec.for_length(128).rope, 16)[0], plain)
    scaled, factor = inverse_frequencies(spec.for_length(384).rope, 16)
    theta = 1e4 * (3 * 384 / 128 - 2) ** (16 / 14)
    np.testing.assert_allclose(scaled, theta ** -(np.arange(0, 16, 2) / 16), rtol=1e-6)
    assert factor == 1.0


def test_proportional_rotates_a_share_of_the_dimensions() -> None:
    parameters = {"factor": 2.0, "partial_rotary_factor": 0.5}
    inv_freq, _ = inverse_frequencies(RopeSpec(1e4, "proportional", parameters), 16)
    plain, _ = inverse_frequencies(RopeSpec(1e4), 16)
    np.testing.assert_array_equal(inv_freq, np.where(np.arange(8) < 4, plain / 2, 0))
