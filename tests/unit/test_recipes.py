"""Recipes and overrides: what they mean for each matrix, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import CONFIG, write_checkpoint

from qwench.artifact.artifact import derive_program, open_artifact
from qwench.checkpoint.spec import ModelSpec
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ConfigError
from qwench.program.recipes import RECIPES, read_overrides

SPEC = ModelSpec.from_config(CONFIG)


def formats(config: QwenchConfig) -> dict[str, str]:
    """Of each matrix, layer 0's as layers.0."""
    resolved = config.resolve(SPEC)
    program = derive_program(SPEC, resolved.format_of, resolved.activations)
    return {name: str(w.format) for name, w in program.weights.items() if not w.is_vector}


def test_a_recipe_gives_each_kind_of_layer_its_format() -> None:
    balanced = formats(QwenchConfig(recipe="balanced"))
    assert balanced["layers.0.gate_up.weight"] == balanced["layers.0.qkv.weight"] == "int4/g64"
    assert balanced["model.layers.0.mlp.down_proj.weight"] == "int8/g64"
    assert balanced["model.embed_tokens.weight"] == "int8/g64"
    assert set(formats(QwenchConfig(recipe="speed")).values()) == {"int4/g128"}
    assert set(formats(QwenchConfig(recipe="accuracy")).values()) == {"int8/g32"}


def test_options_go_before_the_recipe_and_resolving_twice_changes_nothing() -> None:
    given = QwenchConfig(recipe="balanced", group_size=128, overrides={"*.o_proj.weight": "bf16"})
    chosen = formats(given)
    assert chosen["model.layers.0.self_attn.o_proj.weight"] == "bf16"
    assert chosen["model.layers.0.mlp.down_proj.weight"] == "int8/g128"
    resolved = given.resolve(SPEC)
    assert resolved.resolve(SPEC) == resolved and QwenchConfig.from_dict(resolved.to_saved()).resolve(SPEC) == resolved
    assert QwenchConfig(recipe="speed", weights="int8").resolve(SPEC).head_weights == "int8"
    assert QwenchConfig(recipe="accuracy", activations="int8").resolve(SPEC).activations == "int8"


@pytest.mark.parametrize(
    ("options", "activations"),
    [
        ({}, "fp32"),
        ({"activations": "bf16"}, "bf16"),
        ({"weights": "int8"}, "int8"),
        ({"recipe": "accuracy"}, "int16"),
        ({"recipe": "accuracy", "weights": "bf16"}, "fp32"),
        ({"recipe": "balanced"}, "int8"),
        ({"weights": "int4", "activations": "int16"}, "int16"),
        ({"head_weights": "int8", "activations": "int16"}, "int16"),
        ({"overrides": {"*.down_proj.weight": "int8"}}, "int8"),
    ],
)
def test_what_weights_are_multiplied_by(tmp_path: Path, options: dict[str, Any], activations: str) -> None:
    compile_checkpoint(write_checkpoint(tmp_path / "in"), tmp_path / "out", QwenchConfig(target="reference", **options))
    artifact = open_artifact(tmp_path / "out")
    kinds = {buffer.format.kind for buffer in artifact.program.buffers.values()} - {"fp32"}
    assert artifact.config.activations == activations and kinds == {activations} - {"fp32"}


def test_the_last_match_counts() -> None:
    chosen = formats(
        QwenchConfig(weights="int4", overrides={"model.layers.*": "int8", "*.down_proj.weight": "int4/g32"})
    )
    assert chosen["layers.0.qkv.weight"] == "int8/g128"
    assert chosen["model.layers.0.mlp.down_proj.weight"] == "int4/g32"
    assert chosen["model.embed_tokens.weight"] == "int8/g128"


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_artifact_keeps_what_was_chosen(tmp_path: Path, recipe: str) -> None:
    config = QwenchConfig(target="reference", recipe=recipe, overrides={"*.0.self_attn.o_proj.weight": "int8/g32"})
    compile_checkpoint(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "out", config)
    artifact = open_artifact(tmp_path / "out")
    assert artifact.config.overrides and artifact.config.recipe == recipe
    assert str(artifact.program.weights["model.layers.0.self_attn.o_proj.weight"].format) == "int8/g32"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"*.down_proj.weight": "int3"}, r"the format 'int3'; allowed: bf16, int8, int4, and int8 or int4 with /g32"),
        ({"*.down_proj.weight": "int8/g100"}, "format 'int8/g100'"),
        ({"*.down_proj.weight": "int16/g64"}, "format 'int16/g64'"),
        ({"*.down_proj.weight": "fp32"}, "format 'fp32'"),
        ({"*.down_proj.weight": 8}, "format 8"),
        ({"": "int8"}, "pattern ''"),
        (["int8"], "must map patterns"),
    ],
)
def test_wrong_overrides(overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QwenchConfig(overrides=overrides)


def test_overrides_that_fit_no_model() -> None:
    with pytest.raises(ConfigError, match=r"'\*\.experts\.\*', which matches no matrix; there is 'model\.layers\.0"):
        QwenchConfig(overrides={"*.experts.*": "int8"}).resolve(SPEC)
    with pytest.raises(ConfigError, match=r"multiplied as one .*q_proj.weight int8.*k_proj.weight none"):
        formats(QwenchConfig(overrides={"*.q_proj.weight": "int8"}))


def test_overrides_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps({"*.down_proj.weight": "int8"}))
    assert read_overrides(path) == {"*.down_proj.weight": "int8"}
    for text, message in (("{", "are not JSON"), ("[1]", "must be a JSON object"), ('{"a": "x"}', "format 'x'")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_overrides(path)
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        read_overrides(tmp_path / "absent.json")
