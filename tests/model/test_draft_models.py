"""Models with a draft, as users name them: whose tokens a draft must have, what is refused, and the same answers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from engine_models import FixedCosts
from test_cli_end_to_end import write_checkpoint

from qwench import LLM, SamplingParams
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError, ConfigError, QwenchError

PROMPT = "Hello, hello, hello"
PARAMS = [SamplingParams(max_tokens=40, temperature=t, seed=3, logprobs=1, ignore_eos=True) for t in (0.0, 0.8)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "model")


def resized(checkpoint: Path, folder: Path, num_tokens: int) -> Path:
    """The same with another number of rows in its embedding, which are padding."""
    shutil.copytree(checkpoint, folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.resize(table, (num_tokens, table.shape[1])).copy()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": num_tokens}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def answers(llm: LLM) -> list[Any]:
    outputs = [llm.generate(PROMPT, params)[0].outputs[0] for params in PARAMS]
    return [(output.token_ids, output.text, output.logprobs) for output in outputs]


@pytest.mark.parametrize("num_tokens", [272, 260, 300])
def test_the_same_answers_with_a_padded_vocabulary(checkpoint: Path, tmp_path: Path, num_tokens: int) -> None:
    draft = resized(checkpoint, tmp_path / "draft", num_tokens)
    with LLM(checkpoint, weights="int8") as plain, LLM(checkpoint, weights="int8", draft=draft) as drafting:
        speculation = drafting.engine.speculation
        assert speculation is not None and speculation.draft is not None
        speculation.costs, speculation.draft.costs = FixedCosts(1.0), FixedCosts(0.1, 0.005)
        assert answers(drafting) == answers(plain)
        metrics = drafting.metrics
        assert metrics.draft_steps > 0
        assert metrics.accepted_tokens >= metrics.drafted_tokens * (1.0 if num_tokens == 272 else 0.2)


def test_the_same_answers_with_adapters(checkpoint: Path, tmp_path: Path) -> None:
    """Which the draft hasn't got; neither do their prefixes mix."""
    folder, rng = tmp_path / "adapter", np.random.default_rng(0)
    folder.mkdir()
    tensors = {}
    for layer in range(2):
        module = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((8, 64), np.float32) / 8
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((64, 8), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    names, params = [None, "a", None, "a"], SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    with LLM(checkpoint, lora={"a": folder}) as plain, LLM(checkpoint, lora={"a": folder}, draft=checkpoint) as other:
        expected, found = ([o.outputs[0].token_ids for o in llm.generate([PROMPT] * 4, params, lora=names)]
                           for llm in (plain, other))  # fmt: skip
        assert found == expected and expected[0] != expected[1]


def test_what_no_draft_can_be(checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"another tokenizer: its token 6\d is b'b', the model's b'a'"):
        LLM(checkpoint, draft=other)
    (other / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="272 tokens and no tokenizer files, the model 272;"):
        LLM(checkpoint, draft=other)
    with pytest.raises(ConfigError, match="has 2000 tokens, the model 272"):
        LLM(checkpoint, draft=resized(checkpoint, tmp_path / "large", 2000))
    config = json.loads((checkpoint / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2Model"]}))
    with pytest.raises(ConfigError, match="continues no text"):
        LLM(checkpoint, draft=other)
    with pytest.raises(QwenchError, match="nowhere"):
        LLM(checkpoint, draft=tmp_path / "nowhere")


def test_a_damaged_draft(checkpoint: Path, tmp_path: Path) -> None:
    artifact = compile_checkpoint(checkpoint, tmp_path / "artifact", QwenchConfig(weights="int8"))
    weights = artifact.path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged"):
        LLM(checkpoint, draft=artifact.path)


def test_on_the_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", str(checkpoint), "-p", PROMPT, "--raw", "--max-new-tokens", "40", "--seed", "1", "--json"]
    reports = []
    for more in ([], ["--draft", str(checkpoint)]):
        assert main([*run, *more]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["token_ids"] == reports[1]["token_ids"]
    refused = {"nowhere": [str(tmp_path / "nowhere")], "leave out": [str(checkpoint), "--tensor-parallel-size", "2"]}
    for reason, options in refused.items():
        assert main([*run, "--draft", *options]) == 2
        assert reason in capsys.readouterr().err
