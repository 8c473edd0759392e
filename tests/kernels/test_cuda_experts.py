"""The cuda target's mixtures of experts, in Triton's interpreter: choices, sorting and products by themselves, against
NumPy, then whole mixtures of every format beside the reference."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from programs import batch, load, model_program, random_spec, random_tensors

from qwench.checkpoint.experts import ExpertsSpec
from qwench.errors import TargetError
from qwench.formats import BF16, Format, round_to_bf16
from qwench.program.models import build_program
from qwench.program.ops import Program
from qwench.program.passes import fuse, set_formats
from qwench.targets.cuda.devices.device import DeviceArray, new_array
from qwench.targets.cuda.devices.interpreter import Interpreter, make_interpreter
from qwench.targets.cuda.launches import experts
from qwench.targets.cuda.launches.experts import Experts, most_tiles
from qwench.targets.cuda.launches.products import Products
from qwench.targets.cuda.memory.activations import Activation, Layout
from qwench.targets.cuda.memory.weights import DeviceMatrix
from qwench.targets.target import CacheConfig

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
TARGET = "cuda-interpreter"
CACHE = CacheConfig(4, 16, "fp32")


@pytest.fixture(scope="module")
def device() -> Interpreter:
    return make_interpreter()


def downloaded(device: Interpreter, array: DeviceArray, dtype: Any, *shape: int) -> np.ndarray:
    values = np.empty(shape or array.shape, dtype)
    device.download(array.part(0, *values.shape), values)
    return values


def random_choices(rng: np.random.Generator, num_tokens: int, num_experts: int, top_k: int) -> np.ndarray:
    """[num_tokens, top_k], in order; some experts are liked by most and others by nobody."""
    likings = rng.standard_normal(num_experts) * 2 + rng.gumbel(size=(num_tokens, num_experts))
    return np.sort(np.argsort(-likings, axis=1)[:, :top_k], axis=1)


# ---- the router's choice


def routes_of(
    device: Interpreter, scores: np.ndarray, top_k: int, normalizes: bool, has_shared: bool, positions: np.ndarray
) -> np.ndarray:
    """scores: [parts of K, tokens, experts and the shared one's gate]."""
    from qwench.targets.cuda.kernels.experts import route

    splits, count, rows = scores.shape
    routes = device.zeros("fp32", count, 2 * top_k + has_shared)
    device.launch(
        route, (count, 1, 1), partial=new_array(device, scores, "fp32"), routes=routes, partial_rows=count,
        positions=new_array(device, positions, "i32"), PARTIAL_WIDTH=rows, SPLITS=splits,
        NUM_EXPERTS=rows - has_shared, TOP_K=top_k, HAS_SHARED=has_shared, NORMALIZES=normalizes,
        WIDTH=routes.shape[1], BLOCK=max(16, 1 << (rows - 1).bit_length()),
    )  # fmt: skip
    return downloaded(device, routes, np.float32)


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (2, 1), (5, 5), (16, 3), (33, 8), (64, 8), (64, 1)])
def test_choices(num_experts: int, top_k: int, device: Interpreter) -> None:
    """Beside a softmax in fp64. With whole numbers as scores, many are equal: of those the first are chosen."""
    rng = np.random.default_rng(num_experts + top_k)
    normalizes, has_shared = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    scores = rng.integers(-3, 4, (2, 6, num_experts + has_shared)).astype(np.float32)
    got = routes_of(device, scores, top_k, normalizes, has_shared, np.array([0, 9, 3, -1, 1, 2]))
    summed = scores.astype(np.float64).sum(axis=0)
    of_experts = summed[:, :num_experts]
    chosen = np.sort(np.argsort(-of_experts, axis=1, kind="stable")[:, :top_k], axis=1)
    weights = np.exp(of_experts - of_experts.max(axis=1, keepdims=True))
    kept = np.take_along_axis(weights, chosen, axis=1)
    kept /= (kept if normalizes else weights).sum(axis=1, keepdims=True)
    chosen[3] = num_experts  # a token that only fills up the batch chooses nobody
    np.testing.assert_array_equal(got[:, :top_k], chosen)
    np.testing.assert_allclose(got[:, top_k : 2 * top_k], kept, rtol=1e-6)
    if has_shared:
        np.testing.assert_allclose(got[:, -1], 1 / (1 + np.exp(-summed[:, -1])), rtol=1e-6)


@pytest.mark.parametrize("normalizes", [False, True])
def test_a_broken_score_breaks_all_weights(normalizes: bool, device: Interpreter) -> None:
    """And the choice stays one of experts that there are."""
    scores = np.array([[[1, np.nan, 3, 2], [np.nan] * 4, [np.inf, 0, 0, 0], [-np.inf, 0, 0, 0]]], np.float32)
    routes = routes_of(device, scores, 2, normalizes, False, np.zeros(4, np.int32))
    np.testing.assert_array_equal(routes[:, :2], [[2, 3], [0, 1], [0, 1], [1, 2]])
    assert np.isnan(routes[:2, 2:]).all() and np.isnan(routes[2, 2:]).any()
    np.testing.assert_allclose(routes[3, 2:], [0.5, 0.5] if normalizes else [1 / 3, 1 / 3], rtol=1e-6)


# ---- sorting


def sorted_experts(device: Interpreter, choices: np.ndarray, spec: ExpertsSpec) -> tuple[Experts, np.ndarray]:
    """What sorts, after it did, and the order."""
    num_tokens, width = len(choices), spec.routes_width
    values = np.zeros((num_tokens, width), np.float32)
    values[:, : spec.top_k] = choices
    array = new_array(device, values, "fp32")
    routes = Activation(Layout(width, width, "plain"), num_tokens, array, array, array)
    matrix = DeviceMatrix(BF16, 128, 128, array, num_experts=spec.num_experts, top_k=spec.top_k)
    launcher = Experts(device, spec, Products(device, [matrix], num_tokens), num_tokens)
    launcher.sort(routes, num_tokens)
    return launcher, downloaded(device, launcher._order, np.int32)


@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 1, 1), (1, 64, 8), (9, 5, 5), (40, 7, 2),
                                                                  (130, 16, 8)])  # fmt: skip
def test_rows_are_sorted_by_expert(num_tokens: int, num_experts: int, top_k: int, device: Interpreter) -> None:
    """As a stable sort, those of nobody left out; more rows than a program sorts at once among them."""
    choices = random_choices(np.random.default_rng(num_tokens), num_tokens, num_experts, top_k)
    choices[num_tokens // 2 + 1 :: 5] = num_experts
    launcher, order = sorted_experts(device, choices, ExpertsSpec(num_experts, top_k, 8, 1, False, (0,)))
    rows = choices.ravel()
    starts = np.searchsorted(np.sort(rows), np.arange(num_experts + 1))
    np.testing.assert_array_equal(downloaded(device, launcher._starts, np.int32), starts)
    np.testing.assert_array_equal(order[: starts[-1]], np.argsort(rows, kind="stable")[: starts[-1]])


def test_tiles_suffice_for_every_choice() -> None:
    """And the worst choice takes them all."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        num_experts, tile = int(rng.integers(1, 65)), int(rng.choice([16, 32, 64, 128]))
        counts = rng.integers(0, 1 + int(rng.choice([1, 5, 300])), num_experts)
        assert most_tiles(int(counts.sum()), num_experts, tile) >= (-(-counts // tile)).sum()
        worst = np.ones(num_experts, int)
        worst[0] += tile * int(rng.integers(0, 4))
        assert most_tiles(int(worst.sum()), num_experts, tile) == (-(-worst // tile)).sum()


# ---- products


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "is_routed"),
    [(1, 64, 8, False), (3, 1, 1, True), (20, 6, 2, True), (60, 3, 2, False)],
)
def test_products_read_the_matrices_of_the_chosen(
    num_tokens: int, num_experts: int, top_k: int, is_routed: bool, device: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64; matrices that nobody chose are NaN. Parts of K apart or in one program, wide tiles or narrow, in another
    crowd: the same bits."""
    rng, n, k = np.random.default_rng(num_tokens), 70, 1024
    spec = ExpertsSpec(num_experts, top_k, k, 0, False, (0,))
    choices = random_choices(rng, num_tokens, num_experts, top_k)
    weights, chosen = np.full((num_experts, n, k), np.nan, np.float32), np.unique(choices)
    weights[chosen] = round_to_bf16(rng.standard_normal((len(chosen), n, k), dtype=np.float32))
    stack = new_array(device, np.pad(weights, ((0, 0), (0, 128 - n), (0, 0))), "bf16")
    matrix = DeviceMatrix(BF16, n, k, stack, num_experts=num_experts, top_k=top_k)
    assert matrix.num_splits == 2
    x = round_to_bf16(rng.standard_normal((num_tokens * (top_k if is_routed else 1), k), dtype=np.float32))

    def products(first: int) -> np.ndarray:
        """Of the tokens from `first` on: [tokens * top_k, n]."""
        used = x[first * (top_k if is_routed else 1) :]
        array = new_array(device, used, "bf16")
        launcher, _ = sorted_experts(device, choices[first:], spec)
        count = num_tokens - first
        launcher._products = Products(device, [matrix], count)
        activation = Activation(Layout(k, k, "floats"), len(used), array, array, array)
        partial = launcher.product(activation, matrix, count, 1 if is_routed else top_k)
        shape = partial.splits, partial.num_rows, partial.width
        return downloaded(device, partial.sums, np.float32, *shape).sum(axis=0)[:, :n]

    got = products(0)
    rows = x if is_routed else np.repeat(x, top_k, axis=0)
    expected = np.einsum("rnk,rk->rn", weights[choices.ravel()].astype(np.float64), rows)
    np.testing.assert_allclose(got, expected, atol=1e-3)
    np.testing.assert_array_equal(products(num_tokens - 1), got[-top_k:])
    monkeypatch.setattr(experts, "FEW_TOKENS", 0)
    np.testing.assert_array_equal(products(0), got)


# ---- whole mixtures


def mixture_program(rng: np.random.Generator, fmt: Format, activations: str, has_shared: bool, **fixed: Any) -> Program:
    """Embedding, mixture, head: a layer without its attention, so that a token's logits are its own alone."""
    spec = random_spec(
        rng, model_type="qwen2_moe" if has_shared else "qwen3_moe", num_layers=1, sliding_windows=(None,),
        hidden_size=40, vocab_size=50, num_heads=1, num_kv_heads=1, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    chosen = ExpertsSpec(5, 2, 24, 36 if has_shared else 0, bool(rng.random() < 0.5), (0,))
    spec = dataclasses.replace(spec, experts=dataclasses.replace(chosen, **fixed))
    return without_attention(model_program(spec, fmt, activations))


def without_attention(program: Program) -> Program:
    of_attention = ("layers.0.att", "layers.0.q_rope")  # its norm and residual sum among them
    ops = [
        dataclasses.replace(op, inputs=tuple("embed" if name == "layers.0.attn_add" else name for name in op.inputs))
        for op in program.ops
        if not op.name.startswith(of_attention)
    ]
    used = {name for op in ops for name in op.weights}
    return dataclasses.replace(
        program, ops=tuple(ops), weights={name: w for name, w in program.weights.items() if name in used}
    )


@pytest.mark.parametrize(
    ("fmt", "activations", "has_shared"),
    [
        (BF16, "bf16", False), (Format("int8", 128), "int8", True), (Format("int4", 64, "fp16", "zero"), "int16", True),
        (Format("int4", 256, "fp32", "min"), "fp32", False),
    ],
    ids=str,
)  # fmt: skip
def test_mixtures(fmt: Format, activations: str, has_shared: bool) -> None:
    """Beside the reference; then a token alone, which has the same bits."""
    rng = np.random.default_rng(fmt.group_size + len(activations))
    program = mixture_program(rng, fmt, activations, has_shared)
    tensors, ids = random_tensors(program, rng, std=0.1), rng.integers(0, 50, 5).astype(np.int32)
    reference, executor = (load(name, program, tensors, CACHE) for name in ("reference", TARGET))
    expected, got = (each.step(batch([ids], [5], [[0]])).copy() for each in (reference, executor))
    assert np.abs(got - expected).max() / expected.std() < (3e-5 if activations == "fp32" else 0.05)
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.99999
    np.testing.assert_array_equal(executor.step(batch([ids[2:3]], [1], [[0]])), got[2:3])


# ---- what is refused


def refused(program: Program, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load(TARGET, program, random_tensors(program, np.random.default_rng(1)), CACHE)


def test_experts_of_several_formats_are_refused() -> None:
    rng = np.random.default_rng(1)
    spec = mixture_program(rng, BF16, "fp32", has_shared=True).spec
    program = fuse(build_program(spec))

    def of_experts(weight: Any) -> Format:
        return Format("int4" if ".experts.3." in weight.name else "int8", 32)

    refused(set_formats(program, of_experts, "int8"), r"silu_mul are stored as int4/g32 and int8/g32; .*--target cpu")

    def of_shared(weight: Any) -> Format:
        return Format("int4", 64 if ".shared" in weight.name else 32, "fp16", "min")

    refused(set_formats(program, of_shared, "fp32"), r"mlp_norm is multiplied with .* in groups of 32 and 64")
