"""Checkpoints: tensors as they were written, and a typed error that names the tensor for everything that is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoint import CONFIG, tiny_tensors, write_checkpoint

from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.spec import ModelSpec
from qwench.checkpoint.weights import SafetensorsCheckpoint
from qwench.errors import CheckpointError
from qwench.program.models import source_shapes

Q = "model.layers.1.self_attn.q_proj.weight"


def open_checked(folder: Path) -> SafetensorsCheckpoint:
    checkpoint = SafetensorsCheckpoint(folder)
    checkpoint.check(source_shapes(ModelSpec.from_folder(folder)))
    return checkpoint


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_every_tensor_as_written(tmp_path: Path, dtype: Any, num_shards: int) -> None:
    tensors = tiny_tensors(dtype=dtype, tied=False)
    checkpoint = open_checked(write_checkpoint(tmp_path, tensors, num_shards, tie_word_embeddings=False))
    assert set(checkpoint.entries) == set(tensors)
    for name, tensor in tensors.items():
        array = checkpoint.read(name)
        assert array.dtype == tensor.dtype and not array.flags.writeable
        np.testing.assert_array_equal(array, tensor)
        checkpoint.release(name)


def test_a_tensor_at_an_odd_offset(tmp_path: Path) -> None:
    tensors = tiny_tensors(dtype=np.float32)
    write_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes(struct.pack("<Q", length + 1) + content[8 : 8 + length] + b" " + content[8 + length :])
    checkpoint = open_checked(tmp_path)
    assert checkpoint.read(Q).flags.aligned
    np.testing.assert_array_equal(checkpoint.read(Q), tensors[Q])


def change(tensors: dict[str, np.ndarray], **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    merged = tensors | changes
    return {name: tensor for name, tensor in merged.items() if tensor is not None}


BAD_TENSORS: dict[str, tuple[dict[str, np.ndarray | None], dict[str, Any], str]] = {
    "missing": ({Q: None}, {}, f"lacks tensor '{Q}' of shape [64, 64]"),
    "missing head": ({}, {"tie_word_embeddings": False}, "lacks tensor 'lm_head.weight'"),
    "extra": ({"score.weight": np.zeros((2, 64), np.float32)}, {}, "holds tensor 'score.weight'"),
    "mis-shaped": ({Q: np.zeros((64, 63), np.float32)}, {}, f"'{Q}' in"),
    "flat": ({Q: np.zeros(64 * 64, np.float32)}, {}, "shape [4096], but config.json asks for [64, 64]"),
    "layer too many": ({}, {"num_hidden_layers": 1}, "model.layers.1."),
    "layer too few": ({}, {"num_hidden_layers": 3}, "lacks tensor 'model.layers.2."),
    "integers": ({Q: np.zeros((64, 64), np.int8)}, {}, "is I8; supported are BF16, F16, F32"),
    "another head": (
        {"lm_head.weight": np.ones((300, 64), ml_dtypes.bfloat16)},
        {},
        "set tie_word_embeddings to false",
    ),
    "flat head": ({"lm_head.weight": np.ones(300, ml_dtypes.bfloat16)}, {}, "'lm_head.weight' in"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_wrong_tensors_are_named(tmp_path: Path, case: str) -> None:
    changes, config, words = BAD_TENSORS[case]
    write_checkpoint(tmp_path, change(tiny_tensors(), **changes), **config)
    with pytest.raises(CheckpointError) as caught:
        open_checked(tmp_path)
    assert words in str(caught.value)


def test_harmless_extras(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    open_checked(write_checkpoint(tmp_path, tensors))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, dtype: Any, value: float) -> None:
    tensors = tiny_tensors(dtype=dtype)
    tensors[Q][63, 63] = value
    checkpoint = open_checked(write_checkpoint(tmp_path, tensors))
    with pytest.raises(CheckpointError, match=f"'{Q}' in .*model.safetensors holds NaN or infinite"):
        checkpoint.read(Q)
    checkpoint.read("model.norm.weight")


def test_damaged_file_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is damaged: .*truncated"):
        SafetensorsCheckpoint(tmp_path)


def edit_index(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(edit(index)))


def move(index: dict[str, Any], shard: Any) -> dict[str, Any]:
    index["weight_map"][Q] = shard
    return index


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "model.bin", 3])
def test_an_index_can_not_leave_the_folder(tmp_path: Path, shard: Any) -> None:
    write_checkpoint(tmp_path / "c", num_shards=2)
    shutil.copy(tmp_path / "c" / "model-00001-of-00002.safetensors", tmp_path / "other.safetensors")
    edit_index(tmp_path / "c", lambda index: move(index, shard))
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file name"):
        SafetensorsCheckpoint(tmp_path / "c")


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors is missing"):
        SafetensorsCheckpoint(tmp_path)


def test_an_index_that_names_a_missing_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    edit_index(
        tmp_path, lambda index: {"weight_map": {**index["weight_map"], "ghost": "model-00001-of-00002.safetensors"}}
    )
    with pytest.raises(CheckpointError, match="'ghost', but it doesn't"):
        SafetensorsCheckpoint(tmp_path)


def test_a_shard_with_a_tensor_that_the_index_lacks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    edit_index(tmp_path, lambda index: {"weight_map": {k: v for k, v in index["weight_map"].items() if k != Q}})
    with pytest.raises(CheckpointError, match=f"holds tensor '{Q}', which"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": []}', "{}", "[" * 100_000])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    with pytest.raises(CheckpointError, match="pickled weights can run code and are refused: convert"):
        SafetensorsCheckpoint(tmp_path)


def test_other_folders(tmp_path: Path) -> None:
    save_file({"a": np.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="give its base model"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="give its base model"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint(tmp_path)


def test_weights_by_other_names(tmp_path: Path) -> None:
    """One file is the model, whatever it is called; of several, the index says which there should be."""
    write_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "gptq_model-4bit-128g.safetensors")
    SafetensorsCheckpoint(tmp_path / "a").check(source_shapes(ModelSpec.from_config(CONFIG)))
    write_checkpoint(tmp_path / "b", num_shards=2)
    (tmp_path / "b" / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither .* it has model-00001-of-00002.safetensors, model-00002"):
        SafetensorsCheckpoint(tmp_path / "b")


def test_what_is_missing_is_told_with_what_is_there(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {f"_orig_mod.{name}": tensor for name, tensor in tiny_tensors().items()})
    message = "lacks tensor 'model.+' of shape .*; it holds '_orig_mod.model.+', which"
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(tmp_path).check(source_shapes(ModelSpec.from_config(CONFIG)))


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_damaged_file_beside_the_weights(tmp_path: Path, name: str) -> None:
    """Told before anything is compiled, and by its own path."""
    (write_checkpoint(tmp_path) / name).write_text('{"cut')
    with pytest.raises(CheckpointError, match=f"{tmp_path / name} can't be read as JSON"):
        SafetensorsCheckpoint(tmp_path).check(source_shapes(ModelSpec.from_config(CONFIG)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_clone_without_git_lfs(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 988097824\n"
    (write_checkpoint(tmp_path) / name).write_text(pointer)
    with pytest.raises(CheckpointError, match=f"{name}.* it is a Git LFS pointer, .*run git lfs pull"):
        SafetensorsCheckpoint(tmp_path)


def test_digest_depends_on_content_alone(tmp_path: Path) -> None:
    digest = SafetensorsCheckpoint(write_checkpoint(tmp_path / "a")).content_digest()
    assert SafetensorsCheckpoint(write_checkpoint(tmp_path / "b", num_shards=3)).content_digest() == digest
    names = list(tiny_tensors())
    known = SafetensorsCheckpoint(tmp_path / "a")
    assert known.content_digest({part: crc for name in names for part, crc in known.crcs(name).items()}) == digest

    changed = tiny_tensors()
    changed[Q][0, 0] += 1
    variants = [
        write_checkpoint(tmp_path / "tensor", changed),
        write_checkpoint(tmp_path / "config", rms_norm_eps=1e-5),
        write_checkpoint(tmp_path / "dtype", tiny_tensors(dtype=np.float32)),
    ]
    (write_checkpoint(tmp_path / "tokenizer") / "tokenizer.json").write_text("{}")
    digests = {SafetensorsCheckpoint(folder).content_digest() for folder in [*variants, tmp_path / "tokenizer"]}
    assert len(digests | {digest}) == 5
