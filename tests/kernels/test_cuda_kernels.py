"""The cuda target's kernels, in Triton's interpreter, against the NumPy reference: small models of odd shapes in every
format, cache and kind of activation, and what only a whole step shows."""

from __future__ import annotations

import dataclasses
import weakref
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from programs import (
    Tensors,
    batch,
    linear_program,
    load,
    model_program,
    num_groups,
    random_spec,
    random_tensors,
)

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import TargetError
from qwench.formats import BF16, Format
from qwench.program.models import build_program
from qwench.program.ops import Program
from qwench.program.passes import set_formats
from qwench.targets.cuda.devices.device import NUMPY_DTYPES, Device, new_array
from qwench.targets.cuda.devices.interpreter import make_interpreter
from qwench.targets.cuda.launches import attention, products
from qwench.targets.cuda.memory.activations import Activation, Layout
from qwench.targets.cuda.memory.kv_cache import KvCache
from qwench.targets.cuda.step_arrays import StepUploader, host_arrays
from qwench.targets.target import LOGIT_GROUP, CacheConfig, StepBatch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
TARGET = "cuda-interpreter"
SMALL = {"hidden_size": 72, "intermediate_size": 88, "num_heads": 6, "num_kv_heads": 2, "vocab_size": 150}


def both(program: Program, tensors: Tensors, cache: CacheConfig, *steps: StepBatch) -> list[tuple[np.ndarray, ...]]:
    """Logits of each step, by the reference and by the kernels."""
    executors = [load(name, program, tensors, cache, tokens=160) for name in ("reference", TARGET)]
    return [tuple(executor.step(step).copy() for executor in executors) for step in steps]


def two_steps(rng: np.random.Generator, spec: ModelSpec, counts: tuple[int, ...]) -> tuple[StepBatch, StepBatch]:
    """Prompts of these lengths in scattered blocks, then one more token each."""
    groups, blocks = num_groups(spec), rng.permutation(24).tolist()
    tables = [blocks[6 * i : 6 * i + 6] for i in range(len(counts))]
    tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in counts]
    more = [rng.integers(0, spec.vocab_size, 1).astype(np.int32) for _ in counts]
    return batch(tokens, list(counts), tables, groups), batch(more, [n + 1 for n in counts], tables, groups)


@pytest.mark.parametrize(
    ("fmt", "activations", "cache"),
    [
        (BF16, "fp32", "fp32"), (BF16, "bf16", "bf16"), (Format("int8", 128), "int8", "bf16"),
        (Format("int4", 32), "int16", "int8"), (Format("int4", 128, "fp16", "zero"), "int8", "int8"),
        (Format("int8", 64, "fp32", "min"), "fp32", "int8"),
    ],
    ids=str,
)  # fmt: skip
def test_random_models(fmt: Format, activations: str, cache: str) -> None:
    """A mixed batch, then a step that is recorded and replayed; with a sliding window."""
    seed = zlib.crc32(f"{fmt} {activations} {cache}".encode())
    rng = np.random.default_rng(seed)
    model_type = ("qwen2", "qwen3")[seed % 2]
    spec = random_spec(rng, model_type=model_type, num_layers=1, sliding_windows=(5,), head_dim=18, **SMALL)
    program = model_program(spec, fmt, activations)
    rounds = activations == cache == "bf16"
    config = CacheConfig(24, 16, cache, partition_len=64, rounds_queries=rounds)
    steps = two_steps(rng, spec, (7, 1))
    for expected, got in both(program, random_tensors(program, rng, std=0.1), config, *steps):
        error = np.abs(got - expected).max() / expected.std()
        # What rounds values may round one that differs in the last bit of fp32 to the other side.
        assert error < (0.05 if activations != "fp32" or cache == "int8" else 3e-5), error
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("fmt", [BF16, Format("int8", 16), Format("int4", 256)], ids=str)
def test_products_over_several_parts_of_k(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """K is cut into parts, of which few tokens have their own programs and many share one; with the same bits."""
    rng = np.random.default_rng(3)
    program = linear_program(40, 1300, fmt, "int8" if fmt.is_quantized else "fp32")
    tensors, cache = random_tensors(program, rng), CacheConfig(2, 16, "fp32")
    step = batch([rng.integers(0, 40, 3).astype(np.int32)], [3], [[0]])
    ((expected, apart),) = both(program, tensors, cache, step)
    assert np.abs(apart - expected).max() < (0.05 if fmt.is_quantized else 1e-4 * expected.std())
    monkeypatch.setattr(products, "FEW_TOKENS", 1)
    np.testing.assert_array_equal(load(TARGET, program, tensors, cache).step(step), apart)


def test_nested_scales_and_minima() -> None:
    """As llama.cpp's K-quants have them."""
    rng = np.random.default_rng(4)
    fmt = Format("int4", 32, "nested", "min")
    program = linear_program(70, 512, fmt, "int8")
    ((expected, got),) = both(
        program, random_tensors(program, rng), CacheConfig(4, 16, "fp32"),
        batch([np.arange(5, dtype=np.int32)], [5], [[0]]),
    )  # fmt: skip
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("cache_dtype", ["fp32", "bf16"])
def test_attention_over_several_partitions(
    window: int | None, cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a softmax in fp64, and with the same bits whether partitions are computed apart or one after another, and
    for a token alone or behind others."""
    rng, length, width = np.random.default_rng(5), 150, SMALL["num_heads"] * 8
    spec = random_spec(
        rng, model_type="qwen2", **(SMALL | {"num_layers": 1, "head_dim": 8, "sliding_windows": (window,)})
    )
    device, program = make_interpreter(), model_program(spec, BF16)
    cache = KvCache(device, program, CacheConfig(12, 16, cache_dtype, partition_len=64))
    dtype, scale = NUMPY_DTYPES[cache.dtype], 8**-0.5
    content = rng.standard_normal((12, 2, 2, 16, cache.row)).astype(dtype)  # blocks, keys and values, heads, positions
    content[..., 8:] = 0
    device.upload(content.view(np.uint8).reshape(-1), cache.memory)
    table = rng.permutation(12)[:10]
    queries = rng.standard_normal((3, width), dtype=np.float32)
    keys, values = (
        content[table, part].astype(np.float64).transpose(1, 0, 2, 3).reshape(2, 160, -1)[:, :length, :8]
        for part in range(2)
    )

    def attend(first: int) -> np.ndarray:
        """The last tokens from `first` on, of three."""
        op = next(op for op in program.ops if op.kind == "attention")
        launcher = attention.Attention(device, spec, cache, 128)
        step = batch([np.zeros(3 - first, np.int32)], [length], [table.tolist()])
        arrays = StepUploader(device).upload(*host_arrays(step, 16, 1, launcher.tokens_per_tile, 1))
        q, out = (plain(device, queries[first:]) for _ in range(2))
        launcher.launch(op, arrays, arrays.table(0), out.values, q, None, out, None)
        result = np.empty((3 - first, width), np.float32)
        device.download(out.values, result)
        return result

    together = attend(0)
    for row, position in enumerate(range(length - 3, length)):
        for head, query in enumerate(queries[row].reshape(6, 8)):
            seen = slice(max(0, position + 1 - (window or length)), position + 1)
            weights = np.exp(keys[head // 3, seen] @ query * scale)
            expected = weights @ values[head // 3, seen] / weights.sum()
            np.testing.assert_allclose(together[row].reshape(6, 8)[head], expected, atol=2e-6)
    np.testing.assert_array_equal(attend(2), together[2:])
    monkeypatch.setattr(attention, "TARGET_PROGRAMS", 0)
    np.testing.assert_array_equal(attend(0), together)


def plain(device: Device, values: np.ndarray) -> Activation:
    array = new_array(device, values, "fp32")
    return Activation(Layout(values.shape[1], values.shape[1], "plain"), len(values), array, array, array)


def test_embeddings_hidden_states_and_maxima() -> None:
    rng = np.random.default_rng(6)
    spec = random_spec(rng, model_type="qwen2", num_layers=1, sliding_windows=(None,), head_dim=8, **SMALL)
    program = model_program(spec, Format("int8", 32))
    tensors = random_tensors(program, rng, std=0.1)
    step = batch([np.array([3, ~1, 7, ~0], np.int32)], [4], [[2]])
    step = dataclasses.replace(
        step, embeddings=rng.standard_normal((2, spec.hidden_size), dtype=np.float32),
        hidden_rows=np.array([1, 3], np.int32), logit_rows=np.array([2, 3], np.int32),
    )  # fmt: skip
    results = []
    for name in ("reference", TARGET):
        executor = load(name, program, tensors, CacheConfig(4, 16, "fp32"))
        hidden = np.zeros((2, 2, spec.hidden_size), np.float32)
        maxima = np.zeros((2, -(-spec.vocab_size // LOGIT_GROUP)), np.float32)
        logits = executor.step(step, hidden=hidden, maxima=maxima)
        starts = np.arange(0, spec.vocab_size, LOGIT_GROUP)
        np.testing.assert_array_equal(maxima, np.maximum.reduceat(logits, starts, axis=1))
        if name == TARGET:
            greedy = np.full_like(logits, -7)
            one_group = np.ones(2, np.int32)
            executor.step(dataclasses.replace(step, top_groups=one_group), greedy, maxima=maxima.copy())
            for row, best in zip(greedy, logits):
                start = int(best.argmax()) // LOGIT_GROUP * LOGIT_GROUP
                np.testing.assert_array_equal(row[start : start + LOGIT_GROUP], best[start : start + LOGIT_GROUP])
                assert (row == -7).sum() == len(row) - len(row[start : start + LOGIT_GROUP])
        results.append((logits, hidden, executor.embed(np.array([5, 0], np.int32))))
    for expected, got in zip(*results):
        np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("fmt", [BF16, Format("int4", 32)], ids=str)
def test_nan_reaches_the_logits(fmt: Format) -> None:
    spec = random_spec(np.random.default_rng(7), model_type="qwen2", num_layers=1, sliding_windows=(None,), **SMALL)
    program = model_program(spec, fmt)
    tensors = random_tensors(program, np.random.default_rng(8))
    tensors["model.layers.0.input_layernorm.weight"][-1] = np.nan
    maxima = np.zeros((2, 3), np.float32)
    step = batch([np.array([1, 2], np.int32)], [2], [[0]])
    logits = load(TARGET, program, tensors, CacheConfig(4, 16, "fp32")).step(step, maxima=maxima)
    assert np.isnan(logits).all()
    assert np.isnan(maxima).all()


def test_blocks_are_copied_read_and_written() -> None:
    rng = np.random.default_rng(9)
    spec = random_spec(rng, model_type="qwen2", num_layers=1, sliding_windows=(None,), **SMALL)
    program = model_program(spec, BF16)
    executor = load(TARGET, program, random_tensors(program, rng), CacheConfig(4, 16, "int8"))
    executor.step(batch([np.arange(10, dtype=np.int32)], [10], [[1]]))
    data = executor.read_block(1)
    assert len(data) == CacheConfig(4, 16, "int8").block_bytes(program)
    assert data.any()
    executor.copy_blocks([1], [3])
    np.testing.assert_array_equal(executor.read_block(3), data)
    executor.write_block(2, data[::-1])
    np.testing.assert_array_equal(executor.read_block(2), data[::-1])
    memory = weakref.ref(executor._cache.memory.memory)  # type: ignore[attr-defined]
    executor.close()
    executor.close()
    assert memory() is None


def test_ops_without_a_kernel_are_refused() -> None:
    spec = random_spec(np.random.default_rng(1), model_type="qwen3", num_layers=1, sliding_windows=(None,))
    program = set_formats(build_program(spec), lambda weight: BF16, "fp32")
    with pytest.raises(TargetError, match=r"no kernel for op layers.0.q_norm of kind head_norm"):
        load(TARGET, program, random_tensors(program, np.random.default_rng(1)), CacheConfig(4, 16, "fp32"))
