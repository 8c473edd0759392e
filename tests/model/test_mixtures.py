"""Mixtures of experts against transformers' own: greedy tokens, logits, formats, quantised checkpoints, bad input."""

from __future__ import annotations

import json
import random
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from lora_adapters import load_peft, write_adapter
from safetensors.torch import load_file, save_file
from transformers_parity import assert_same_model, load_truth, write_checkpoint

from qwench import LLM, QwenchConfig, QwenchForCausalLM, SamplingParams
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.errors import CheckpointError, TargetError

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from gguf_models import write_gguf
from quantized_folders import gptq_config, gptq_parts, write

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
NEW = 24
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def random_config(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    layers, experts, kv_heads = draw.randint(2, 5), draw.choice([1, 2, 5, 8, 16, 33, 64]), draw.randint(1, 2)
    return {
        "model_type": draw.choice(["qwen2_moe", "qwen3_moe"]),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw.randint(1, 3),
        "num_key_value_heads": kv_heads,
        "head_dim": draw.choice([8, 16, 34]),
        "hidden_size": draw.choice([48, 72]),  # torch's grouped products need multiples of 4
        "num_experts": experts,
        "num_experts_per_tok": draw.randint(1, min(experts, 8)),
        "moe_intermediate_size": draw.choice([24, 40, 76]),
        "shared_expert_intermediate_size": draw.choice([24, 90]),
        "norm_topk_prob": draw.random() < 0.5,
        "decoder_sparse_step": draw.choice([1, 1, 2]),
        "mlp_only_layers": draw.sample(range(layers), draw.choice([0, 0, 1])),
        "tie_word_embeddings": draw.random() < 0.3,
    }


SLIDING = {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
           "use_sliding_window": True, "sliding_window": 9}  # fmt: skip


# 0: windows. The others between them have 1 to 64 experts, of which 1 to 8 are chosen, of both families, normalised or
# not, with layers that `decoder_sparse_step` and `mlp_only_layers` leave dense.
@pytest.mark.parametrize("index", [0, 2, 5, 6, 8, 154, 187])
def test_greedy(index: int, best_target: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=index, **(random_config(index) if index else SLIDING))
    target = "reference" if index == 6 else best_target
    model = QwenchForCausalLM.from_pretrained(
        folder, qwench_target=target, qwench_prefill_chunk_size=8, qwench_kvcache_block_size=16
    )
    assert_same_model(model, load_truth(folder), index, NEW)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install 'qwench[cuda]'")
@pytest.mark.parametrize(("model_type", "dense_layers"), [("qwen2_moe", [0]), ("qwen3_moe", [])])
def test_greedy_on_a_gpus_kernels(model_type: str, dense_layers: list[int], tmp_path: Path) -> None:
    """In Triton's interpreter, which is slow: few tokens of a small model, of two users at once."""
    folder = write_checkpoint(
        tmp_path, model_type=model_type, num_hidden_layers=1 + len(dense_layers), mlp_only_layers=dense_layers,
        num_attention_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=40, vocab_size=90,
    )  # fmt: skip
    truth, prompts = load_truth(folder), [[3, 14, 15, 9, 2], [6]]
    expected = [
        truth.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :].tolist()
        for ids in prompts
    ]
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    with LLM(folder, target="cuda-interpreter", activations="fp32", max_seq_len=32) as llm:
        assert [output.outputs[0].token_ids for output in llm.generate(prompts, params)] == expected


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, and sizes that groups divide."""
    folder = write_checkpoint(
        tmp_path_factory.mktemp("moe"), model_type="qwen2_moe", num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=64, shared_expert_intermediate_size=128, vocab_size=2048, mlp_only_layers=[0],
    )  # fmt: skip
    for name in TEXTS:
        shutil.copyfile(DEFAULT_MODEL / name, folder / name)
    return folder


def answers(model: Path, **options: Any) -> list[Any]:
    with LLM(model, **options) as llm:
        outputs = llm.generate([list(range(100, 170)), [5, 6, 7]], GREEDY)
        return [output.outputs[0].token_ids for output in outputs]


def test_verify_inspect_and_plan(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Module by module against transformers, the experts' part by itself among them."""
    artifact = compile_checkpoint(base, tmp_path / "artifact", QwenchConfig())
    command = ["verify", str(artifact.path), "--against", str(base), "--max-tokens", "12", "--json", "-"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["greedy"]["num_same"] == len(report["greedy"]["divergences"])
    worst = min(m["worst_pcc"] for m in report["modules"] if m["output"].endswith(".down"))
    assert worst > 1 - 1e-6
    assert main(["inspect", str(artifact.path)]) == 0
    assert main(["plan", str(base), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out.splitlines()[-1])["weights_bytes"]
    assert packed == artifact.weights_bytes


@pytest.mark.parametrize("options", [{"weights": "int8"}, {"recipe": "balanced"}, {"recipe": "accuracy"}], ids=str)
def test_formats(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """Near transformers: where rounding doesn't make tokens choose other experts it is small."""
    ids = torch.randint(0, 2048, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_truth(base)(ids).logits.numpy()
    model = QwenchForCausalLM.from_pretrained(base, qwench_config=options)
    got = model(ids).logits.numpy()
    rows = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(got.reshape(120, -1), expected.reshape(120, -1))]
    assert np.median(rows) > {"int8": 0.998, "balanced": 0.93, "accuracy": 0.9995}[next(iter(options.values()))]


@pytest.mark.parametrize(("bits", "sym", "desc_act"), [(4, True, False), (4, False, False), (8, True, False),
                                                       (4, True, True)])  # fmt: skip
def test_gptq(bits: int, sym: bool, desc_act: bool, base: Path, tmp_path: Path) -> None:
    """Experts as GPTQ saves them are kept code by code; of inputs in an order of their own they are rounded anew."""
    generator = torch.Generator().manual_seed(0)

    def quantize(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        order = torch.randperm(weight.shape[1], generator=generator) if desc_act else None
        return gptq_parts(weight, bits, 32, sym, 1, order)

    folder = write(tmp_path / "gptq", gptq_config(bits, 32, sym, desc_act=desc_act), quantize, model=base)
    artifact = compile_checkpoint(folder, tmp_path / "artifact", QwenchConfig(activations="fp32"))
    of_experts = [c for name, c in artifact.manifest.conversions.items() if ".experts." in name]
    assert len(of_experts) == 6 * 2
    assert all((c.relative_error == 0) != desc_act for c in of_experts)
    assert all(c.relative_error < 0.01 for c in of_experts)
    from qwench.modeling.original import OriginalModel

    ids = np.random.default_rng(0).integers(0, 2048, 60).astype(np.int32)
    expected = OriginalModel(folder, "fp32", 1).logits([ids])
    model = QwenchForCausalLM.from_pretrained(artifact.path)
    got = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    rows = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(got, expected)]
    assert np.median(rows) > 0.999 and (desc_act or min(rows) > 0.9999)


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_gguf(kind: str, base: Path, tmp_path: Path) -> None:
    """Stacks of experts' matrices; all layers have experts, as in all published files."""
    for model_type in ("qwen2_moe", "qwen3_moe"):
        folder = write_checkpoint(
            tmp_path / model_type, model_type=model_type, num_experts=5, num_experts_per_tok=2, head_dim=16,
            moe_intermediate_size=96, shared_expert_intermediate_size=64, vocab_size=2048,
            norm_topk_prob=model_type == "qwen3_moe",
        )  # fmt: skip
        for name in TEXTS:
            shutil.copyfile(DEFAULT_MODEL / name, folder / name)
        path = tmp_path / f"{model_type}.gguf"
        write_gguf(folder, path, lambda name: kind)
        if kind == "BF16":
            assert answers(path) == answers(folder)
        config = QwenchConfig(activations="fp32", kv_cache="fp32")
        artifact = compile_checkpoint(path, tmp_path / f"{model_type}-artifact", config)
        exact = [c.relative_error == 0 for name, c in artifact.manifest.conversions.items() if ".experts." in name]
        assert exact == [True] * (2 * 5 * 2)
        ids = torch.arange(40)[None]
        with torch.no_grad():
            expected = load_truth(folder)(ids).logits.numpy().ravel()
        got = QwenchForCausalLM.from_pretrained(artifact.path)(ids).logits.numpy().ravel()
        assert np.corrcoef(got, expected)[0, 1] > (1 - 1e-6 if kind == "BF16" else 0.97)


def test_a_live_model(base: Path) -> None:
    truth = load_truth(base)
    model = QwenchForCausalLM.from_model(truth)
    ids = torch.arange(50)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, truth(ids).logits, rtol=1e-4, atol=1e-4)


def test_calibration(base: Path, tmp_path: Path) -> None:
    """Experts that the text's tokens choose lose less of it."""
    text = tmp_path / "text.txt"
    text.write_text((DEFAULT_MODEL / "README.md").read_text() * 3)
    options = {"weights": "int4", "group_size": 32, "activations": "fp32", "max_seq_len": 128}
    with LLM(base) as llm:
        assert llm.tokenizer is not None
        ids = torch.tensor([llm.tokenizer.encode(text.read_text())[:100]])
    with torch.no_grad():
        expected = load_truth(base)(ids).logits.numpy()[0]
    errors = []
    for more in ({}, {"calibrate": str(text)}):
        model = QwenchForCausalLM.from_pretrained(base, qwench_config={**options, **more})
        errors.append(np.square(model(ids).logits.numpy()[0] - expected).mean())
    assert errors[1] < 0.9 * errors[0]


def test_adapters(base: Path, tmp_path: Path) -> None:
    """Those of attention and of the shared expert run, beside requests without; experts' are refused by name."""
    targets = r".*\.(q_proj|o_proj|shared_expert\.(gate_proj|down_proj))"
    adapter = write_adapter(base, tmp_path / "shared", target_modules=targets)
    ids = list(range(100, 130))
    merged = load_peft(base, adapter).merge_and_unload()
    theirs = [
        model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, 30:].tolist()
        for model in (merged, load_truth(base))
    ]
    assert theirs[0] != theirs[1]
    with LLM(base) as llm:
        llm.load_lora("a", adapter)
        outputs = llm.generate([ids, ids], GREEDY, lora=["a", None])
        assert [output.outputs[0].token_ids for output in outputs] == theirs
        tensors = load_file(adapter / "adapter_model.safetensors")
        moved = {
            name.replace("shared_expert", "experts.3"): tensor[:64] if "gate_proj.lora_B" in name else
            tensor[:, :64].contiguous() if "down_proj.lora_A" in name else tensor
            for name, tensor in tensors.items()
        }  # fmt: skip
        shutil.copytree(adapter, tmp_path / "expert")
        save_file(moved, tmp_path / "expert" / "adapter_model.safetensors")
        with pytest.raises(TargetError, match=r"experts\.3\.\w+_proj\.weight, an expert's"):
            llm.load_lora("b", tmp_path / "expert")
    assert answers(base, merged_lora=str(tmp_path / "expert")) != answers(base)


def test_ranks(base: Path, tmp_path: Path) -> None:
    """Some have no group of the small dense layer."""
    compile_checkpoint(base, tmp_path / "a", QwenchConfig(weights="int4"))
    expected = answers(tmp_path / "a", num_threads=2)
    for size in (2, 3):
        assert answers(tmp_path / "a", tensor_parallel_size=size, num_threads=size) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_experts": 7}, r"gate\.weight' in .* has shape \[6, 64\], but config\.json asks for \[7, 64\]"),
     ({"mlp_only_layers": []}, r"lacks tensor 'model\.layers\.0\.mlp\.gate\.weight'"),
     ({"mlp_only_layers": [0, 1]}, r"lacks tensor 'model\.layers\.1\.mlp\.gate_proj\.weight'"),
     ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, but there are 6 experts"),
     ({"mlp_only_layers": "0"}, "mlp_only_layers must be a list of layers, but is '0'"),
     ({"decoder_sparse_step": 0}, "decoder_sparse_step must be a positive integer"),
     ({"qkv_bias": False}, "qkv_bias is false"),
     ({"use_sliding_window": True, "sliding_window": 8, "layer_types": None}, "layer_types doesn't say which"),
     ({"architectures": ["Qwen2ForCausalLM"]}, r"of model_type 'qwen2_moe' qwench reads Qwen2MoeForCausalLM"),
     ({"model_type": "mixtral"}, "model_type is 'mixtral'; qwench compiles model_type 'qwen2', 'qwen3', 'qwen2_moe'")],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    for path in base.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        compile_checkpoint(tmp_path, tmp_path / "artifact", QwenchConfig())


def test_missing_and_unknown_experts(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    for path in base.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    values = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"lacks tensor '{name}' of shape \[64, 64\]"):
        compile_checkpoint(tmp_path, tmp_path / "artifact", QwenchConfig())
    save_file(tensors | {name: values, name.replace("5", "6"): values.clone()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds tensor '.*experts\.6\.up_proj\.weight', which a model of this"):
        compile_checkpoint(tmp_path, tmp_path / "artifact", QwenchConfig())
