"""One model gives the same bits whatever kernels this processor runs it with, and the bits that are written down here.

The hashes are of logits: whoever runs this on a processor of another make compares that processor with ours.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from programs import (
    MODELS,
    VARIANTS,
    batch,
    load,
    model_program,
    num_groups,
    random_codes,
    random_spec,
    random_tensors,
)

from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.formats import BF16, Format
from qwench.program.models import build_program
from qwench.program.passes import fuse, ordered_matrix, set_formats, set_orders
from qwench.targets.cpu.target import CpuTarget
from qwench.targets.target import CacheConfig, StepBatch

MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
FORMATS = [(BF16, "fp32"), (BF16, "bf16"), (Format("int8", 32), "int8"), (Format("int4", 64), "int8"),
           (Format("int8", 64), "int16"), (Format("int8", 128), "fp32"), (Format("int4", 32), "fp32")]  # fmt: skip
# Of checkpoints that were quantised elsewhere.
FOREIGN = [Format.parse(text) for text in (
    "int8/g32/fp16", "int4/g32/fp16", "int4/g32/fp16+min", "int8/g32/fp16+min", "int4/g32/nested+min",
    "int8/g32/nested+min", "int8/g32/nested", "int4/g128/fp16+zero", "int4/g128/bf16+zero", "int8/g64/fp16+zero",
    "int8/g16/nested", "int8/g16/nested+min", "int4/g64/fp32", "int8/g256/fp32+min")]  # fmt: skip
WHOLE_BLOCKS = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_heads": 4, "num_kv_heads": 2}
CACHES = ["fp32", "bf16", "int16", "int8"]

# Options -> sha256 of the packed weights, and for each cache of a prompt's logits and of those of 24 decode steps.
# They change only with the meaning of the numbers, and then docs/log.md says why.
GOLDEN: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "bf16": ("c6227904d5fe9d08", {
        "fp32": ("f545fca1dd84c43c", "3ccc09faea2b1f85"),
        "bf16": ("c4da71d992dfad43", "daa932d597f70f31"),
        "int16": ("37ada24d4ebca3f9", "0f24524d44ad6d65"),
        "int8": ("5797b42adcc4f655", "5550cb69c06179e3"),
    }),
    "bf16 bf16": ("c6227904d5fe9d08", {
        "fp32": ("759357680df3199a", "885cf7d7a1e2fc31"),
        "bf16": ("18a2e919b2350087", "ca8466a88937f9a7"),
        "int16": ("80d3879e2ac4285a", "8bb12d0e752afd15"),
        "int8": ("4c0989bd0ba545b6", "13597e949eaf02ee"),
    }),
    "int8": ("1915891d0410ac69", {
        "fp32": ("48fcf9536477c058", "0d0f10853f136d8c"),
        "bf16": ("a31bdd7044b422c5", "5c776c4ecd9e7b58"),
        "int16": ("13c54cdec585a119", "27a78a511a17af3e"),
        "int8": ("8670d875286fc035", "c18a3673ccc0d621"),
    }),
    "int4": ("d0badf12a8d8070e", {
        "fp32": ("8b4ce1b9a6ffac3e", "aed985eb318e0249"),
        "bf16": ("09a36f3580ee7382", "db65806c4157eadb"),
        "int16": ("6c744ef78953f61a", "8a726b94fe7082e5"),
        "int8": ("7bda11f618dbdf19", "f7ef22bf05727e0c"),
    }),
    "accuracy": ("02d7940e3fd2ed13", {
        "fp32": ("c87cc8c3ef9374b3", "314d6c405a08a55a"),
        "bf16": ("2a983eee8c03891c", "a446325c640bfe79"),
        "int16": ("f95ad415219b3b20", "a284f16023bf2701"),
        "int8": ("d93f84412dee0c85", "b6eea5569f7da4a6"),
    }),
}  # fmt: skip
# The cache beside which portable kernels compute them: each once, and what rounds queries too.
PORTABLE = {"bf16": "fp32", "bf16 bf16": "bf16", "int8": "int16", "int4": "int8", "accuracy": "bf16"}


@pytest.mark.parametrize(("fmt", "activations"), FORMATS, ids=str)
@pytest.mark.parametrize("cache_dtype", CACHES)
def test_all_variants_agree(fmt: Format, activations: str, cache_dtype: str) -> None:
    """Random models of each kind in odd shapes: a mixed batch, then one more token each."""
    for seed in range(4):
        rng = np.random.default_rng([seed, CACHES.index(cache_dtype)])
        spec = random_spec(rng, model_type=MODELS[seed % len(MODELS)])
        program = model_program(spec, fmt, activations)
        tensors = random_tensors(program, rng)
        rounds = activations == cache_dtype == "bf16"
        cache = CacheConfig(24, 16, cache_dtype, partition_len=64, rounds_queries=rounds)
        steps = [
            batch([rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in new], lengths,
                  [list(range(8)), [8, 9]], num_groups(spec))
            for new, lengths in (((70, 9), [70, 9]), ((1, 1), [71, 10]))
        ]  # fmt: skip
        first, *others = [run(load(variant, program, tensors, cache), steps) for variant in VARIANTS]
        assert np.isfinite(np.frombuffer(first, np.float32)).all()
        assert all(other == first for other in others), (seed, spec)


@pytest.mark.parametrize("activations", ["int8", "int16", "fp32"])
@pytest.mark.parametrize("fmt", FOREIGN, ids=str)
def test_all_variants_agree_about_what_was_quantised_elsewhere(fmt: Format, activations: str) -> None:
    rng = np.random.default_rng([FOREIGN.index(fmt), 9])
    spec = random_spec(rng, **(WHOLE_BLOCKS if fmt.scales == "nested" else {}))
    # Groups of 16 are for embedding and head, whose outputs no other product reads.
    inner = fmt if fmt.group_size >= 32 else Format("int8", 32)
    heads = ("model.embed_tokens.weight", "lm_head.weight")
    program = set_formats(fuse(build_program(spec)), lambda w: fmt if w.name in heads else inner, activations)
    tensors = random_tensors(program, rng)
    steps = [
        batch([rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in new], lengths, [list(range(8)), [8, 9]],
              num_groups(spec))
        for new, lengths in (((70, 9), [70, 9]), ((1, 1), [71, 10]))
    ]  # fmt: skip
    cache = CacheConfig(24, 16, "fp32", partition_len=64)
    first, *others = [run(load(variant, program, tensors, cache), steps) for variant in VARIANTS]
    assert np.isfinite(np.frombuffer(first, np.float32)).all()
    assert all(other == first for other in others), spec
    if activations == "fp32":
        expected = np.frombuffer(run(load("reference", program, tensors, cache), steps), np.float32)
        np.testing.assert_allclose(np.frombuffer(first, np.float32), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fmt", FOREIGN, ids=str)
def test_the_embedding_gives_back_the_very_values(fmt: Format) -> None:
    """Packed rows, read one by one, are those that the checkpoint's own formula gives."""
    rng = np.random.default_rng(5)
    matrix = random_codes(rng, fmt, (150, 256), 0.5)
    spec = random_spec(rng, **WHOLE_BLOCKS, vocab_size=150, tie_word_embeddings=True)
    program = model_program(spec, fmt, "fp32")
    tensors = {**random_tensors(program, rng), "model.embed_tokens.weight": matrix}
    for variant in VARIANTS:
        executor = load(variant, program, tensors, CacheConfig(8, 16, "fp32"))
        np.testing.assert_array_equal(executor.embed(np.arange(150, dtype=np.int32)), matrix.dequantize())


def run(executor, steps: list[StepBatch]) -> bytes:  # type: ignore[no-untyped-def]
    return b"".join(executor.step(step).tobytes() for step in steps)


@pytest.mark.parametrize(
    "options",
    [{"weights": "bf16"}, {"weights": "bf16", "activations": "bf16"}, {"weights": "int8"}, {"weights": "int4"},
     {"recipe": "accuracy"}],
    ids=lambda options: " ".join(options.values()),
)  # fmt: skip
def test_the_default_model_s_bits_are_those_of_every_machine(options: dict[str, str], tmp_path: Path) -> None:
    artifact = compile_checkpoint(MODEL, tmp_path / "a", QwenchConfig(**options))
    ids = np.random.default_rng(0).integers(0, artifact.program.spec.vocab_size, 200).astype(np.int32)
    steps = [
        batch([ids[:176]], [176], [list(range(7))]),
        *(batch([ids[i : i + 1]], [i + 1], [list(range(7))]) for i in range(176, 200)),
    ]
    golden_weights, golden = GOLDEN[" ".join(options.values())]
    for variant in VARIANTS:
        found = {}
        # Portable kernels take long; products don't know the cache, nor attention the weights: one cache each.
        for cache_dtype in [PORTABLE[" ".join(options.values())]] if variant == "generic" else CACHES:
            rounds = options.get("activations") == cache_dtype == "bf16"
            cache = CacheConfig(8, 32, cache_dtype, partition_len=64, rounds_queries=rounds)
            executor = CpuTarget("cpu", variant).load(artifact.program, artifact.plan, artifact.tensors, cache, 2)
            found[cache_dtype] = digest(run(executor, steps[:1])), digest(run(executor, steps[1:]))
            executor.close()
        weights = digest(b"".join(artifact.tensors[name].tobytes() for name in sorted(artifact.tensors)))
        assert weights == golden_weights and found == {cache: golden[cache] for cache in found}, variant


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.parametrize("activations", ["int8", "int16", "fp32"])
def test_inputs_in_an_order_of_their_own(activations: str) -> None:
    """Columns of every matrix in another order, and what is multiplied with them written so: the same products."""
    rng = np.random.default_rng(8)
    spec = random_spec(rng)
    fmt = Format("int4", 32, "fp16", "zero")
    program = set_formats(set_orders(fuse(build_program(spec)), lambda weight: True), lambda weight: fmt, activations)
    tensors = random_tensors(model_program(spec, fmt, activations), rng)
    orders = [w for w in program.weights.values() if ordered_matrix(w.sources[0]) is not None]
    for weight in orders:
        tensors[weight.sources[0]] = rng.permutation(weight.shape[0]).astype(np.float32)
    assert len(orders) == 4 * spec.num_layers + 1  # of norms, attention, and what down multiplies
    step = batch([rng.integers(0, spec.vocab_size, 20).astype(np.int32)], [20], [[0, 1]], num_groups(spec))
    cache = CacheConfig(8, 16, "fp32", partition_len=64)
    expected = load("reference", program, tensors, cache).step(step)
    first, *others = [run(load(variant, program, tensors, cache), [step]) for variant in VARIANTS]
    assert all(other == first for other in others)
    if activations == "fp32":
        got = np.frombuffer(first, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
