"""Mixtures beside peers: the GGUF has the checkpoint's own values, and ratios are those of rounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experts import write_checkpoint
from benchmarks.in_turns import Speeds
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.program.models import source_shapes
from qwench.quantized_matrix import QuantizedMatrix

EXPERT = 5
OF_LAYER = {  # GGUF's name -> the checkpoint's
    "ffn_down_exps": f"mlp.experts.{EXPERT}.down_proj",
    "ffn_gate_exps": f"mlp.experts.{EXPERT}.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "attn_k": "self_attn.k_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}


def test_a_mixture_in_gguf_has_the_same_values(tmp_path: Path) -> None:
    """Beside qwench's reader of GPTQ, which tests compare with the tools that write it."""
    gguf = pytest.importorskip("gguf", reason="gguf isn't installed")
    from benchmarks.contenders.gguf_file import write_gguf

    write_checkpoint("tiny", tmp_path / "moe")
    num_bytes = write_gguf(tmp_path / "moe", tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: t for t in reader.tensors}
    assert sum(int(t.n_bytes) for t in reader.tensors) == num_bytes
    assert reader.get_field("qwen2moe.expert_used_count").contents() == 2
    checkpoint = open_checkpoint(tmp_path / "moe")
    checkpoint.check(source_shapes(checkpoint.spec))
    for name, module in OF_LAYER.items():
        tensor = tensors[f"blk.1.{name}.weight"]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        read = checkpoint.read(f"model.layers.1.{module}.weight")
        expected = read.dequantize() if isinstance(read, QuantizedMatrix) else read.astype(np.float32).squeeze()
        np.testing.assert_array_equal(values[EXPERT] if name.endswith("_exps") else values, expected)
    table = tensors["token_embd.weight"]
    expected = checkpoint.read("model.embed_tokens.weight").astype(np.float32)
    np.testing.assert_allclose(gguf.dequantize(table.data, table.tensor_type), expected, atol=0.001)


def test_a_mixture_in_another_format_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf isn't installed")
    from benchmarks.contenders.gguf_file import write_gguf

    write_checkpoint("tiny", tmp_path / "moe")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"mixtures that `python -m benchmarks.experts` wrote"):
        write_gguf(tmp_path / "moe", tmp_path / "m.gguf")


def test_ratios_are_those_of_rounds() -> None:
    ours, theirs = Speeds([4.0, 9.0, 8.0], [1.0], [1, 2, 3]), Speeds([2.0, 3.0, 1.0], [2.0], [1, 2, 4])
    assert ours.ahead(theirs) == {"prompt": 3.0, "answer": 0.5}
    assert ours.medians() == {"prompt": 8.0, "answer": 1.0} and ours.num_same(theirs) == 2
