"""`qwench plan` against what compiling and loading really take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import CONFIG, write_checkpoint

from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.runtime.loading import choose_num_blocks, memory_budget


@pytest.mark.parametrize("window", [None, 24])
def test_the_plan_is_what_loading_counts(
    window: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sliding = {} if window is None else {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    source = write_checkpoint(tmp_path / "source", **sliding)
    options = {"weights": "int8", "group_size": 32, "max_seq_len": 100, "prefill_chunk_size": 16, "memory": 2_000_000}
    artifact = compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", **options))
    for tensors in source.glob("*.safetensors"):
        tensors.unlink()  # the plan is made of config.json alone
    command = ["plan", str(source), "--target", "reference", "--memory", "2000000B", "--json"]
    for name in ("weights", "group_size", "max_seq_len", "prefill_chunk_size"):
        command += [f"--{name.replace('_', '-')}", str(options[name])]
    assert main(command) == 0
    plan = json.loads(capsys.readouterr().out)
    budget = memory_budget(artifact, 2_000_000)
    assert (plan["weights_bytes"], plan["working_bytes"]) == (budget.weights, budget.working)
    block = artifact.config.cache(1).block_bytes(artifact.program)
    fits = (2_000_000 - plan["weights_bytes"] - plan["working_bytes"]) // plan["cache_bytes_per_sequence"]
    assert plan["num_sequences"] == fits > 0
    least = plan["total_bytes"] - 1
    assert choose_num_blocks(artifact, memory=plan["total_bytes"]) * block == plan["cache_bytes_per_sequence"]
    with pytest.raises(Exception, match="the model needs"):
        choose_num_blocks(artifact, memory=least)


def test_of_an_artifact_nothing_is_planned_or_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its config.json would do for a plan, but of other weights than it has."""
    compile_checkpoint(write_checkpoint(tmp_path / "source"), tmp_path / "made", QwenchConfig(target="reference"))
    for command in (["plan"], ["compile", "-o", str(tmp_path / "again")]):
        assert main([*command, str(tmp_path / "made")]) == 2
        assert "is an artifact, compiled already; give the checkpoint" in capsys.readouterr().err


def test_a_plan_with_a_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, small = write_checkpoint(tmp_path / "source"), write_checkpoint(tmp_path / "small", rms_norm_eps=1e-5)
    options = {"weights": "int8", "group_size": 32, "max_seq_len": 100, "prefill_chunk_size": 16}
    model = compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", **options))
    draft = compile_checkpoint(small, tmp_path / "draft", QwenchConfig(target="reference", weights="int8"))
    command = ["plan", str(source), "--target", "reference", "--draft", str(small)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    budget = memory_budget(model, draft=draft)
    assert (plan["weights_bytes"], plan["working_bytes"]) == (budget.weights, budget.working)
    assert choose_num_blocks(model, memory=plan["total_bytes"], draft=draft) == model.config.blocks_of_one_sequence(
        model.program.spec
    )
    with pytest.raises(Exception, match="the model with its draft needs"):
        choose_num_blocks(model, memory=plan["total_bytes"] - 1, draft=draft)
    assert main(command) == 0
    assert f"the draft {small}"[:60] in capsys.readouterr().out.replace("\n", "")
    assert main([*command, "--tensor-parallel-size", "2"]) == 2


def test_seven_billion_at_131072_within_24_gib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By arithmetic: int4 with a scale per 128 is 4.25 bits a weight, embedding and head 8.25; the cache of a token is
    2 * 28 layers * 4 heads * 128 * 2 bytes and as many scales of 4 bytes as it has heads."""
    shape = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | shape))
    command = ["plan", str(tmp_path), "--weights", "int4", "--rope-scaling", "yarn:4"]
    assert main([*command, "--json", "--memory", "24GiB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["config"]["max_seq_len"] == 131072
    layers = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert plan["weights_bytes"] == pytest.approx(layers * 4.125 / 8 + 2 * 152064 * 3584 * 8.125 / 8, rel=1e-3)
    assert plan["cache_bytes_per_sequence"] == 131072 * 2 * 28 * 4 * (128 * 2 + 4)
    assert plan["total_bytes"] < 24 * 2**30 and plan["num_sequences"] >= 1
    assert main(command) == 0
    assert "one sequence of 131072 tokens, int16" in capsys.readouterr().out
