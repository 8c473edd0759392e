"""GGUF files: every type as the gguf package reads it, whole models as transformers runs them, and hostile bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from gguf_models import write_gguf

from qwench.checkpoint.gguf.block_types import BLOCK_TYPES
from qwench.checkpoint.gguf.blocks import decode
from qwench.checkpoint.gguf.container import GgufFile
from qwench.checkpoint.gguf.gguf_checkpoint import GgufCheckpoint
from qwench.checkpoint.hub import find_checkpoint
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.sentence_transformers import EmbeddingSettings
from qwench.compiler.compiler import compile_checkpoint, source_shapes
from qwench.config import QwenchConfig
from qwench.errors import CheckpointError, ConfigError
from qwench.quantized_matrix import QuantizedMatrix
from qwench.text.tokenizer import Tokenizer

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
HALVES = {  # where a block has fp16 numbers, which random bytes may not make infinite
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0], "IQ4_XS": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208],
}  # fmt: skip


@pytest.mark.parametrize("kind", HALVES)
def test_blocks_are_what_the_gguf_package_reads(kind: str) -> None:
    block, block_bytes = BLOCK_TYPES[kind]
    shape = (70, 1024)
    raw = np.random.default_rng(1).integers(0, 256, (shape[0], shape[1] // block, block_bytes), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[..., at + 1] &= 0xBB
    values = decode(kind, raw.reshape(-1), shape, 2).dequantize()
    expected = dequantize(raw.reshape(shape[0], -1), gguf.GGMLQuantizationType[kind]).reshape(shape)
    np.testing.assert_array_equal(values, expected)


@pytest.fixture(scope="module")
def q8_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-q8_0.gguf"
    write_gguf(DEFAULT_MODEL, path, lambda name: "Q8_0")
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_model_is_what_the_file_holds(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(DEFAULT_MODEL, path, lambda name: kind)
    checkpoint = GgufCheckpoint(path)
    checkpoint.check(source_shapes(checkpoint.spec))
    reader = gguf.GGUFReader(path)
    names = {tensor.name: tensor for tensor in reader.tensors}
    for theirs, ours in (("token_embd.weight", "model.embed_tokens.weight"),
                         ("blk.4.ffn_down.weight", "model.layers.4.mlp.down_proj.weight"),
                         ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias")):  # fmt: skip
        read = checkpoint.read(ours)
        values = read.dequantize() if isinstance(read, QuantizedMatrix) else read.astype(np.float32)
        np.testing.assert_array_equal(values, dequantize(names[theirs].data, names[theirs].tensor_type))
    artifact = compile_checkpoint(path, tmp_path / "a")
    told = artifact.manifest.conversions.values()
    assert {c.stored for c in told} == {kind} and {c.relative_error for c in told} == {0.0}
    assert artifact.config.weights == "checkpoint"


def test_the_spec_and_the_texts_are_those_of_the_original(q8_0: Path) -> None:
    checkpoint, original = GgufCheckpoint(q8_0), open_checkpoint(DEFAULT_MODEL)
    assert checkpoint.spec == original.spec
    texts = {name: json.loads(text) for name, text in checkpoint.texts().items()}
    own = json.loads((DEFAULT_MODEL / "tokenizer.json").read_text())
    assert texts["tokenizer.json"]["model"]["vocab"] == own["model"]["vocab"]
    template = json.loads((DEFAULT_MODEL / "tokenizer_config.json").read_text())["chat_template"]
    assert texts["tokenizer_config.json"]["chat_template"] == template
    assert set(texts["generation_config.json"]["eos_token_id"]) >= {2047}


def test_the_tokenizer_is_that_of_the_original(q8_0: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, text in GgufCheckpoint(q8_0).texts().items():
        (tmp_path / name).write_bytes(text)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    for text in ("Once upon a time, 12 foxes  ran.\n\n", "don't <|im_start|>user\nHé\u0301 世界 🦊<|im_end|>", " ", ""):
        assert ours(text).input_ids == theirs(text).input_ids


def test_a_bos_token_comes_first_if_the_file_says_so(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_bos_token_id(2045)
        writer.add_add_bos_token(True)

    write_gguf(DEFAULT_MODEL, tmp_path / "a.gguf", lambda name: "Q8_0", change=change)
    for name, content in GgufCheckpoint(tmp_path / "a.gguf").texts().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("Once")[0] == 2045
    assert tokenizer.encode("Once")[1:] == tokenizer.encode("Once", add_special_tokens=False)


def test_yarn_is_read(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(512)

    write_gguf(DEFAULT_MODEL, tmp_path / "a.gguf", lambda name: "Q8_0", change=change)
    rope = GgufCheckpoint(tmp_path / "a.gguf").spec.rope
    assert rope.rope_type == "yarn"
    assert (rope.parameters["factor"], rope.parameters["original_max_position_embeddings"]) == (4.0, 512.0)


def test_weights_are_rounded_again_only_by_name(q8_0: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights is 'int4', but the checkpoint is quantised already"):
        compile_checkpoint(q8_0, tmp_path / "a", QwenchConfig(weights="int4"))
    artifact = compile_checkpoint(q8_0, tmp_path / "a", QwenchConfig(requantize="int4"))
    assert artifact.config.weights == "int4" and not artifact.manifest.conversions
    with pytest.raises(ConfigError, match=r"requantize is 'int4', but the checkpoint isn't quantised"):
        compile_checkpoint(DEFAULT_MODEL, tmp_path / "b", QwenchConfig(requantize="int4"))


def test_a_folder_may_hold_one_model(q8_0: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(q8_0.read_bytes())
    assert open_checkpoint(tmp_path).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(q8_0.read_bytes())
    with pytest.raises(CheckpointError, match=r"several models \(a.gguf, b.gguf\)"):
        open_checkpoint(tmp_path)


def test_parts(tmp_path: Path) -> None:
    """A model in two files, its metadata in the first, as llama-gguf-split writes them."""
    tensors = {"token_embd.weight": np.ones((8, 32), np.float32), "output_norm.weight": np.ones(32, np.float32)}
    for i, name in enumerate(tensors):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{i + 1}-of-00002.gguf", "qwen2")
        if i == 0:
            for add, value in ((writer.add_block_count, 1), (writer.add_context_length, 64),
                               (writer.add_embedding_length, 32), (writer.add_feed_forward_length, 64),
                               (writer.add_head_count, 2), (writer.add_layer_norm_rms_eps, 1e-6)):  # fmt: skip
                add(value)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    assert [file.name for file in GgufCheckpoint(second).files()] == [first.name, second.name]
    (tmp_path / "alone.gguf").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="one of 2 parts"):
        GgufCheckpoint(tmp_path / "alone.gguf")
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="says that it is part 0 of 2, but its name says 2 of 2"):
        GgufCheckpoint(first)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002.gguf is missing, a part of m-00001-of-00002.gguf"):
        GgufCheckpoint(first)


def header(num_tensors: int = 0, num_keys: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"GG", "ends within its header"),
        (b"PK\3\4" + bytes(40), "begins with"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 5\n", "is a Git LFS pointer"),
        (header(version=1), "has version 1"),
        (b"GGUF\0\0\0\3" + bytes(16), "big endian"),
        (header(num_tensors=2**60), "claims 1152921504606846976 tensors"),
        (header(num_keys=2**63), "keys, but 0 bytes are left"),
        (header(0, 1, struct.pack("<Q", 2**40) + bytes(40)), "claims 1099511627776 bytes in a key"),
        (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**50) + bytes(9)), "strings in k"),
        (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, 2**62) + bytes(9)), "values in k"),
        (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(9)), "array of arrays"),
        (header(0, 1, text(b"k") + struct.pack("<I", 77) + bytes(9)), "unknown type 77"),
        (header(0, 1, text(b"\xff\xfe") + bytes(9)), "isn't UTF-8"),
        (header(0, 2, 2 * (text(b"k") + struct.pack("<IB", 0, 1))), "key 'k' twice"),
        (header(1, 0, tensor(b"t", [2**40], 0, 0)), "impossible shape"),
        (header(1, 0, tensor(b"t", [0], 0, 0)), "impossible shape"),
        (header(1, 0, tensor(b"t", [2**31 - 1] * 4, 0, 0)), "it is truncated"),
        (header(1, 0, tensor(b"t", [1] * 5, 0, 0) + bytes(9)), "5 dimensions"),
        (header(1, 0, tensor(b"t", [31], 8, 0)), "no whole blocks of Q8_0's 32"),
        (header(1, 0, tensor(b"t", [32], 99, 0)), "of ggml type 99"),
        (header(1, 0, tensor(b"t", [256], 16, 0)), "'t' is IQ2_XXS; read are"),
        (header(1, 0, tensor(b"t", [32], 0, 7) + bytes(200)), "isn't aligned"),
        (header(1, 0, tensor(b"t", [32], 0, 2**63)), "ends at byte"),
        (header(2, 0, tensor(b"a", [32], 0, 0) + tensor(b"b", [32], 0, 32) + bytes(900)), "overlaps tensor 'a'"),
        (header(2, 0, 2 * tensor(b"a", [32], 0, 0) + bytes(900)), "tensor 'a' twice"),
        (header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 3)), "must be a power of two"),
    ],
)  # fmt: skip
def test_hostile_headers(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        GgufFile(path)


def test_mutated_headers_never_crash(q8_0: Path, tmp_path: Path) -> None:
    """Some thousand times some bytes of a real header are others: it opens as something, or it is refused."""
    data = bytearray(q8_0.read_bytes())
    tensors = GgufFile(q8_0).tensors
    end = min(tensor.start for tensor in tensors.values())
    names = bytes(data[:end]).index(b"blk.0.")
    rng = np.random.default_rng(3)
    path = tmp_path / "m.gguf"
    # What the tokens are doesn't matter to the container: only its frame is mutated, in a small file.
    small = header(0, 0)[:8] + data[8 : min(end, 1500)]
    for _ in range(4000):
        mutated = bytearray(small)
        for at in rng.integers(4, len(small), int(rng.integers(1, 5))):
            mutated[at] = int(rng.choice([0, 1, 255, 127, 128, int(rng.integers(256))]))
        path.write_bytes(mutated)
        opens(lambda: GgufFile(path))
    for _ in range(150 if names else 0):
        mutated = data[:]
        for at in rng.integers(names - 64, end, int(rng.integers(1, 4))):
            mutated[at] = int(rng.choice([0, 1, 255, 127, 128, int(rng.integers(256))]))
        path.write_bytes(mutated)
        opens(lambda: GgufCheckpoint(path))


def opens(work: Callable[[], Any]) -> bool:
    try:
        work()
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "llama", "its architecture is 'llama'"),
        ("tokenizer.ggml.model", "llama", "its tokenizer is 'llama'"),
        ("tokenizer.ggml.pre", "gpt-4o", "with pre-tokenizer 'gpt-4o'"),
        ("qwen2.block_count", "five", "qwen2.block_count is a str, not a int"),
        ("qwen2.rope.scaling.type", "longrope", "read are none, linear and yarn"),
        ("qwen2.rope.scaling.yarn_attn_factor", 0.5, "yarn_attn_factor is 0.5, which isn't read"),
        ("qwen2.rope.dimension_count", 32, "rope.dimension_count is 32; read are models that rotate whole heads"),
        ("qwen2.pooling_type", 4, "pooling_type is 4; read are 1"),
        ("tokenizer.ggml.eos_token_id", 10**6, "but there are 2048 tokens"),
        ("tokenizer.ggml.merges", ["a b c"], "which isn't two tokens"),
        ("tokenizer.ggml.merges", ["zzzz qqqq"], "of which a part isn't a token"),
    ],
)
def test_metadata_of_other_models(
    q8_0: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, message: str
) -> None:
    change_metadata(monkeypatch, {key: value})
    with pytest.raises(CheckpointError, match=message):
        GgufCheckpoint(q8_0).texts()


def change_metadata(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    """Whatever GGUF file is opened has these values too."""
    read = GgufFile.__init__

    def changed(self: GgufFile, path: Path) -> None:
        read(self, path)
        self.metadata |= values

    monkeypatch.setattr(GgufFile, "__init__", changed)


def test_embedding_models_pool_and_end_as_their_file_says(
    q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"qwen2.pooling_type": 1, "qwen2.attention.causal": False, "tokenizer.ggml.add_eos_token": True}
    change_metadata(monkeypatch, values)
    checkpoint = GgufCheckpoint(q8_0)
    assert not checkpoint.spec.is_causal
    for name, text in checkpoint.texts().items():
        (tmp_path / name).write_bytes(text)
    assert EmbeddingSettings.from_folder(tmp_path) == EmbeddingSettings("mean")
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("Once") == [*tokenizer.encode("Once", add_special_tokens=False), 2047]


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ({"qwen2.rope.scaling.factor": 4.0}, 4.0),
        ({"qwen2.rope.scale_linear": 2.0}, 2.0),
        ({"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4.0}, 4.0),
        ({"qwen2.rope.scaling.type": "none", "qwen2.rope.scaling.factor": 4.0}, None),
    ],
)
def test_scaling_is_linear_where_no_type_is_given(
    q8_0: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], factor: float | None
) -> None:
    change_metadata(monkeypatch, values)
    rope = GgufCheckpoint(q8_0).spec.rope
    assert (rope.rope_type, rope.parameters.get("factor")) == ("default" if factor is None else "linear", factor)


def test_a_file_is_known_by_its_beginning(q8_0: Path, tmp_path: Path) -> None:
    for name in ("sha256-0a1b", "MODEL.GGUF"):
        (tmp_path / name).symlink_to(q8_0)
        path, _ = find_checkpoint(tmp_path / name)
        assert open_checkpoint(path).spec == GgufCheckpoint(q8_0).spec


def test_scales_that_are_not_finite(q8_0: Path, tmp_path: Path) -> None:
    data = bytearray(q8_0.read_bytes())
    start = GgufFile(q8_0).tensors["blk.1.ffn_up.weight"].start
    data[start : start + 2] = np.array([np.inf], np.float16).tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'blk.1.ffn_up.weight' in .* holds NaN or infinite values or scales"):
        compile_checkpoint(tmp_path / "m.gguf", tmp_path / "a")


def test_plan_reads_the_header_alone(q8_0: Path) -> None:
    from qwench.cli.commands.plan import describe

    report = describe(q8_0, QwenchConfig())
    compiled = describe(DEFAULT_MODEL, QwenchConfig(weights="int8", group_size=32))
    assert report["config"]["weights"] == "checkpoint" and report["weights_bytes"] == compiled["weights_bytes"]


@pytest.mark.parametrize(
    "value", [-1, 0, 2**62, 1.5, float("nan"), float("inf"), True, "x", "", [], ["a"], np.array([1])]
)
def test_values_of_any_type_are_refused_by_name(q8_0: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Every key of a real file, and some that it hasn't, with values that make no sense there."""
    original, read = GgufFile(q8_0).metadata, GgufFile.__init__
    more = [
        "split.count",
        "split.no",
        "split.tensors.count",
        "qwen2.attention.key_length",
        "tokenizer.ggml.bos_token_id",
    ]

    for key in [*original, *more]:

        def changed(self: GgufFile, path: Path, key: str = key) -> None:
            read(self, path)
            self.metadata[key] = value

        monkeypatch.setattr(GgufFile, "__init__", changed)
        opens(lambda: GgufCheckpoint(q8_0).texts())
