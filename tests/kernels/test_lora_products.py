"""LoRA adapters beside the weights: the reference's meaning, the same bits on every kernel, in every batch."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from programs import VARIANTS, Tensors, batch, load, model_program, num_groups, random_spec, random_tensors, reordered

from qwench.checkpoint.spec import EMBEDDING, HEAD
from qwench.errors import TargetError
from qwench.formats import BF16, Format
from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.program.models import adaptable_shapes
from qwench.program.ops import Program
from qwench.targets.target import CacheConfig, StepBatch

FORMATS = [(BF16, "fp32"), (BF16, "bf16"), (Format("int8", 32), "int8"), (Format("int4", 64), "int8"),
           (Format("int8", 64), "int16"), (Format("int4", 128), "fp32")]  # fmt: skip
CACHE = CacheConfig(24, 16, "fp32", partition_len=64)


def random_adapter(
    program: Program, rng: np.random.Generator, share: float = 0.7, max_rank: int = 40, std: float = 0.3
) -> LoraAdapter:
    """Pairs of random ranks for some of the matrices."""
    pairs = {}
    for name, shape in adaptable_shapes(program.spec).items():
        if name == EMBEDDING or rng.random() > share:
            continue
        rank = int(rng.integers(1, max_rank))
        a = rng.standard_normal((rank, shape[1]), np.float32) * std
        pairs[name] = LoraPair(a, rng.standard_normal((shape[0], rank), np.float32) * std, float(rng.random()))
    return LoraAdapter(pairs)


def steps_of(rng: np.random.Generator, program: Program, adapters: list[int] | None) -> list[StepBatch]:
    """A mixed batch of three sequences, then one more token each."""
    spec, result = program.spec, []
    for new, lengths in (((70, 9, 1), [70, 9, 1]), ((1, 1, 1), [71, 10, 2])):
        tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in new]
        step = batch(tokens, lengths, [list(range(8)), [8, 9], [10]], num_groups(spec))
        result.append(with_adapters(step, adapters))
    return result


def with_adapters(step: StepBatch, adapters: list[int] | None) -> StepBatch:
    return dataclasses.replace(step, adapters=None if adapters is None else np.array(adapters, np.int32))


def run(
    target: str, program: Program, tensors: Tensors, adapters: list[LoraAdapter], steps: list[StepBatch]
) -> npt.NDArray[np.float32]:
    executor = load(target, program, tensors, CACHE)
    for number, adapter in enumerate(adapters):
        executor.set_adapter(number, adapter)
    return np.concatenate([executor.step(step).copy() for step in steps])


@pytest.mark.parametrize(("fmt", "activations"), FORMATS, ids=str)
def test_all_kernels_agree_with_each_other_and_with_the_reference(fmt: Format, activations: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng([seed, 3])
        program = model_program(random_spec(rng), fmt, activations)
        tensors = random_tensors(program, rng)
        adapters = [random_adapter(program, rng), random_adapter(program, rng, share=1.0)]
        steps = steps_of(rng, program, [1, -1, 0])
        first, *others = [run(variant, program, tensors, adapters, steps) for variant in VARIANTS]
        assert np.isfinite(first).all()
        assert all(other.tobytes() == first.tobytes() for other in others), seed
        expected = run("reference", program, tensors, adapters, steps)
        base = run("reference", program, tensors, [], [with_adapters(step, None) for step in steps])
        error, change = np.abs(first - expected).max(), np.abs(base - expected).max()
        # Where activations are rounded, a last bit makes another integer now and then.
        assert error < (1e-4 if activations == "fp32" else 1e-1) * change, seed


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("fmt", "activations"), FORMATS, ids=str)
def test_an_answer_s_bits_depend_on_its_own_adapter_alone(variant: str, fmt: Format, activations: str) -> None:
    rng = np.random.default_rng(5)
    spec = random_spec(rng, sliding_windows=(None,), num_layers=1)
    program = model_program(spec, fmt, activations)
    tensors = random_tensors(program, rng)
    executor = load(variant, program, tensors, CACHE)
    tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in (30, 5, 1, 17, 2, 1)]
    tables, numbers = [[0, 1], [2], [3], [4, 5], [6], [7]], [0, 2, -1, 0, 1, 2]
    together = batch(tokens, [len(t) for t in tokens], tables)
    plain = executor.step(together).copy()
    for number in range(3):
        executor.set_adapter(number, random_adapter(program, rng, share=0.8))
    found = executor.step(with_adapters(together, numbers)).copy()
    starts = together.query_start
    for s, (ids, table, number) in enumerate(zip(tokens, tables, numbers, strict=True)):
        alone = executor.step(with_adapters(batch([ids], [len(ids)], [table]), [number])).copy()
        rows = found[starts[s] : starts[s + 1]]
        assert rows.tobytes() == alone.tobytes(), s
        assert (rows.tobytes() == plain[starts[s] : starts[s + 1]].tobytes()) == (number < 0), s
    executor.set_adapter(1, None)
    again = executor.step(with_adapters(together, numbers))
    assert again[starts[4] : starts[5]].tobytes() == plain[starts[4] : starts[5]].tobytes()
    assert again[: starts[4]].tobytes() == found[: starts[4]].tobytes()


@pytest.mark.parametrize("rank", [1, 8, 16, 64, 256])
def test_adapters_apart_and_merged_are_the_same_model(rank: int) -> None:
    """fp32 throughout; what differs is where bf16 rounds the merged weights."""
    rng = np.random.default_rng(rank)
    program = model_program(random_spec(rng, tie_word_embeddings=False), BF16, "fp32")
    tensors = random_tensors(program, rng)
    pairs, merged = {}, dict(tensors)
    for name in tensors:
        if name.endswith("_proj.weight"):
            n, k = tensors[name].shape
            # Few values of few bits: sums are exact, and bf16 holds W + B A.
            a, b = rng.integers(-1, 2, (rank, k)), np.zeros((n, rank), np.float32)
            b[np.arange(n), rng.integers(0, rank, n)] = 1
            pairs[name] = LoraPair(a.astype(np.float32), b, 0.5)
            rounded = rng.integers(-4, 5, (n, k)).astype(np.float32) / 8
            tensors[name] = rounded.astype(ml_dtypes.bfloat16)
            merged[name] = (rounded + pairs[name].delta()).astype(ml_dtypes.bfloat16)
    steps = steps_of(rng, program, [0, 0, 0])
    plain = [with_adapters(step, None) for step in steps]
    for target in (*VARIANTS, "reference"):
        apart = run(target, program, tensors, [LoraAdapter(pairs)], steps)
        np.testing.assert_allclose(apart, run(target, program, merged, [], plain), rtol=2e-3, atol=2e-3)


def test_adapters_of_matrices_whose_inputs_are_in_another_order() -> None:
    """The same model with the columns of every matrix elsewhere, as desc_act leaves them: the same logits."""
    rng = np.random.default_rng(8)
    spec = random_spec(rng, tie_word_embeddings=False)
    plain = model_program(spec, BF16, "fp32")
    tensors = random_tensors(plain, rng)
    program, moved = reordered(plain, tensors, rng)
    adapter, steps = random_adapter(plain, rng, share=1.0), steps_of(rng, plain, [0, -1, 0])
    for target in (*VARIANTS, "reference"):
        expected = run(target, plain, tensors, [adapter], steps)
        np.testing.assert_allclose(run(target, program, moved, [adapter], steps), expected, rtol=2e-3, atol=2e-3)


def test_what_is_not_multiplied_has_no_adapter_beside_it() -> None:
    rng = np.random.default_rng(0)
    program = model_program(random_spec(rng), BF16)
    shape = (program.spec.vocab_size, program.spec.hidden_size)
    pair = LoraPair(np.ones((2, shape[1]), np.float32), np.ones((shape[0], 2), np.float32), 1.0)
    for target in (VARIANTS[0], "reference"):
        executor = load(target, program, random_tensors(program, rng), CACHE)
        executor.set_adapter(0, LoraAdapter({HEAD: pair}))
        with pytest.raises(TargetError, match=r"embed_tokens\.weight, which isn't multiplied"):
            executor.set_adapter(0, LoraAdapter({HEAD: pair, EMBEDDING: pair}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_number_without_an_adapter_is_refused(variant: str) -> None:
    rng = np.random.default_rng(0)
    program = model_program(random_spec(rng), BF16)
    executor = load(variant, program, random_tensors(program, rng), CACHE)
    step = batch([np.zeros(1, np.int32)], [1], [[0]], num_groups(program.spec))
    for wrong in (0, -2, 7):
        with pytest.raises(ValueError, match="no adapter of that number"):
            executor.step(with_adapters(step, [wrong]))
