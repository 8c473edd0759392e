"""Quantises the default model with a tool that makes checkpoints for people, and says what numbers the tool reads back.

Knows nothing of qwench. Run by an interpreter that has the tool: `python make_checkpoints.py TOOL OUT [KIND ...]`
writes OUT/KIND/made, the checkpoint as the tool saves it, and OUT/KIND/truth, a Qwen2 in fp32 of the weights that the
tool's own code reads from it. `make tools` installs the tools.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / "models" / "qwench-tiny"
TEXTS = ROOT / "benchmarks" / "texts"
SAMPLES, SAMPLE_TOKENS = 8, 96
Kinds = dict[str, dict[str, Any]]

# scheme, or its weights; `gptq`: arguments of GPTQModifier, otherwise weights are rounded.
LLM_COMPRESSOR: Kinds = {
    "w4a16": {"scheme": "W4A16", "gptq": {"actorder": None}},
    "w4a16-static-order": {"scheme": "W4A16", "gptq": {"actorder": "static"}},
    "w4a16-weight-order": {"scheme": "W4A16", "gptq": {"actorder": "weight"}},
    "w4a16-asym": {"scheme": "W4A16_ASYM"},
    "w8a16": {"scheme": "W8A16"},
    "w8a8": {"scheme": "W8A8", "gptq": {}},
    "fp8-dynamic": {"scheme": "FP8_DYNAMIC"},
    "fp8-static": {"scheme": "FP8"},
    "fp8-block": {"scheme": "FP8_BLOCK"},
}
# `reads`: the format with the same roundings that the tool reads on a CPU, where it can't read the one it saves.
AUTO_ROUND: Kinds = {
    "gptq-3": {"bits": 3, "format": "auto_gptq"},
    "gptq-4": {"bits": 4, "format": "auto_gptq"},
    "gptq-8": {"bits": 8, "format": "auto_gptq"},
    "gptq-4-asym": {"bits": 4, "sym": False, "format": "auto_gptq", "reads": "auto_round:gptqmodel"},
    "awq-4-asym": {"bits": 4, "sym": False, "format": "auto_awq", "reads": "auto_round:gptqmodel"},
    "own-4": {"bits": 4, "format": "auto_round"},
    "own-4-asym": {"bits": 4, "sym": False, "format": "auto_round", "reads": "auto_round:gptqmodel"},
    "own-gptqmodel-4-asym": {"bits": 4, "sym": False, "format": "auto_round:gptqmodel"},
    "own-gptqmodel-2-asym": {"bits": 2, "sym": False, "format": "auto_round:gptqmodel"},
}
GPTQMODEL: Kinds = {"4-desc_act": {"bits": 4, "group_size": 128, "desc_act": True}}
AUTOAWQ: Kinds = {
    "gemm": {"version": "GEMM"},
    "gemv": {"version": "GEMV"},
}


def samples() -> list[torch.Tensor]:
    """Token ids [SAMPLE_TOKENS] int64 of English texts, to calibrate with."""
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    text = " ".join(path.read_text() for path in sorted(TEXTS.glob("*.txt")))
    ids = torch.tensor(tokenizer(text).input_ids)
    return list(ids[: SAMPLES * SAMPLE_TOKENS].reshape(SAMPLES, SAMPLE_TOKENS))


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    return tensors


def write_truth(out: Path, weights: dict[str, torch.Tensor]) -> None:
    """`weights`, by module, in place of the default model's; all that isn't among them is as the tool left it."""
    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, torch_dtype=torch.float32)
    kept = {name: tensor.float() for name, tensor in stored_tensors(out / "made").items()}
    state = {
        name: kept[name] for name in model.state_dict() if name in kept and name.removesuffix(".weight") not in weights
    }
    state |= {f"{module}.weight": weight.float() for module, weight in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing  # tied
    model.save_pretrained(out / "truth")


def products_with_ones(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each module that the tool put in place of a linear one, with the weights [N, K] that it multiplies by."""
    for name, module in model.named_modules():
        inputs = getattr(module, "in_features", getattr(module, "infeatures", None))
        if inputs is None or type(module) is torch.nn.Linear:
            continue
        with torch.no_grad():
            ones = torch.eye(inputs, dtype=torch.float16)  # what these tools multiply on a CPU
            module.bias = None  # a sum with it would be rounded to 16 bits
            yield name, module(ones).T.float()


def llm_compressor(kind: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors import BaseCompressor
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.bfloat16)
    shared = {"targets": "Linear", "scheme": kind["scheme"], "ignore": ["lm_head"]}
    recipe = GPTQModifier(**shared, **kind["gptq"]) if "gptq" in kind else QuantizationModifier(**shared)
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in samples()]
    oneshot(model=model, dataset=Dataset.from_list(rows), recipe=recipe, num_calibration_samples=SAMPLES)
    model.save_pretrained(out / "made", save_compressed=True)
    stored, weights = stored_tensors(out / "made"), {}
    for name, module in model.named_modules():
        if (scheme := getattr(module, "quantization_scheme", None)) is None or f"{name}.weight_scale" not in stored:
            continue
        parts = {key.rpartition(".")[2]: value for key, value in stored.items() if key.rpartition(".")[0] == name}
        parts["weight_scale"] = parts["weight_scale"].float()  # so that nothing is rounded to bf16
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        weights[name] = compressor.decompress(parts, scheme)["weight"]
    return weights


def auto_round(kind: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    from auto_round import AutoRound
    from transformers import AutoRoundConfig

    def save(layout: str, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
        model = AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL, dtype=torch.bfloat16)
        rounding = AutoRound(
            model, tokenizer, bits=kind["bits"], group_size=64, sym=kind.get("sym", True), iters=0, nsamples=SAMPLES,
            seqlen=SAMPLE_TOKENS, dataset=[ids[None] for ids in samples()], device_map="cpu", disable_opt_rtn=True,
        )  # fmt: skip
        rounding.quantize_and_save(str(out / "saved"), format=layout)
        next((out / "saved").iterdir()).rename(folder)

    save(kind["format"], out / "made")
    if readable := kind.get("reads"):
        save(readable, out / "readable")
    read = AutoModelForCausalLM.from_pretrained(
        out / ("readable" if readable else "made"), dtype=torch.float16, device_map="cpu",
        quantization_config=AutoRoundConfig(backend="torch"),
    )  # fmt: skip
    return dict(products_with_ones(read))


def gptqmodel(kind: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(DEFAULT_MODEL), QuantizeConfig(**kind))
    model.quantize([{"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])} for ids in samples()])
    model.save(str(out / "made"))
    read = GPTQModel.load(str(out / "made"), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    modules = {name: module for name, module in read.model.named_modules() if hasattr(module, "dequantize_weight")}
    return {name: module.dequantize_weight().T for name, module in modules.items()}


def autoawq(kind: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    """The weights as rounded just before they are packed: AutoAWQ multiplies by packed ones on a GPU alone."""
    from awq import AutoAWQForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    model = AutoAWQForCausalLM.from_pretrained(str(DEFAULT_MODEL), device_map="cpu", use_cache=False)
    model.quantize(
        tokenizer, quant_config={"zero_point": True, "w_bit": 4, "q_group_size": 64, **kind}, export_compatible=True,
        calib_data=[tokenizer.decode(ids) for ids in samples()], max_calib_samples=2, max_calib_seq_len=SAMPLE_TOKENS,
    )  # fmt: skip
    layers = {name: module for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)}
    rounded = model.quantizer.pseudo_quantize_tensor
    weights = {name: rounded(layer.weight.data.half())[0] for name, layer in layers.items() if "layers." in name}
    model.pack()
    model.save_quantized(str(out / "made"))
    return weights


TOOLS: dict[str, tuple[Kinds, Callable[[dict[str, Any], Path], dict[str, torch.Tensor]]]] = {
    "llmcompressor": (LLM_COMPRESSOR, llm_compressor),
    "auto-round": (AUTO_ROUND, auto_round),
    "gptqmodel": (GPTQMODEL, gptqmodel),
    "autoawq": (AUTOAWQ, autoawq),
}


def main(tool: str, out: Path, wanted: list[str]) -> None:
    """Each kind in turn, since starting a tool takes longer; one that fails leaves its reason and no checkpoint."""
    kinds, make = TOOLS[tool]
    for kind in wanted or kinds:
        folder = out / kind
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        try:
            weights = make(kinds[kind], folder)
            assert weights, "the tool quantised nothing"
            write_truth(folder, weights)
            AutoTokenizer.from_pretrained(DEFAULT_MODEL).save_pretrained(folder / "made")  # which not all tools do
        except Exception:
            (folder / "failed.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
