"""LoRA adapters beside the cuda target's weights, in Triton's interpreter: the reference's meaning, and bits that
depend on a row's own adapter alone."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import batch, linear_program, load, model_program, random_spec, random_tensors, reordered
from test_lora_products import random_adapter, with_adapters

from qwench.checkpoint.spec import EMBEDDING, HEAD
from qwench.errors import CapacityError, TargetError
from qwench.formats import BF16, Format
from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.program.ops import Program
from qwench.targets.cuda.adapters import adapter_tiles, lora
from qwench.targets.cuda.devices.interpreter import Interpreter
from qwench.targets.cuda.launches import products
from qwench.targets.target import CacheConfig, StepBatch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
TARGET = "cuda-interpreter"
SMALL: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 40, "intermediate_size": 72, "num_heads": 5, "num_kv_heads": 1,
    "head_dim": 18, "vocab_size": 70, "num_layers": 1, "sliding_windows": (None,),
}  # fmt: skip
CACHE = CacheConfig(12, 16, "fp32")


def head_adapter(program: Program, rng: np.random.Generator, rank: int) -> LoraAdapter:
    n, k = program.weights["w"].shape
    a, b = rng.standard_normal((rank, k), np.float32), rng.standard_normal((n, rank), np.float32)
    return LoraAdapter({HEAD: LoraPair(a, b, float(rng.random()))})


def rows_of(rng: np.random.Generator, counts: list[int], vocab_size: int) -> StepBatch:
    """Prompts of these lengths, all of whose logits are wanted."""
    tokens = [rng.integers(0, vocab_size, n).astype(np.int32) for n in counts]
    return batch(tokens, counts, [[i] for i in range(len(counts))])


@pytest.mark.parametrize(
    ("fmt", "activations"),
    [(BF16, "fp32"), (BF16, "bf16"), (Format("int8", 64), "int8"), (Format("int4", 32), "int16")],
    ids=str,
)
def test_products_are_the_references(fmt: Format, activations: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of ranks that don't divide, over several parts of K and of the product's, in one batch."""
    monkeypatch.setattr(lora, "LEAST_SPLIT", 128)
    rng = np.random.default_rng(2)
    program = linear_program(70, 300, fmt, activations)
    tensors, adapters = random_tensors(program, rng), [head_adapter(program, rng, rank) for rank in (1, 8, 17)]
    step = with_adapters(rows_of(rng, [2, 1, 1, 1], 70), [2, -1, 0, 1])
    results, plain = [], load(TARGET, program, tensors, CACHE).step(with_adapters(step, None))
    for name in ("reference", TARGET):
        executor = load(name, program, tensors, CACHE)
        for number, adapter in enumerate(adapters):
            executor.set_adapter(number, adapter)
        results.append(executor.step(step).copy())
    expected, got = results
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(got[2], plain[2])
    assert (np.abs(got - plain).max(axis=1) > 0.1).sum() == 4


def test_a_model_s_matrices_of_several_sources() -> None:
    """Steps of one token, which are recorded once, whatever adapters their rows have and is loaded meanwhile."""
    rng = np.random.default_rng(3)
    program = model_program(random_spec(rng, **SMALL), BF16, "fp32")
    tensors, ids = random_tensors(program, rng), rng.integers(0, 70, (3, 1)).astype(np.int32)
    executors = [load(name, program, tensors, CACHE) for name in ("reference", TARGET)]
    first, second, third = (random_adapter(program, rng, *of) for of in ((0.5, 17), (1.0, 9), (0.8, 3)))
    loads = ({0: first, 1: second}, {}, {0: third})
    for i, (adapters, numbers) in enumerate(zip(loads, ([1, -1, 0], [0, 1, -1], [0, 0, 1]), strict=True)):
        for number, adapter in adapters.items():
            for executor in executors:
                executor.set_adapter(number, adapter)
        step = with_adapters(batch(list(ids), [i + 1] * 3, [[0], [1], [2]]), numbers)
        expected, got = (executor.step(step).copy() for executor in executors)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
        assert len(executors[1]._recorded) == 1  # type: ignore[attr-defined]


def test_bits_depend_on_a_row_s_own_adapter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its neighbours', on how wide tiles are, on whether products are folded, on what is loaded beside."""
    monkeypatch.setattr(lora, "LEAST_SPLIT", 128)
    rng = np.random.default_rng(5)
    program = linear_program(70, 200, BF16, "bf16")
    executor = load(TARGET, program, random_tensors(program, rng), CACHE)
    ids, numbers = rng.integers(0, 70, 21).astype(np.int32), [0, 1, -1, 0] + 17 * [1]
    together = batch([ids[i : i + 1] for i in range(4)], [1] * 4, [[i] for i in range(4)])
    plain, alone = executor.step(together).copy(), {}
    for number, rank in enumerate((4, 17)):
        executor.set_adapter(number, head_adapter(program, rng, rank))
        for row in (row for row in (0, 1, 3, 20) if numbers[row] == number):
            step = batch([ids[row : row + 1]], [1], [[row // 4]])
            alone[row] = executor.step(with_adapters(step, [number]))[0].copy()
    alone[2] = plain[2]

    def check(found: np.ndarray) -> None:
        for row in (row for row in alone if row < len(found)):
            np.testing.assert_array_equal(found[row], alone[row])

    check(executor.step(with_adapters(together, numbers[:4])))
    monkeypatch.setattr(products, "FEW_TOKENS", 1)
    check(executor.step(with_adapters(together, numbers[:4])))
    parts = [*(ids[i : i + 1] for i in range(4)), ids[4:]]
    crowd = batch(parts, [1, 1, 1, 1, 17], [[0], [1], [2], [3], [4, 5]])
    check(executor.step(with_adapters(crowd, numbers[:5])))
    monkeypatch.setattr(adapter_tiles, "FEW_ROWS", 1)
    check(executor.step(with_adapters(crowd, numbers[:5])))
    executor.set_adapter(1, None)
    alone[1] = plain[1]
    check(executor.step(with_adapters(together, [0, -1, -1, 0])))
    np.testing.assert_array_equal(executor.step(together), plain)


def test_adapters_of_matrices_whose_inputs_are_in_another_order() -> None:
    rng = np.random.default_rng(8)
    plain = model_program(random_spec(rng, **SMALL, tie_word_embeddings=False), BF16, "fp32")
    tensors = random_tensors(plain, rng)
    program, moved = reordered(plain, tensors, rng)
    adapter = random_adapter(plain, rng, share=1.0, max_rank=9)
    results = []
    for name, case in (("reference", (plain, tensors)), (TARGET, (program, moved))):
        executor = load(name, *case, CACHE)
        executor.set_adapter(0, adapter)
        results.append(executor.step(with_adapters(rows_of(np.random.default_rng(0), [3], 70), [0])))
    np.testing.assert_allclose(*results, rtol=2e-3, atol=2e-3)


def test_what_does_not_fit_is_refused_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    program = linear_program(70, 100, BF16, "bf16")
    executor = load(TARGET, program, random_tensors(program, rng), CACHE)
    step = with_adapters(rows_of(rng, [1, 1], 70), [0, -1])
    for wrong in (0, -2, 7):
        with pytest.raises(ValueError, match="no adapter of that number"):
            executor.step(with_adapters(step, [wrong, -1]))
    executor.set_adapter(0, head_adapter(program, rng, 8))
    before = executor.step(step).copy()
    pair = LoraPair(np.ones((2, 100), np.float32), np.ones((70, 2), np.float32), 1.0)
    with pytest.raises(TargetError, match=r"embed_tokens\.weight, which isn't multiplied"):
        executor.set_adapter(0, LoraAdapter({HEAD: pair, EMBEDDING: pair}))
    zeros = Interpreter.zeros

    def too_small(self: Interpreter, dtype: str, *shape: int) -> Any:
        if np.prod(shape) > 30_000:
            raise CapacityError("the device has too little memory")
        return zeros(self, dtype, *shape)

    monkeypatch.setattr(Interpreter, "zeros", too_small)
    with pytest.raises(CapacityError, match="too little memory"):
        executor.set_adapter(0, head_adapter(program, rng, 250))
    np.testing.assert_array_equal(executor.step(step), before)
    executor.set_adapter(0, None)
    executor.set_adapter(0, None)
    with pytest.raises(ValueError, match="no adapter of that number"):
        executor.step(step)


@given(st.lists(st.integers(-1, 40), min_size=1, max_size=300), st.integers(1, 300))
def test_tiles_have_each_row_once(numbers: list[int], num_seqs: int) -> None:
    of_row = np.array(numbers, np.int32)
    num_seqs = max(num_seqs, len(set(numbers)))
    rows, tiles = adapter_tiles.adapter_tiles(of_row, num_seqs)
    found = [(int(row), int(slot) - 1) for slot, first, count in tiles for row in rows[first : first + count]]
    assert sorted(found) == list(enumerate(numbers))
    assert tiles[:, 2].max() <= adapter_tiles.tile_width(len(of_row))
    if len(set(numbers)) <= adapter_tiles.FEWEST_GROUPS:  # as many as for other numbers
        assert len(tiles) == len(adapter_tiles.adapter_tiles(np.zeros_like(of_row), num_seqs)[1])


def test_a_mixture_s_attention_and_shared_expert_have_adapters() -> None:
    """Beside rows without one; the shared expert's weight counts for what the adapter adds, too."""
    rng = np.random.default_rng(9)
    program = model_program(random_spec(rng, **(SMALL | {"model_type": "qwen2_moe"})), BF16, "fp32")
    tensors, whole = random_tensors(program, rng, std=0.1), random_adapter(program, rng, share=1.0, max_rank=9)
    pairs = {name: pair for name, pair in whole.pairs.items() if "self_attn" in name or "shared_expert." in name}
    assert len(pairs) == 7
    step, results = with_adapters(rows_of(rng, [1, 1], 70), [0, -1]), []
    for name in ("reference", TARGET):
        executor = load(name, program, tensors, CACHE)
        executor.set_adapter(0, LoraAdapter(pairs))
        results.append(executor.step(step).copy())
    np.testing.assert_allclose(*results, atol=1e-5 * np.abs(results[0]).max())
    with pytest.raises(TargetError, match="an expert's"):
        executor.set_adapter(0, whole)
