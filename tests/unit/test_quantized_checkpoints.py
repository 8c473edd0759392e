"""Quantised Hugging Face folders: each layout as the tool that writes it packs it, read back to the very values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_folders import DEFAULT_MODEL, Parts, awq_parts, codes_of, dequantized, gptq_config, gptq_parts, write
from safetensors.torch import load_file

from qwench.checkpoint.weights import SafetensorsCheckpoint
from qwench.cli.commands.plan import describe
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import CheckpointError
from qwench.program.models import source_shapes
from qwench.quantized_matrix import QuantizedMatrix
from qwench.runtime.loading import memory_budget

MODULE = "model.layers.1.mlp.down_proj"
K, N = 768, 256


def opened(folder: Path) -> SafetensorsCheckpoint:
    checkpoint = SafetensorsCheckpoint(folder)
    checkpoint.check(source_shapes(checkpoint.spec))
    return checkpoint


def values(checkpoint: SafetensorsCheckpoint, module: str = MODULE) -> np.ndarray[Any, Any]:
    read = checkpoint.read(f"{module}.weight")
    return read.dequantize() if isinstance(read, QuantizedMatrix) else read.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 128, -1, 96])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(tmp_path: Path, bits: int, group: int, sym: bool, version: int) -> None:
    seen: list[Any] = []

    def quantize(weight: torch.Tensor) -> Parts:
        seen.append(codes_of(weight, bits, group, sym))
        return gptq_parts(weight, bits, group, sym, version, None)

    checkpoint = opened(write(tmp_path, gptq_config(bits, group, sym, version), quantize, MODULE))
    codes, scales, zeros = seen[0]
    groups = torch.arange(K) // (K if group == -1 else group)
    np.testing.assert_array_equal(values(checkpoint), dequantized(codes, scales, zeros, groups))
    stored = checkpoint.stored(f"{MODULE}.weight")
    assert stored.is_exact and stored.format.kind == ("int8" if bits == 8 else "int4")
    assert stored.format.offsets == ("" if sym else "zero")


@pytest.mark.parametrize(
    ("packing", "version"),
    [("auto_round:auto_gptq", 1), ("auto_round:gptq:exllamav2", 1), ("auto_round", 2), ("auto_round:gptqmodel", 2)],
)
def test_auto_round_in_the_layouts_of_gptq(tmp_path: Path, packing: str, version: int) -> None:
    seen: list[Any] = []

    def quantize(weight: torch.Tensor) -> Parts:
        seen.append(codes_of(weight, 4, 128, sym=False))
        return gptq_parts(weight, 4, 128, False, version, None)

    config = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 128, "sym": False}
    checkpoint = opened(write(tmp_path, config, quantize, MODULE))
    np.testing.assert_array_equal(values(checkpoint), dequantized(*seen[0], torch.arange(K) // 128))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_gptq_in_the_order_of_importance(tmp_path: Path, bits: int, sym: bool) -> None:
    order = torch.from_numpy(np.random.default_rng(1).permutation(K))
    parts: list[Parts] = []

    def quantize(weight: torch.Tensor) -> Parts:
        parts.append(gptq_parts(weight, bits, 128, sym, 1, order))
        return parts[-1]

    checkpoint = opened(write(tmp_path, gptq_config(bits, 128, sym, desc_act=True), quantize, MODULE))
    stored, groups = checkpoint.stored(f"{MODULE}.weight"), parts[0]["g_idx"].long()
    assert stored.is_exact and stored.order is not None and stored.kind == f"GPTQ {bits}-bit desc_act"
    original = load_file(DEFAULT_MODEL / "model.safetensors")[f"{MODULE}.weight"].float()
    by_group = torch.argsort(groups, stable=True)
    codes, scales, zeros = codes_of(original[:, by_group], bits, 128, sym)
    expected = np.empty((N, K), np.float32)
    expected[:, by_group] = dequantized(codes, scales, zeros, torch.arange(K) // 128)
    np.testing.assert_array_equal(values(checkpoint), expected)


def test_a_plan_counts_the_orders_of_inputs(tmp_path: Path) -> None:
    """What inputs are reordered by is a vector for each such matrix, and part of what loading counts."""
    orders = {k: torch.from_numpy(np.random.default_rng(k).permutation(k)) for k in (N, K)}

    def quantize(weight: torch.Tensor) -> Parts:
        return gptq_parts(weight, 4, 128, True, 1, orders[weight.shape[1]])

    source = write(tmp_path / "source", gptq_config(4, 128, True, desc_act=True), quantize)
    artifact = compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference"))
    assert any(weight.reordered for weight in artifact.program.weights.values())
    plan, budget = describe(source, QwenchConfig(target="reference")), memory_budget(artifact)
    assert (plan["weights_bytes"], plan["working_bytes"]) == (budget.weights, budget.working)


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@pytest.mark.parametrize("group", [32, 128])
def test_awq(tmp_path: Path, version: str, group: int) -> None:
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version, "zero_point": True}
    seen: list[Any] = []

    def quantize(weight: torch.Tensor) -> Parts:
        seen.append(codes_of(weight, 4, group, sym=False))
        return awq_parts(weight, group, version)

    checkpoint = opened(write(tmp_path, config, quantize, MODULE))
    np.testing.assert_array_equal(values(checkpoint), dequantized(*seen[0], torch.arange(K) // group))
    assert checkpoint.stored(f"{MODULE}.weight").is_exact


SCHEMES: dict[str, tuple[str, dict[str, Any], bool]] = {  # layout, arguments, whether it is kept code by code
    "w4a16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128}, True),
    "w4a16 asymmetric": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, True,
    ),
    "w4a16 by channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, True),
    "w8a16": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}, True),
    "w8a8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, True),
    "w8a8 by tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor"}, True),
    "w8a8 asymmetric": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, True),
    "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, False),
    "fp8 by tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, False),
    "fp8 by block": (
        "float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}, False,
    ),
}  # fmt: skip


def scheme_scales(weight: torch.Tensor, args: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    top = 448.0 if args.get("type") == "float" else 2 ** (args["num_bits"] - 1) - 1
    strategy, symmetric = args["strategy"], args.get("symmetric", True)
    if strategy == "tensor":
        parts = weight.reshape(1, 1, -1)
    elif strategy == "block":
        blocks = weight.reshape(weight.shape[0] // 128, 128, -1, 128).transpose(1, 2)
        parts = blocks.reshape(*blocks.shape[:2], -1)
    else:
        parts = weight.reshape(weight.shape[0], -1, args.get("group_size") or weight.shape[1])
    if symmetric:
        scale = parts.abs().amax(2) / top
        return (scale.reshape(1) if strategy == "tensor" else scale).bfloat16(), None
    low, high = parts.amin(2), parts.amax(2)
    scale = ((high - low) / (2 * top + 1)).bfloat16()
    return scale, (-top - 1 - low / scale.float()).round().clamp(-top - 1, top).to(torch.int8)


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors(tmp_path: Path, name: str) -> None:
    pytest.importorskip("compressed_tensors", reason="there is no compressed-tensors for Python 3.10")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    layout, args, is_exact = SCHEMES[name]
    weights = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = BaseCompressor.get_value_from_registry(layout)
    expected: list[torch.Tensor] = []

    def quantize(weight: torch.Tensor) -> Parts:
        scale, zero_point = scheme_scales(weight, args)
        state = {"weight": weight.bfloat16(), "weight_scale": scale}
        if zero_point is not None:
            state["weight_zero_point"] = zero_point
        compressed = compressor.compress(state, scheme)
        expected.append(compressor.decompress(dict(compressed), scheme)["weight"])
        return dict(compressed)

    config = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json())}},
        "ignore": ["lm_head"],
    }
    checkpoint = opened(write(tmp_path, config, quantize, MODULE))
    # The package multiplies in bf16, so its values are ours rounded.
    np.testing.assert_array_equal(
        torch.from_numpy(values(checkpoint)).bfloat16().float().numpy(), expected[0].bfloat16().float().numpy()
    )
    assert checkpoint.stored(f"{MODULE}.weight").is_exact == is_exact


def test_fine_grained_fp8(tmp_path: Path) -> None:
    expected: list[np.ndarray[Any, Any]] = []

    def quantize(weight: torch.Tensor) -> Parts:
        blocks = weight.reshape(weight.shape[0] // 128, 128, -1, 128)
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        expected.append((codes.float() * scale[:, None, :, None]).reshape(weight.shape).numpy())
        return {"weight": codes.reshape(weight.shape), "weight_scale_inv": scale}

    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    checkpoint = opened(write(tmp_path, config, quantize, MODULE))
    np.testing.assert_array_equal(values(checkpoint), expected[0])


def in_order(weight: torch.Tensor) -> Parts:
    return gptq_parts(weight, 4, 128, False, 1, None)


def by_importance(weight: torch.Tensor) -> Parts:
    """One order for all matrices with the same inputs, as the tools make it."""
    order = torch.from_numpy(np.random.default_rng(weight.shape[1]).permutation(weight.shape[1]))
    return gptq_parts(weight, 4, 128, False, 1, order)


def each_by_its_own(weight: torch.Tensor) -> Parts:
    """An order for each matrix, which q, k and v can't be multiplied as one with."""
    order = torch.from_numpy(np.random.default_rng(int(weight.abs().sum() * 1000)).permutation(weight.shape[1]))
    return gptq_parts(weight, 4, 128, False, 1, order)


@pytest.mark.parametrize("activations", ["fp32", "int8"])
@pytest.mark.parametrize("quantize", [in_order, by_importance, each_by_its_own])
def test_a_whole_model_is_what_transformers_computes(
    tmp_path: Path, quantize: Callable[[torch.Tensor], Parts], activations: str
) -> None:
    """Asymmetric GPTQ in all layers, beside transformers in fp32 with the dequantised weights."""
    from qwench.modeling import QwenchForCausalLM
    from qwench.modeling.original import OriginalModel

    folder = write(tmp_path / "c", gptq_config(4, 128, False), quantize)
    artifact = compile_checkpoint(folder, tmp_path / "a", QwenchConfig(activations=activations, kv_cache="fp32"))
    errors = {c.relative_error for c in artifact.manifest.conversions.values()}
    assert (errors == {0.0}) == (quantize is not each_by_its_own) and max(errors) < 6e-3
    ids = np.random.default_rng(0).integers(0, 2040, (1, 90))
    expected = OriginalModel(folder, "fp32", 2).logits([ids[0].astype(np.int32)])
    got = QwenchForCausalLM.from_pretrained(str(tmp_path / "a"))(torch.from_numpy(ids)).logits[0].numpy()
    cosine = (expected * got).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(got, axis=1)
    exact = activations == "fp32" and quantize is not each_by_its_own
    assert 1 - cosine.min() < (1e-6 if exact else 2e-2)


def test_a_config_that_a_merge_left_behind(tmp_path: Path) -> None:
    folder = write(tmp_path, gptq_config(4, 128, True), lambda weight: {"weight": weight.bfloat16()})
    assert not SafetensorsCheckpoint(folder).is_quantized
    artifact = compile_checkpoint(folder, tmp_path / "a", QwenchConfig(weights="int8"))
    assert artifact.config.weights == "int8"


def test_gptq_that_leaves_modules_as_they_were(tmp_path: Path) -> None:
    config = gptq_config(4, 128, True, dynamic={"-:.*(?<!down_proj)$": {}})
    checkpoint = opened(write(tmp_path, config, lambda weight: gptq_parts(weight, 4, 128, True, 1, None), "down_proj"))
    assert checkpoint.stored(f"{MODULE}.weight").is_exact
    assert checkpoint.stored("model.layers.1.mlp.up_proj.weight").kind == "BF16"


def test_a_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    """As AutoGPTQ wrote it before transformers read any; and without the fields that came later."""
    folder = write(tmp_path, {}, lambda weight: gptq_parts(weight, 4, 128, True, 1, None))
    config = {**gptq_config(4, 128, True), "checkpoint_format": None}
    del config["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(config))
    assert opened(folder).stored(f"{MODULE}.weight").kind == "GPTQ 4-bit"


def test_the_first_names_of_awq(tmp_path: Path) -> None:
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}
    checkpoint = opened(write(tmp_path, config, lambda weight: awq_parts(weight, 64, "gemm")))
    assert checkpoint.stored(f"{MODULE}.weight").format.group_size == 64


def test_a_matrix_that_is_there_twice(tmp_path: Path) -> None:
    def both(weight: torch.Tensor) -> Parts:
        return {**gptq_parts(weight, 4, 128, True, 1, None), "weight": weight}

    with pytest.raises(CheckpointError, match=r"holds '.*\.weight' and '.*\.qweight'; one is too many"):
        opened(write(tmp_path, gptq_config(4, 128, True), both))


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_mlx_is_refused_by_name(tmp_path: Path, key: str) -> None:
    folder = write(tmp_path, {}, lambda weight: gptq_parts(weight, 4, 64, True, 1, None))
    config = json.loads((folder / "config.json").read_text()) | {key: {"group_size": 64, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"it doesn't say its quant_method, as MLX's don't; read are gptq"):
        SafetensorsCheckpoint(folder)


def change(name: str, value: Any) -> Callable[[Parts], None]:
    def apply(parts: Parts) -> None:
        if value is None:
            del parts[name]
        else:
            parts[name] = value(parts[name])

    return apply


@pytest.mark.parametrize(
    ("config", "damage", "message"),
    [
        ({"quant_method": ["gptq"]}, None, r"quantised with \['gptq'\]"),
        (
            {"quant_method": "compressed-tensors", "format": "int-quantized", "sparsity_config": 3},
            None,
            "sparsity_config",
        ),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, None, "must be two positive integers"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:fp8"},
            None,
            "packing_format is 'auto_round:fp8'",
        ),
        ({"quant_method": "auto-round", "packing_format": 4}, None, "packing_format is 4"),
        ({"quant_method": "bitsandbytes"}, None, "quantised with 'bitsandbytes'; read are gptq, awq"),
        ({"bits": 5}, None, "bits is 5; of GPTQ 2, 3, 4, 8 are read"),
        ({"checkpoint_format": "marlin"}, None, "checkpoint_format is 'marlin'"),
        ({"rotation": "hadamard"}, None, "rotation has the model compute more than products"),
        ({"transform_config": {"config_groups": {"R3": {}}}}, None, "transform_config has the model compute more"),
        ({"dynamic": ["-:.*"]}, None, "dynamic gives modules bits of their own"),
        ({"dynamic": {"+:.*": {"bits": 8}}}, None, "dynamic gives modules bits of their own"),
        ({"group_size": 64}, None, "qzeros' is I32"),
        ({"group_size": -7}, None, "group_size must be a positive integer"),
        ({}, change("qzeros", None), "lacks tensor .*qzeros"),
        ({}, change("scales", lambda t: t * float("nan")), "holds NaN or infinite scales"),
        ({}, change("scales", lambda t: t.int()), "scales' is I32"),
        ({}, change("qweight", lambda t: t[:-1]), "qweight' is I32"),
        ({}, change("g_idx", lambda t: t + 1), "names groups that there are not"),
        ({}, change("g_idx", lambda t: t - 9), "names groups that there are not"),
    ],
)
def test_hostile_gptq(tmp_path: Path, config: dict[str, Any], damage: Any, message: str) -> None:
    def quantize(weight: torch.Tensor) -> Parts:
        parts = gptq_parts(weight, 4, 128, True, 1, None)
        if damage is not None:
            damage(parts)
        return {name: part.contiguous() for name, part in parts.items()}

    folder = write(tmp_path, gptq_config(4, 128, True) | config, quantize, MODULE)
    with pytest.raises(CheckpointError, match=message):
        values(opened(folder))
