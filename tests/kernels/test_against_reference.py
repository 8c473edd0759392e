"""Every native variant against the NumPy reference, over random shapes, formats, caches and batches."""

from __future__ import annotations

import functools
import zlib
from typing import Literal

import ml_dtypes
import numpy as np
import pytest
from programs import (
    MODELS,
    VARIANTS,
    batch,
    default_activations,
    linear_program,
    load,
    model_program,
    num_groups,
    random_spec,
    random_tensors,
)

from qwench.checkpoint.spec import ModelSpec
from qwench.formats import BF16, Format, dequantize_weight, quantize_weight
from qwench.targets.target import CacheConfig

FORMATS = [BF16, *[Format(kind, group) for kind in ("int8", "int4") for group in (32, 128)]]
CACHE = CacheConfig(24, 16, "fp32")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [*FORMATS, Format("int8", 64), Format("int4", 256)], ids=str)
def test_linear(variant: str, fmt: Format) -> None:
    rng = np.random.default_rng(zlib.crc32(str(fmt).encode()))  # hash() differs from run to run
    is_off: list[bool] = []
    for n, k, rows in [(1, 2, 1), (64, 128, 6), (65, 129, 7), (130, 31, 13), (200, 300, 25), (33, 257, 3)]:
        program = linear_program(n, k, fmt, default_activations(fmt))
        tensors = random_tensors(program, rng)
        ids = rng.integers(0, n, rows).astype(np.int32)
        step = batch([ids], [rows], [[0, 1]])
        expected = load("reference", program, tensors, CACHE).step(step)
        got = load(variant, program, tensors, CACHE).step(step)
        if not fmt.is_quantized:
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
            continue
        # The norm before it rounds differently in the last bit, so a code on the edge may fall to either side: then its
        # row is off by one step of the activation. Such rows are rare and the step bounds them.
        off = np.abs(got - expected).max(axis=1)
        step_size = 8 / 127 * np.abs(tensors["w"].astype(np.float32)).max()
        is_off.extend(off > 1e-4)
        assert off.max() < 2 * step_size
    assert sum(is_off) < 10


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [Format(kind, group) for kind in ("int8", "int4") for group in (32, 64, 256)], ids=str)
def test_int16_activations(variant: str, fmt: Format) -> None:
    """As the reference multiplies them, and with as much left of them as 15 bits keep: beside the exact product."""
    rng = np.random.default_rng(zlib.crc32(str(fmt).encode()))
    for n, k, rows in [(1, 2, 1), (64, 128, 6), (65, 129, 7), (130, 31, 13), (200, 300, 25), (33, 257, 50)]:
        program = linear_program(n, k, fmt, "int16")
        tensors = random_tensors(program, rng)
        ids = rng.integers(0, n, rows).astype(np.int32)
        step = batch([ids], [rows], [[0, 1, 2, 3]])
        expected = load("reference", program, tensors, CACHE).step(step)
        got = load(variant, program, tensors, CACHE).step(step)
        weight = dequantize_weight(*quantize_weight(tensors["w"].astype(np.float32), fmt), k).astype(np.float64)
        x = tensors["table"][ids].astype(np.float64)
        x /= np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6)
        x *= tensors["gain"].astype(np.float64)
        step_size = np.abs(x).max() / 16319
        # A code on the edge may fall to either side of it, see above: that's a step of the activation for each.
        assert np.abs(got - expected).max() < 1e-4 + 2 * step_size * np.abs(weight).max()
        assert np.abs(got - x @ weight.T).max() < 1e-5 + 0.5 * step_size * np.abs(weight).sum(axis=1).max()


def random_model(seed: int, fmt: Format, cache_dtype: str, target: str) -> tuple[ModelSpec, list[np.ndarray]]:
    """A model of some kind in odd shapes, and its logits: of a mixed batch of three sequences in scattered blocks, then
    of one more step."""
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, model_type=MODELS[seed % len(MODELS)])
    program = model_program(spec, fmt)
    tensors = random_tensors(program, rng, std=0.1)
    blocks = rng.permutation(24).tolist()
    tables = [blocks[:6], blocks[6:12], blocks[12:18]]
    counts = [int(rng.integers(1, 60)), 1, int(rng.integers(1, 30))]
    tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in counts]
    more = [rng.integers(0, spec.vocab_size, 2).astype(np.int32) for _ in counts]
    executor, groups = load(target, program, tensors, CacheConfig(24, 16, cache_dtype)), num_groups(spec)
    steps = batch(tokens, counts, tables, groups), batch(more, [n + 2 for n in counts], tables, groups)
    return spec, [executor.step(step).copy() for step in steps]


@functools.cache
def reference_model(seed: int, fmt: Format, cache_dtype: str) -> tuple[ModelSpec, list[np.ndarray]]:
    """Once for all variants: NumPy takes longer over it than they do."""
    return random_model(seed, fmt, cache_dtype, "reference")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [BF16, Format("int8", 128), Format("int4", 32)], ids=str)
@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16", "int16", "int8"])
def test_random_models(variant: str, fmt: Format, cache_dtype: str) -> None:
    """Whole models of each kind."""
    for seed in range(4):
        spec, logits = reference_model(seed, fmt, cache_dtype)
        for expected, got in zip(logits, random_model(seed, fmt, cache_dtype, variant)[1], strict=True):
            spread = expected.std()
            error = np.abs(got - expected).max() / spread
            # bf16 caches and int8 activations round values that differ in the last bit of fp32 to either side.
            bound = 1e-4 if fmt == BF16 and cache_dtype == "fp32" else 0.02 if fmt == BF16 else 0.5
            assert error < bound, (seed, spec)
            assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


BOTH_WAYS = {"is_causal": False, "num_layers": 2, "sliding_windows": (None, None)}


@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16", "int16", "int8"])
def test_attention_in_both_directions(cache_dtype: str) -> None:
    """Sequences of several tiles and partitions, whose parts threads share: near the reference, the same bits on all
    kernels, and for each sequence those that it has alone."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng, model_type=MODELS[seed % len(MODELS)], **BOTH_WAYS)
        program = model_program(spec, BF16)
        tensors = random_tensors(program, rng, std=0.1)
        cache, tables = CacheConfig(24, 16, cache_dtype, partition_len=64), [[*range(3, 12)], [1], [20, 19, 17, 18, 2]]
        tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in (131, 1, 67)]
        counts = [len(ids) for ids in tokens]
        expected = load("reference", program, tensors, cache, tokens=300).step(batch(tokens, counts, tables)).copy()
        first = None
        for variant in VARIANTS:
            executor = load(variant, program, tensors, cache, tokens=300)
            got = executor.step(batch(tokens, counts, tables)).copy()
            assert np.abs(got - expected).max() / expected.std() < (1e-4 if cache_dtype == "fp32" else 0.05)
            assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999
            alone = [executor.step(batch([t], [n], [b])).copy() for t, n, b in zip(tokens, counts, tables, strict=True)]
            np.testing.assert_array_equal(np.concatenate(alone), got)
            first = got if first is None else first
            np.testing.assert_array_equal(got, first)
        with pytest.raises(ValueError, match="sees a sequence whole, in one step"):
            executor.step(batch([tokens[1]], [2], [[0]]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16"])
def test_models_with_bf16_activations(variant: str, cache_dtype: str) -> None:
    """Whole models of odd shapes: closer to the reference that rounds where they do than to the one that doesn't."""
    nearer = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        tensors = random_tensors(model_program(spec, BF16), rng, std=0.1)
        counts = [int(rng.integers(1, 60)), 1, int(rng.integers(1, 30))]
        tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in counts]
        step = batch(tokens, counts, [[0, 1, 2, 3], [4], [5, 6]], num_groups(spec))
        cache = CacheConfig(24, 16, cache_dtype, rounds_queries=cache_dtype == "bf16")
        exact = (
            load("reference", model_program(spec, BF16), tensors, CacheConfig(24, 16, cache_dtype)).step(step).copy()
        )
        rounded = load("reference", model_program(spec, BF16, "bf16"), tensors, cache).step(step).copy()
        got = load(variant, model_program(spec, BF16, "bf16"), tensors, cache).step(step)
        assert np.abs(got - rounded).max() < 0.1 * rounded.std(), (seed, spec)
        nearer.append(np.square(got - rounded).mean() / np.square(exact - rounded).mean())
    assert np.median(nearer) < 0.3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [Format("int8", 64), Format("int4", 128)], ids=str)
def test_models_with_int16_activations(variant: str, fmt: Format) -> None:
    """Whole models of odd shapes; what int8 activations would give is ten times as far off."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        tensors = random_tensors(model_program(spec, fmt), rng, std=0.1)
        counts = [int(rng.integers(1, 60)), 1, int(rng.integers(1, 30))]
        tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in counts]
        step = batch(tokens, counts, [[0, 1, 2, 3], [4], [5, 6]], num_groups(spec))

        def logits(target: str, activations: str, spec=spec, tensors=tensors, step=step) -> np.ndarray:  # type: ignore[no-untyped-def]
            return load(target, model_program(spec, fmt, activations), tensors, CACHE).step(step).copy()

        expected = logits("reference", "int16")
        error, coarse = (np.abs(logits(variant, kind) - expected).max() for kind in ("int16", "int8"))
        assert error < 2e-3 * expected.std() and error < coarse / 10, (seed, spec)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_extreme_codes_do_not_overflow(variant: str, kind: str, activations: Literal["int8", "int16"]) -> None:
    """All codes at their bounds: 16-bit sums of AVX2's byte products are the tightest spot."""
    k, n = 256, 64
    program = linear_program(n, k, Format(kind, 128), activations)
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (n, k)).astype(np.float32)
    signs[0], signs[1] = 1, -1
    largest = np.float32(127 / 128)  # a scale that bf16 holds
    tensors = {
        "table": signs.astype(ml_dtypes.bfloat16),
        "gain": np.ones(k, ml_dtypes.bfloat16),
        "w": (signs * largest).astype(ml_dtypes.bfloat16),
    }
    ids = np.arange(n, dtype=np.int32)
    got = load(variant, program, tensors, CACHE).step(batch([ids], [n], [[0, 1, 2, 3]]))
    exact = signs @ signs.T * largest
    # int4 has no +8, so a weight of +-1 is one of two scales away from exact; int8 is exact to fp32.
    np.testing.assert_allclose(got, exact, atol=1e-3 if kind == "int8" else 20)
    if kind == "int8":
        assert got[0, 0] == pytest.approx(k * largest, rel=1e-6)
        assert got[0, 1] == pytest.approx(-k * largest, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_sequence_leaves_the_others_alone(variant: str) -> None:
    spec = random_spec(np.random.default_rng(3), num_layers=2, sliding_windows=(None, None), tie_word_embeddings=False)
    program = model_program(spec, BF16)
    tensors = random_tensors(program, np.random.default_rng(4))
    tensors["model.embed_tokens.weight"][5] = np.inf
    tokens = [np.array([1, 2, 3], np.int32), np.array([4, 5, 6], np.int32)]
    logits = load(variant, program, tensors, CACHE).step(batch(tokens, [3, 3], [[0], [1]]))
    assert np.isnan(logits[4:]).any(axis=1).all()
    clean = load(variant, program, tensors, CACHE).step(batch(tokens[:1], [3], [[0]]))
    np.testing.assert_array_equal(logits[:3], clean)
    assert np.isfinite(clean).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [Format("int8", 128), Format("int4", 32)], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_quantised_activations_carry_nan_to_the_logits(variant: str, fmt: Format, bad: float, activations: str) -> None:
    """Integer codes can't say NaN; it must not turn into a plausible number on the way."""
    spec = random_spec(np.random.default_rng(5))
    program = model_program(spec, fmt, activations)
    tensors = random_tensors(program, np.random.default_rng(6))
    tensors["model.layers.0.input_layernorm.weight"][-1] = bad
    step = batch([np.array([1, 2], np.int32)], [2], [[0]], num_groups(spec))
    logits = load(variant, program, tensors, CACHE).step(step)
    assert np.isnan(logits).all(axis=1).all()
