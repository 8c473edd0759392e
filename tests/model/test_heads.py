"""Bodies and classifiers against transformers in fp32: hidden states, scores, labels, one direction and both."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers_parity import left_padded, load_truth, random_prompts, write_checkpoint

from qwench import (
    LLM,
    QwenchForCausalLM,
    QwenchForSequenceClassification,
    QwenchForTokenClassification,
    QwenchModel,
    SamplingParams,
)
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import CheckpointError, ConfigError, RequestError

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
HEADS: dict[str, tuple[Any, Any]] = {
    "body": (AutoModel, QwenchModel),
    "sequence": (AutoModelForSequenceClassification, QwenchForSequenceClassification),
    "tokens": (AutoModelForTokenClassification, QwenchForTokenClassification),
}
CONFIGS: list[dict[str, Any]] = [
    {"pad_token_id": 0},
    {"pad_token_id": 0, "model_type": "qwen3", "head_dim": 24, "num_labels": 1},
    {"pad_token_id": 0, "num_labels": 7, "num_attention_heads": 6, "hidden_size": 96, "intermediate_size": 130},
    {"pad_token_id": 0, "num_labels": 70, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 9,
     "max_window_layers": 1, "tie_word_embeddings": True},
]  # fmt: skip
DIRECTIONS = [True, False]


def pair(folder: Path, head: str, index: int, target: str, is_causal: bool = True, **options: Any) -> tuple[Any, Any]:
    """transformers' model of a random checkpoint, and ours."""
    auto, ours = HEADS[head]
    config = CONFIGS[index] | ({} if is_causal else {"use_sliding_window": False, "is_causal": False})
    write_checkpoint(folder, seed=index, kind=auto, **config)
    truth = load_truth(folder, kind=auto)
    return truth, ours.from_pretrained(folder, qwench_config={"target": target, **options})


def padded(truth: Any, side: str) -> dict[str, torch.Tensor]:
    """Rows of unequal lengths, one of them longer than a tile of attention."""
    inputs = left_padded(random_prompts(3, truth.config.vocab_size, [1, 40, 100, 9]))
    return inputs if side == "left" else {name: tensor.flip(1) for name, tensor in inputs.items()}


@pytest.mark.parametrize("is_causal", DIRECTIONS, ids=["causal", "bidirectional"])
@pytest.mark.parametrize("index", range(len(CONFIGS)))
@pytest.mark.parametrize("head", HEADS)
def test_outputs_are_transformers(head: str, index: int, is_causal: bool, best_target: str, tmp_path: Path) -> None:
    target = "reference" if index == 1 else best_target
    truth, model = pair(tmp_path, head, index, target, is_causal)
    for side in ("left", "right"):
        inputs = padded(truth, side)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = truth(**inputs, output_hidden_states=True)
        got = model(**inputs, output_hidden_states=True)
        assert type(got) is type(expected)
        for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)
        if head == "sequence":
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
        elif head == "tokens":
            torch.testing.assert_close(got.logits[real], expected.logits[real], rtol=1e-4, atol=1e-4)
        plain = model(**inputs, return_dict=False)
        assert isinstance(plain, tuple) and len(plain) == 1
    assert model.engine.scheduler.pool.num_free == model.engine.scheduler.pool.num_blocks


@pytest.mark.parametrize("head", ["sequence", "tokens"])
def test_losses(head: str, best_target: str, tmp_path: Path) -> None:
    truth, model = pair(tmp_path, head, 2, best_target)
    inputs = padded(truth, "left")
    shape = inputs["input_ids"].shape if head == "tokens" else (4,)
    labels = torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(0))
    if head == "tokens":
        labels[inputs["attention_mask"] == 0] = -100
    with torch.no_grad():
        expected = truth(**inputs, labels=labels).loss
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_causal", DIRECTIONS, ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [{"kv_cache": "bf16"}, {"kv_cache": "int8"}, {"activations": "bf16"}, {"weights": "int8"}, {"attn_impl": "eager"}],
    ids=str,
)
def test_every_cache_and_format(options: dict[str, Any], is_causal: bool, best_target: str, tmp_path: Path) -> None:
    truth, model = pair(tmp_path, "body", 0, best_target, is_causal, **options)
    inputs = padded(truth, "left")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = truth(**inputs).last_hidden_state[real]
    got = model(**inputs).last_hidden_state[real]
    cosines = torch.nn.functional.cosine_similarity(got, expected)
    assert cosines.min() > (0.99 if "weights" in options else 0.9985)


def test_the_head_is_not_rounded(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a", kind=AutoModelForSequenceClassification, num_labels=3)
    weights = compile_checkpoint(folder, tmp_path / "b", QwenchConfig(weights="int4")).program.weights
    assert str(weights["score.weight"].format) == "bf16" and str(weights["layers.0.qkv.weight"].format) == "int4/g128"


def test_the_engine_says_the_same(best_target: str, tmp_path: Path) -> None:
    """Chunks of 16, all prompts at once: what LLM gives is what transformers gives of each alone."""
    ids = [prompt.tolist() for prompt in random_prompts(5, 300, [1, 16, 33, 100])]
    for head in HEADS:
        truth, _ = pair(tmp_path / head, head, 2, best_target)
        with LLM(tmp_path / head, prefill_chunk_size=16) as llm, torch.no_grad():
            each = [truth(torch.tensor([row])) for row in ids]
            if head == "body":
                for pooling, pick in (("last", lambda x: x[0, -1]), ("first", lambda x: x[0, 0]),
                                      ("mean", lambda x: x[0].mean(0))):  # fmt: skip
                    got = torch.from_numpy(llm.embed(ids, pooling=pooling, normalize=False))  # type: ignore[arg-type]
                    expected = torch.stack([pick(output.last_hidden_state) for output in each])
                    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            elif head == "sequence":
                raw = torch.from_numpy(llm.classify(ids, activation=False))
                torch.testing.assert_close(raw, torch.cat([o.logits for o in each]), rtol=1e-4, atol=1e-4)
                shares = torch.from_numpy(llm.classify(ids))
                torch.testing.assert_close(shares, torch.cat([o.logits.softmax(-1) for o in each]), rtol=0, atol=1e-4)
            else:
                for rows, output in zip(llm.classify_tokens(ids, activation=False), each, strict=True):
                    torch.testing.assert_close(torch.from_numpy(rows), output.logits[0], rtol=1e-4, atol=1e-4)


def test_both_directions_in_the_engine(best_target: str, tmp_path: Path) -> None:
    """The same batch in other company: whole prompts, whatever waits beside them, with the bits of each alone."""
    truth, _ = pair(tmp_path, "body", 2, best_target, is_causal=False)
    ids = [prompt.tolist() for prompt in random_prompts(5, 300, [60, 5, 64, 33, 64, 1])]
    with LLM(tmp_path, prefill_chunk_size=64, target=best_target) as llm:
        together = llm.embed(ids, pooling="mean", normalize=False)
        again = [llm.embed([row], pooling="mean", normalize=False)[0] for row in ids]
        with torch.no_grad():
            expected = torch.stack([truth(torch.tensor([row])).last_hidden_state[0].mean(0) for row in ids])
        torch.testing.assert_close(torch.from_numpy(together), expected, rtol=1e-4, atol=1e-4)
        assert all((a == b).all() for a, b in zip(together, again, strict=True))
        with pytest.raises(RequestError, match=r"65 tokens, and bidirectional .* at most 64.* prefill_chunk_size"):
            llm.embed([ids[0], [1] * 65])
        with pytest.raises(RequestError, match="can't continue a text; it gives embeddings"):
            llm.generate([ids[0]], SamplingParams(max_tokens=1))


def test_an_option_makes_a_model_bidirectional(best_target: str, tmp_path: Path) -> None:
    """As gte-Qwen2's code does and its config.json doesn't say."""
    write_checkpoint(tmp_path, kind=AutoModel, **CONFIGS[0])
    truth = load_truth(tmp_path, kind=AutoModel)
    truth.config.is_causal = False
    ids = torch.randint(1, 300, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = truth(ids).last_hidden_state
    assert main(["compile", str(tmp_path), "-o", str(tmp_path / "out"), "--bidirectional"]) == 0
    model = QwenchModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    causal = QwenchModel.from_pretrained(tmp_path, qwench_target=best_target)(ids).last_hidden_state
    assert (causal - expected).abs().max() > 0.1


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("architecture", ["Qwen2Model", "Qwen2ForCausalLM"])
def test_tensors_with_and_without_their_prefix(prefix: str, architecture: str, tmp_path: Path) -> None:
    """A body may go by its language model's name if sentence-transformers saved it, or if its head is tied."""
    write_checkpoint(tmp_path, kind=AutoModelForCausalLM, tie_word_embeddings=architecture == "Qwen2ForCausalLM")
    tensors = load_file(tmp_path / "model.safetensors")
    body = {prefix + name.removeprefix("model."): t for name, t in tensors.items() if name != "lm_head.weight"}
    save_file(body, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = load_truth(tmp_path, kind=AutoModel)(ids).last_hidden_state
    torch.testing.assert_close(
        QwenchModel.from_pretrained(tmp_path)(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head", ["sequence", "tokens"])
def test_heads_with_and_without_bias(head: str, bias: bool, tmp_path: Path) -> None:
    """Beside transformers' hidden states, times the head by hand: its sequence classifier has no bias."""
    auto, ours = HEADS[head]
    write_checkpoint(tmp_path, kind=auto, pad_token_id=0, num_labels=3)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("score.bias", None)
    if bias:
        tensors["score.bias"] = torch.tensor([3.0, -2.0, 0.5])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        states = load_truth(tmp_path, kind=AutoModel)(ids).last_hidden_state
    expected = states @ tensors["score.weight"].float().T + tensors.get("score.bias", torch.zeros(3))
    got = ours.from_pretrained(tmp_path)(ids).logits
    torch.testing.assert_close(got, expected if head == "tokens" else expected[:, -1], rtol=1e-4, atol=1e-4)


def test_what_is_refused(tmp_path: Path) -> None:
    folders = {}
    for head, (auto, _) in HEADS.items():
        folders[head] = write_checkpoint(tmp_path / head, kind=auto, num_labels=2)
    with pytest.raises(ConfigError, match="QwenchForCausalLM runs models whose head is 'causal_lm', and this one's is"):
        QwenchForCausalLM.from_pretrained(folders["body"])
    with pytest.raises(ConfigError, match="load it with QwenchModel"):
        QwenchForSequenceClassification.from_pretrained(folders["body"])
    two_rows = torch.ones((2, 3), dtype=torch.long)
    model = QwenchForSequenceClassification.from_pretrained(folders["sequence"])
    model.config.pad_token_id = None
    with pytest.raises(RequestError, match="names no pad_token_id"):
        model(two_rows)
    with pytest.raises(RequestError, match="output_attentions is not available"):
        model(two_rows[:1], output_attentions=True)
    with LLM(folders["body"]) as llm:
        for ask, match in ((lambda: llm.generate([[1]]), "no language model's head"),
                           (lambda: llm.classify([[1]]), "embed gives embeddings"),
                           (lambda: llm.embed([[1]], dimensions=65), "from 1 to 64"),
                           (lambda: llm.embed([[1]], prompt_name="query"), "no prompt 'query'"),
                           (lambda: llm.embed([[1]], pooling="all"), "no embedding of a prompt")):  # fmt: skip
            with pytest.raises(RequestError, match=match):
                ask()
    with LLM(folders["sequence"]) as llm:
        assert llm.labels == ("LABEL_0", "LABEL_1")
        assert llm.embed([[1, 2]]).shape == (1, 64)
        with pytest.raises(RequestError, match="2 labels gives no score"):
            llm.score("a", ["b"])
        with pytest.raises(RequestError, match="classify does what it can"):
            llm.classify_tokens([[1]])


@pytest.mark.parametrize("name", ["Qwen2ForRewardModel", "Qwen2ForProcessRewardModel"])
@pytest.mark.parametrize("options", [{}, {"activations": "bf16"}, {"weights": "int8"}], ids=str)
def test_heads_of_two_layers(name: str, options: dict[str, str], best_target: str, tmp_path: Path) -> None:
    """Qwen2.5-Math-RM's and -PRM's, whose code gives the number of labels: config.json may say another one."""
    num_labels, texts = 1 if name == "Qwen2ForRewardModel" else 2, [[5, 6, 7], [9] * 30]
    folder = write_checkpoint(tmp_path, kind=AutoModel)
    score = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, num_labels)).bfloat16()
    body = load_truth(folder, kind=AutoModel)
    with torch.no_grad():
        expected = [score.float()(body(torch.tensor([ids])).last_hidden_state)[0] for ids in texts]
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"score.{part}": value.bfloat16() for part, value in score.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    more = {"architectures": [name], "num_labels": 5, "auto_map": {"AutoModel": f"modeling_qwen2_rm.{name}"}}
    (folder / "config.json").write_text(json.dumps(config | more))
    tolerance = 1e-4 if not options else 0.05
    for target in ("reference", best_target):
        with LLM(folder, target=target, **options) as llm:
            assert len(llm.labels) == num_labels
            if num_labels == 1:
                got = [llm.classify(texts, activation=False)]
                expected_here = [torch.stack([rows[-1] for rows in expected])]
            else:
                got, expected_here = llm.classify_tokens(texts, activation=False), expected
            for ours, theirs in zip(got, expected_here, strict=True):
                torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architectures": ["Qwen2ForRanking"]}, "qwench reads Qwen2ForCausalLM, Qwen2Model"),
        ({"architectures": ["Qwen2ForRewardModel"]}, r"lacks tensor 'score\.0\.weight' of shape \[64, 64\]"),
        ({"architectures": ["Qwen2ForCausalLM"]}, r"lacks tensor 'lm_head.weight'"),
        ({"architectures": ["Qwen2Model"]}, r"holds tensor 'score.weight', which a model of this config"),
        ({"id2label": {"0": "a"}, "num_labels": 1}, r"'score.weight' .* has shape \[2, 64\], but config.json asks for"),
        ({"is_causal": False, "use_sliding_window": True, "sliding_window": 4, "layer_types": None,
          "max_window_layers": 0}, "bidirectional attention with sliding windows"),
    ],
)  # fmt: skip
def test_wrong_heads(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, kind=AutoModelForSequenceClassification)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises((CheckpointError, ConfigError), match=match):
        LLM(tmp_path)


@pytest.mark.parametrize("command", ["run", "bench", "verify", "eval"])
def test_commands_that_need_a_language_model(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "body", kind=AutoModel, vocab_size=2048)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEFAULT_MODEL / name, folder / name)
    more = {"run": ["-p", "x"], "verify": ["--against", str(folder)]}.get(command, [])
    assert main(["compile", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert main([command, str(tmp_path / "out"), *more]) == 2
    assert "no language model's head" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="ranks need Linux")
def test_ranks_give_the_same_bits(tmp_path: Path) -> None:
    ids = [prompt.tolist() for prompt in random_prompts(5, 300, [60, 5, 100])]
    scores, states = [], []
    for head, is_causal in (("sequence", True), ("body", False)):
        auto, _ = HEADS[head]
        config = CONFIGS[1] | {"num_labels": 70, "is_causal": is_causal}
        folder = write_checkpoint(tmp_path / head, kind=auto, **config)
        for size in (1, 2):
            with LLM(folder, tensor_parallel_size=size, num_threads=size) as llm:
                if head == "sequence":
                    scores.append(llm.classify(ids))
                states.append(llm.embed(ids, pooling="mean"))
    assert (scores[0] == scores[1]).all()
    assert (states[0] == states[1]).all() and (states[2] == states[3]).all()
