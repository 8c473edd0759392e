"""Quantised Hugging Face folders, made by plain rounding and the packing code of the tools that write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
Parts = dict[str, torch.Tensor]


def write(
    folder: Path,
    config: dict[str, Any],
    quantize: Callable[[torch.Tensor], Parts],
    only: str = ".",
    model: Path = DEFAULT_MODEL,
) -> Path:
    """A model with its linear modules quantised: `quantize` gives the parts of a weight [N, K]."""
    folder.mkdir(exist_ok=True)
    tensors: Parts = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight") and only in name:
            tensors |= {f"{module}.{part}": value.contiguous() for part, value in quantize(tensor.float()).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    described = json.loads((model / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    return folder


def codes_of(weight: torch.Tensor, bits: int, group: int, sym: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [N, K] from 0, scales and zero points [N, groups], of plain rounding."""
    n, k = weight.shape
    size = k if group == -1 else group
    groups = torch.nn.functional.pad(weight, (0, -k % size)).reshape(n, -1, size)
    top = 2**bits - 1
    if sym:
        scales = (groups.abs().amax(2) * 2 / top).clamp_min(1e-6)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
        scales = ((high - low) / top).clamp_min(1e-6)
        zeros = (-low / scales).round().clamp(0, top)
    scales = scales.half()
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, top)
    return codes.reshape(n, -1)[:, :k].int(), scales, zeros.int()


def dequantized(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor
) -> np.ndarray[Any, Any]:
    return ((codes - zeros[:, groups]).float() * scales.float()[:, groups]).numpy()


def packed_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """AutoGPTQ's QuantLinear.pack, of the rows of [rows, columns]: 32 bits a word, for 3 bits 32 values in 3 words."""
    source = values.numpy().astype(np.uint32)
    out = np.zeros((source.shape[0] * bits // 32, source.shape[1]), np.uint32)
    i = row = 0
    while row < len(out):
        if bits in (2, 4, 8):
            for j in range(i, i + 32 // bits):
                out[row] |= source[j] << np.uint32(bits * (j - i))
            i += 32 // bits
            row += 1
            continue
        for j in range(i, i + 10):
            out[row] |= source[j] << np.uint32(3 * (j - i))
        i += 10
        out[row] |= source[i] << np.uint32(30)
        row += 1
        out[row] |= (source[i] >> np.uint32(2)) & np.uint32(1)
        i += 1
        for j in range(i, i + 10):
            out[row] |= source[j] << np.uint32(3 * (j - i) + 1)
        i += 10
        out[row] |= source[i] << np.uint32(31)
        row += 1
        out[row] |= (source[i] >> np.uint32(1)) & np.uint32(0x3)
        i += 1
        for j in range(i, i + 10):
            out[row] |= source[j] << np.uint32(3 * (j - i) + 2)
        i += 10
        row += 1
    return torch.from_numpy(out.view(np.int32))


def gptq_parts(
    weight: torch.Tensor, bits: int, group: int, sym: bool, version: int, order: torch.Tensor | None
) -> Parts:
    k = weight.shape[1]
    groups = torch.arange(k) // (k if group == -1 else group)
    if order is not None:  # groups of the inputs in the order of their importance
        groups = groups[order]
    by_group = torch.argsort(groups, stable=True)
    codes, scales, zeros = codes_of(weight[:, by_group], bits, group, sym)
    unordered = torch.empty_like(codes)
    unordered[:, by_group] = codes
    stored = (zeros - 1) % 2**bits if version == 1 else zeros
    return {
        "qweight": packed_rows(unordered.T, bits),
        "qzeros": packed_rows(stored, bits).T,
        "scales": scales.T,
        "g_idx": groups.int(),
    }


def gptq_config(bits: int, group: int, sym: bool, version: int = 1, **more: Any) -> dict[str, Any]:
    layout = "gptq" if version == 1 else "gptq_v2"
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "checkpoint_format": layout, **more}


def awq_parts(weight: torch.Tensor, group: int, version: str) -> Parts:
    """As AutoAWQ's WQLinear_GEMM and WQLinear_GEMV pack."""
    codes, scales, zeros = codes_of(weight, 4, group, sym=False)

    def pack(rows: torch.Tensor, order: list[int]) -> torch.Tensor:  # along the last dimension
        out = np.zeros((rows.shape[0], rows.shape[1] // 8), np.uint32)
        for column in range(out.shape[1]):
            for i in range(8):
                out[:, column] |= rows[:, column * 8 + order[i]].numpy().astype(np.uint32) << np.uint32(4 * i)
        return torch.from_numpy(out.view(np.int32))

    if version == "gemm":
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return {"qweight": pack(codes.T, order), "qzeros": pack(zeros.T, order), "scales": scales.T}
    multiple = 4 if group == 32 else 1
    words = (zeros.shape[1] + 7) // 8
    width = (words + multiple - 1) // multiple * multiple
    padded = torch.nn.functional.pad(zeros, (0, width * 8 - zeros.shape[1]))
    wide = torch.nn.functional.pad(scales, (0, width * 8 - scales.shape[1]))
    return {"qweight": pack(codes, list(range(8))), "qzeros": pack(padded, list(range(8))), "scales": wide}
