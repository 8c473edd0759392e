"""`rope_scaling` as an option: what it may be, what it makes of a model, and that the artifact keeps it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import CONFIG, write_checkpoint

from qwench.artifact.artifact import open_artifact
from qwench.checkpoint.spec import ModelSpec
from qwench.cli.main import main
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ConfigError

YARN_README = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def spec_of(**changes: Any) -> ModelSpec:
    return ModelSpec.from_config(CONFIG | {"max_position_embeddings": 32768} | changes)


def test_three_ways_to_say_the_same() -> None:
    said = ("yarn:4", '{"rope_type": "yarn", "factor": 4.0}', {"rope_type": "yarn", "factor": 4.0})
    configs = {str(QwenchConfig(rope_scaling=way).rope_scaling) for way in said}
    assert configs == {"{'rope_type': 'yarn', 'factor': 4.0}"}


@pytest.mark.parametrize("value", ["yarn:", "yarn:four", "{yarn", 4, {"factor": 2.0}, ["yarn", 4]])
def test_what_is_no_scaling(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"rope_scaling is .* it must be TYPE:FACTOR such as 'yarn:4'"):
        QwenchConfig(rope_scaling=value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("yarn:-1", "factor must be a positive number, but is -1"),
        ("ntk:4", "rope_type is 'ntk'; supported: default, linear, dynamic"),
        ("linear", "factor is missing"),
        ("longrope:4", "short_factor must be a list of 8"),
        ("llama3:8", "low_freq_factor is missing"),
    ],
)
def test_complaints_about_its_content(value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"rope_scaling: {words}"):
        QwenchConfig(rope_scaling=value).resolve(spec_of())


def test_the_option_is_what_the_readme_tells_people_to_write() -> None:
    """Qwen2's model cards put YaRN into config.json and leave max_position_embeddings at 32,768."""
    written = spec_of(rope_scaling=YARN_README)
    for option in ("yarn:4", YARN_README):
        assert spec_of().with_rope_scaling(QwenchConfig(rope_scaling=option).rope_scaling) == written  # type: ignore[arg-type]
    assert written.max_position_embeddings == 131072
    assert QwenchConfig().resolve(written).max_seq_len == 131072
    assert QwenchConfig(rope_scaling="yarn:4").resolve(spec_of()).max_seq_len == 131072
    assert QwenchConfig(rope_scaling="yarn:4", max_seq_len=50_000).resolve(spec_of()).max_seq_len == 50_000


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_the_context_grows_by_the_factor(kind: str) -> None:
    assert QwenchConfig(rope_scaling=f"{kind}:2").resolve(spec_of()).max_seq_len == 65536


def test_the_original_length_is_remembered() -> None:
    """Scaling anew starts from what the model was trained for, not from what an older scaling made of it."""
    doubled = spec_of(max_position_embeddings=65536, rope_scaling=YARN_README | {"factor": 2.0})
    again = doubled.with_rope_scaling({"rope_type": "yarn", "factor": 4.0})
    assert again.rope.parameters["original_max_position_embeddings"] == 32768
    assert again.max_position_embeddings == 131072
    assert doubled.with_rope_scaling({"rope_type": "default"}).rope.rope_type == "default"


def test_types_by_length_are_decided_when_compiled() -> None:
    spec = spec_of()
    for length, expected in ((1000, 1000.0), (None, 131072.0)):
        config = QwenchConfig(rope_scaling="dynamic:4", max_seq_len=length).resolve(spec)
        assert config.model(spec).rope.parameters["seq_len"] == expected
    plain = QwenchConfig(max_seq_len=1000).resolve(spec)
    assert plain.model(spec) == spec


@pytest.mark.parametrize(
    "scaling",
    [
        "yarn:4",
        "dynamic:2",
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.5] * 8, "factor": 2.0},
    ],
)
def test_the_artifact_keeps_it(scaling: Any, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    compile_checkpoint(source, tmp_path / "out", QwenchConfig(rope_scaling=scaling, target="reference"))
    artifact = open_artifact(tmp_path / "out")
    config = QwenchConfig(rope_scaling=scaling)
    assert artifact.config.rope_scaling == config.rope_scaling
    expected = ModelSpec.from_config(CONFIG).with_rope_scaling(config.rope_scaling)  # type: ignore[arg-type]
    assert artifact.program.spec == dataclasses.replace(expected)
    assert artifact.config.max_seq_len == expected.max_position_embeddings > 128


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_checkpoint(tmp_path / "source")
    command = ["compile", str(source), "-o", str(tmp_path / "out"), "--target", "reference", "--json"]
    assert main([*command, "--rope-scaling", "yarn:2"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["max_seq_len"] == 256
    assert main([*command, "--overwrite", "--rope-scaling", "yarn"]) == 0  # factor 1, as transformers takes it
    assert main([*command, "--overwrite", "--rope-scaling", "su:2"]) == 2
    assert "rope_type is 'su'" in capsys.readouterr().err
