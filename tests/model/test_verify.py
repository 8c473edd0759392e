"""`qwench verify` on models that are right, and on models that were made wrong in one place, which it must find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwench.checkpoint.spec import ModelSpec
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.program.qwen2 import build_qwen2

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "vocab_size": 272,
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
SHORT = ("--truth", "reference", "--max-tokens", "12")  # 20 random prompts of 12 tokens
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, no tokenizer."""
    folder = tmp_path_factory.mktemp("verify") / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng, tensors = np.random.default_rng(0), {}
    for weight in build_qwen2(ModelSpec.from_config(CONFIG)).weights.values():
        scale = 1.5 * weight.shape[1] ** -0.5 if len(weight.shape) == 2 else 0.3
        values = rng.standard_normal(weight.shape) * scale
        tensors[weight.name] = (values + weight.name.endswith("norm.weight")).astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, best_target: str) -> Path:
    return compile_checkpoint(checkpoint, checkpoint.parent / "right", QwenchConfig(target=best_target)).path


def edited(checkpoint: Path, out: Path, edit: Callable[[Tensors], None], **options: Any) -> Path:
    """An artifact of the checkpoint after `edit`: sound in itself, and not the checkpoint's."""
    folder = out / "edited"
    shutil.copytree(checkpoint, folder)
    tensors = dict(load_file(folder / "model.safetensors"))
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return compile_checkpoint(folder, out / "artifact", QwenchConfig(**options)).path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = main(["verify", *map(str, arguments), "--threads", "1", "--json", "-"])
    out, err = capsys.readouterr()
    assert out, err
    return code, json.loads(out)


@pytest.mark.parametrize("truth", ["transformers", "reference"])
def test_a_right_model_is_faithful(
    checkpoint: Path, artifact: Path, truth: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if truth == "transformers":
        pytest.importorskip("transformers", reason="the truth of this test: pip install qwench[hf]")
    code, report = run(capsys, artifact, "--against", checkpoint, "--truth", truth, "--greedy", "8")
    assert code == 0 and report["ok"]
    assert report["truth"].startswith(truth)
    assert report["num_prompts"] >= 20 and report["num_tokens"] >= 1000
    assert len(report["pcc_by_token"]) == report["num_tokens"]
    assert 1 - 1e-9 < report["logits"]["worst_pcc"] <= report["logits"]["mean_pcc"] <= 1
    assert report["logits"]["top1"] == 1 and report["logits"]["max_kl"] < 1e-8
    assert report["logits"]["perplexity"] == pytest.approx(report["logits"]["truth_perplexity"], rel=1e-5)
    assert report["greedy"]["num_same"] == report["num_prompts"]
    assert report["suspects"] == []
    kinds = [(m["kind"], m["layer"]) for m in report["modules"]]
    assert kinds.count(("norm", 1)) == 2
    assert {k for k, _ in kinds} == {"embedding", "norm", "attention", "mlp", "layer", "head"}
    assert len(report["states"]) == 2


def test_transformers_bf16_is_beaten(checkpoint: Path, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="the comparison of this test: pip install qwench[hf]")
    arguments = ("--against", checkpoint, "--also", "transformers-bf16", "--greedy", "0", "--max-tokens", "12")
    code, report = run(capsys, artifact, *arguments)
    assert code == 0
    (theirs,) = report["others"].values()
    assert 0.9 < theirs["worst_pcc"] < report["logits"]["worst_pcc"]
    assert [c["name"] for c in report["checks"]][1:] == [
        f"{kind} PCC, against {next(iter(report['others']))}" for kind in ("worst-token", "mean")
    ]
    assert report["greedy"] is None


@pytest.mark.parametrize("truth", ["transformers", "reference"])
@pytest.mark.parametrize("scaling", [
    "yarn:4", "linear:2", '{"rope_type": "llama3", "factor": 4, "low_freq_factor": 1, "high_freq_factor": 4}'
])  # fmt: skip
def test_the_truth_gets_the_rope_scaling_that_was_compiled(
    checkpoint: Path, tmp_path: Path, best_target: str, scaling: str, truth: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond the 128 positions of the checkpoint, where the rotations differ most."""
    if truth == "transformers":
        pytest.importorskip("transformers", reason="the truth of this test: pip install qwench[hf]")
    config = QwenchConfig(target=best_target, rope_scaling=scaling)
    scaled = compile_checkpoint(checkpoint, tmp_path / "scaled", config).path
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([[i * i % 272 for i in range(200)], [7] * 40]))
    arguments = ("--against", checkpoint, "--prompts", prompts, "--truth", truth, "--greedy", "4")
    code, report = run(capsys, scaled, *arguments)
    assert code == 0 and report["logits"]["worst_pcc"] > 1 - 1e-7
    assert report["greedy"]["num_same"] == 2
    code, report = run(capsys, compile_checkpoint(checkpoint, tmp_path / "plain", QwenchConfig()).path, *arguments)
    assert report["num_tokens"] == 128 + 40  # a model without scaling reads no further


def test_rotations_by_length_are_compared_with_the_reference(
    checkpoint: Path, tmp_path: Path, best_target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers rotates by the sequence at hand, a compiled model by the length that it was compiled for."""
    config = QwenchConfig(target=best_target, rope_scaling="dynamic:4", max_seq_len=300)
    scaled = compile_checkpoint(checkpoint, tmp_path / "scaled", config).path
    code, report = run(capsys, scaled, "--against", checkpoint, "--greedy", "0", "--max-tokens", "12")
    assert code == 0 and report["truth"] == "reference fp32"


def test_a_truth_larger_than_the_memory_reads_its_weights_again(
    checkpoint: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qwench.evaluate.truth.available_memory_bytes", lambda: 1000)
    code, report = run(capsys, artifact, "--against", checkpoint, "--greedy", "2", "--max-tokens", "12")
    assert code == 0 and report["truth"] == "reference fp32"


def swap_halves(name: str, axis: int) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[name] = np.roll(tensors[name], tensors[name].shape[axis] // 2, axis=axis)

    return edit


WRONG = {
    "a permuted query": ("model.layers.1.self_attn.q_proj.weight", 0, ("attention", 1)),
    "a permuted key bias": ("model.layers.0.self_attn.k_proj.bias", 0, ("attention", 0)),
    "a permuted output projection": ("model.layers.0.self_attn.o_proj.weight", 1, ("attention", 0)),
    "gate and up out of step": ("model.layers.1.mlp.up_proj.weight", 0, ("mlp", 1)),
    "a permuted down projection": ("model.layers.0.mlp.down_proj.weight", 1, ("mlp", 0)),
    "a permuted norm": ("model.layers.1.post_attention_layernorm.weight", 0, ("norm", 1)),
    "a permuted head": ("lm_head.weight", 1, ("head", None)),
    "permuted embeddings": ("model.embed_tokens.weight", 0, ("embedding", None)),
}


# In int4 no bias: a permuted one is no larger an error than int4's own.
@pytest.mark.parametrize(
    ("tensor", "axis", "place", "weights"),
    [
        pytest.param(*wrong, weights, id=f"{weights}-{name}")
        for weights in ("bf16", "int4")
        for name, wrong in WRONG.items()
        if weights == "bf16" or not wrong[0].endswith("bias")
    ],
)
def test_a_wrong_model_is_found_and_so_is_the_place(
    checkpoint: Path, tmp_path: Path, tensor: str, axis: int, place: tuple[str, int | None], weights: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    wrong = edited(checkpoint, tmp_path, swap_halves(tensor, axis), weights=weights, group_size=32)
    code, report = run(capsys, wrong, "--against", checkpoint, *SHORT, "--greedy", "4")
    assert code == 1 and not report["ok"]
    first = report["suspects"][0]
    assert (first["kind"], first["layer"]) == place
    off = {(m["kind"], m["layer"]) for m in report["suspects"]}
    # A norm is part of the attention or the MLP behind it; nothing else is off.
    assert off <= {place, ("mlp", place[1])} if place[0] == "norm" else off == {place}


def test_the_verdict_is_printed(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = edited(checkpoint, tmp_path, swap_halves("model.layers.1.mlp.up_proj.weight", 0))
    code = main(["verify", str(wrong), "--against", str(checkpoint), *SHORT, "--threads", "1"])
    out = capsys.readouterr().out
    assert code == 1
    assert "NOT faithful; off by themselves: mlp of layer 1 (layers.1.down)" in out
    assert "MISSED  worst-token PCC of the logits" in out
    for word in ("embedding", "norm", "attention", "head", "model", "greedy", "top-5"):
        assert word in out


def test_limits_can_be_stated(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    int4 = compile_checkpoint(checkpoint, tmp_path / "int4", QwenchConfig(weights="int4")).path
    arguments = (int4, "--against", checkpoint, *SHORT, "--greedy", "0")
    _, report = run(capsys, *arguments)
    worst, top1 = report["logits"]["worst_pcc"], report["logits"]["top1"]
    assert [c["name"] for c in report["checks"]] == ["top-1 agreement"]  # int4 states no PCC
    code, _ = run(capsys, *arguments, "--min-pcc", str(worst - 1e-6), "--min-top1", str(top1 - 1e-6))
    assert code == 0
    code, report = run(capsys, *arguments, "--min-pcc", str(worst + 1e-6), "--min-top1", "0")
    assert code == 1
    assert [c["ok"] for c in report["checks"]] == [False, True]


def test_files_are_written(
    checkpoint: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib: pip install qwench[bench]")
    plot, figures = tmp_path / "plot.png", tmp_path / "figures.json"
    arguments = ["verify", artifact, "--against", checkpoint, *SHORT, "--greedy", "0", "--threads", "1"]
    assert main([*map(str, arguments), "--plot", str(plot), "--json", str(figures)]) == 0
    assert "verdict  faithful" in capsys.readouterr().out
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads(figures.read_text())["ok"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{artifact}"], "--against"),
        (["{artifact}", "--against", "{missing}"], "missing"),
        (["{missing}", "--against", "{checkpoint}"], "not a folder"),
        (["{artifact}", "--against", "{checkpoint}", "--prompts", "{missing}"], "No such file"),
        (["{artifact}", "--against", "{checkpoint}", "--min-pcc", "1.5"], "--min-pcc is 1.5"),
        (["{artifact}", "--against", "{checkpoint}", "--greedy", "-1"], "--greedy is -1"),
        (["{artifact}", "--against", "{checkpoint}", "--max-tokens", "1"], "--max-tokens is 1"),
        (["{artifact}", "--against", "{checkpoint}", "--plot", "picture.txt"], "--plot"),
        (["{artifact}", "--against", "{checkpoint}", "--truth", "me"], "--truth"),
        (["{artifact}", "--against", "{other}"], "intermediate_size is 128, the checkpoint's 96"),
    ],
)
def test_errors_are_one_line(
    checkpoint: Path, artifact: Path, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(CONFIG | {"intermediate_size": 96}))
    shutil.copy(checkpoint / "model.safetensors", other)
    places = {"artifact": artifact, "checkpoint": checkpoint, "missing": tmp_path / "missing", "other": other}
    assert main(["verify", *(text.format(**places) for text in arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("qwench: error:") and err.count("\n") == 1
    assert message in err
