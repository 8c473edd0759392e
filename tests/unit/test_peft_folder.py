"""Adapters' folders from strangers: what is honoured, and a typed error by name for everything else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from qwench.errors import CheckpointError, QwenchError
from qwench.lora.peft_folder import adapter_identity, read_adapter

SHAPES = {
    "model.embed_tokens.weight": (50, 16),
    "model.layers.0.self_attn.q_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 40),
    "lm_head.weight": (50, 16),
}
Q, DOWN = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.0.mlp.down_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
Tensors = dict[str, npt.NDArray[Any]]


def tensors(rank: int = 4) -> Tensors:
    rng = np.random.default_rng(0)
    shapes = {f"{Q}.lora_A.weight": (rank, 16), f"{Q}.lora_B.weight": (24, rank),
              f"{DOWN}.lora_A.weight": (rank, 40), f"{DOWN}.lora_B.weight": (16, rank)}  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, values: Tensors | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors() if values is None else values, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "scales"),
    [({}, (2, 2)), ({"use_rslora": True}, (4, 4)), ({"alpha_pattern": {"q_proj": 2}}, (0.5, 2)),
     ({"alpha_pattern": {"layers.0.mlp.down_proj": 1, "proj": 100}}, (2, 0.25)), ({"lora_alpha": 6.5}, (1.625, 1.625)),
     ({"init_lora_weights": "gaussian", "lora_dropout": 0.1, "modules_to_save": None, "corda_config": None}, (2, 2)),
     ({"megatron_config": {}, "a_field_of_tomorrow": False, "layer_replication": None, "use_dora": False}, (2, 2))],
)  # fmt: skip
def test_what_is_honoured(tmp_path: Path, config: dict[str, Any], scales: tuple[float, float]) -> None:
    adapter = read_adapter(write(tmp_path / "a", **config), SHAPES)
    assert tuple(pair.scale for pair in (adapter.pairs[name] for name in list(SHAPES)[1:3])) == scales
    assert adapter.max_rank == 4 and adapter.num_bytes == 2 * (4 * 40 + 4 * 56)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"use_dora": True}, "use_dora is True"), ({"bias": "all"}, "bias is 'all'"),
     ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
     ({"layer_replication": [[0, 1]]}, "layer_replication"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
     ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"lora_bias": True}, "lora_bias"),
     ({"a_field_of_tomorrow": "on"}, "a_field_of_tomorrow is 'on'"), ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
     ({"init_lora_weights": "pissa_niter_4"}, "changes the base model too"),
     ({"init_lora_weights": ["x"]}, "changes the base model too"),
     ({"r": 0}, "r must be a positive integer"), ({"r": "8"}, "r must be"), ({"lora_alpha": "x"}, "lora_alpha must be"),
     ({"lora_alpha": -1}, "lora_alpha must be"), ({"lora_alpha": 1e999}, "lora_alpha must be"),
     ({"r": 8}, "has rank 4, but r and rank_pattern say 8"), ({"use_rslora": 1}, "use_rslora must be"),
     ({"rank_pattern": {"q_proj": 3}}, "say 3"), ({"rank_pattern": 3}, "rank_pattern is 3"),
     ({"alpha_pattern": {"(a+)+$": 3}}, "no other patterns"), ({"alpha_pattern": {"q_proj": None}}, "is missing")],
)  # fmt: skip
def test_what_is_refused_by_its_name(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_adapter(write(tmp_path / "a", **config), SHAPES)


def _without(name: str) -> Tensors:
    return {key: value for key, value in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "holds no tensors"), (_without(f"{Q}.lora_B.weight"), "only half of the LoRA"),
     (tensors() | {f"{Q}.lora_magnitude_vector": np.ones(24, np.float32)}, "lora_magnitude_vector"),
     (tensors() | {Q.replace(".0.", ".7.") + ".lora_A.weight": np.ones((4, 16), np.float32)}, "layers.7"),
     (tensors() | {f"{Q}.lora_A.weight": np.ones((4, 17), np.float32)}, r"shape \[24, 17\].*another model's"),
     (tensors() | {f"{Q}.lora_B.weight": np.ones((24, 5), np.float32)}, "has rank 4, but B 5"),
     (tensors() | {f"{Q}.lora_A.weight": np.full((4, 16), np.nan, np.float32)}, "NaN or infinite"),
     (tensors() | {f"{Q}.lora_A.weight": np.ones((4, 16), np.int8)}, "is I8"),
     (tensors() | {f"{Q}.lora_A.weight": np.ones(64, np.float32)}, r"of shape \[64\]"),
     (tensors(300), "up to 256"),
     (tensors() | {"base_model.model.model.embed_tokens.base_layer.weight": np.ones((50, 16), np.float32)},
      "a whole matrix, .* save_embedding_layers=False"),
     ({f"{Q}.lora_embedding_A": np.ones((4, 16), np.float32)}, "of the kind for another module")],
)  # fmt: skip
def test_tensors_that_are_no_adapter_of_this_model(tmp_path: Path, values: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_adapter(write(tmp_path / "a", values), SHAPES)


def test_the_embedding_s_halves_are_those_of_the_transposed_matrix(tmp_path: Path) -> None:
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    a, b = np.arange(200, dtype=np.float32).reshape(4, 50), np.arange(64, dtype=np.float32).reshape(16, 4)
    adapter = read_adapter(write(tmp_path / "a", {f"{name}A": a, f"{name}B": b}), SHAPES)
    np.testing.assert_array_equal(adapter.pairs["model.embed_tokens.weight"].delta(), 2 * (b @ a).T)


def test_names_with_the_adapter_s_own_in_between(tmp_path: Path) -> None:
    values = {key.replace(".weight", ".default.weight"): value for key, value in tensors().items()}
    named, plain = write(tmp_path / "a", values), write(tmp_path / "b")
    assert read_adapter(named, SHAPES).digest == read_adapter(plain, SHAPES).digest


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path, SHAPES)
    (tmp_path / "adapter_config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="can't be read"):
        read_adapter(tmp_path, SHAPES)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_adapter(tmp_path, SHAPES)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path, SHAPES)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled weights can run code"):
        read_adapter(tmp_path, SHAPES)
    with pytest.raises(CheckpointError, match="is no LoRA adapter"):
        adapter_identity(str(tmp_path))


def test_the_digest_is_of_the_values(tmp_path: Path) -> None:
    one = read_adapter(write(tmp_path / "a"), SHAPES)
    assert one.digest == read_adapter(write(tmp_path / "b", lora_dropout=0.5), SHAPES).digest
    assert one.digest != read_adapter(write(tmp_path / "c", lora_alpha=9), SHAPES).digest
    values = tensors()
    values[f"{Q}.lora_B.weight"][0, 0] += 1
    assert one.digest != read_adapter(write(tmp_path / "d", values), SHAPES).digest


def test_damaged_files_are_refused_in_time(tmp_path: Path) -> None:
    """Bytes of either file changed, cut or added: an error that is ours, or an adapter; never anything else."""
    rng, folder = np.random.default_rng(0), write(tmp_path / "a")
    whole = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    header = 8 + int.from_bytes(whole["adapter_model.safetensors"][:8], "little")
    refused, start = 0, time.monotonic()
    for _ in range(600):
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        name = str(rng.choice(list(whole)))
        data = bytearray(whole[name])
        limit = header if name.endswith("safetensors") else len(data)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(limit))] = int(rng.integers(256))
        if rng.random() < 0.2:
            del data[int(rng.integers(len(data))) :]
        (folder / name).write_bytes(data)
        try:
            read_adapter(folder, SHAPES)
        except QwenchError:
            refused += 1
    assert refused > 300 and time.monotonic() - start < 60
