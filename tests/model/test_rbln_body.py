"""RBLNQwen2Model: hidden states as transformers' Qwen2Model gives them, under Optimum RBLN's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers_parity import left_padded, load_truth, random_prompts, write_checkpoint

from qwench.errors import ConfigError
from qwench.rbln import RBLNQwen2ForCausalLM, RBLNQwen2Model, RBLNQwen2ModelConfig


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM], ids=["body", "language model"])
def test_hidden_states(kind: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", kind=kind)
    truth = load_truth(folder, kind=AutoModel)
    config = RBLNQwen2ModelConfig(batch_size=2, max_seq_len=128)
    model = RBLNQwen2Model.from_pretrained(folder, export=True, rbln_config=config)
    model.save_pretrained(tmp_path / "compiled")
    inputs = left_padded(random_prompts(0, 300, [70, 9]))
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = truth(**inputs).last_hidden_state[real]
    for each in (model, RBLNQwen2Model.from_pretrained(tmp_path / "compiled"), RBLNQwen2Model.from_model(truth)):
        torch.testing.assert_close(each(**inputs).last_hidden_state[real], expected, rtol=1e-4, atol=1e-4)
    assert model.rbln_config.batch_size == 2


def test_a_body_generates_nothing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, kind=AutoModel)
    with pytest.raises(ConfigError, match="load it with QwenchModel"):
        RBLNQwen2ForCausalLM.from_pretrained(folder, export=True)
    assert not RBLNQwen2Model.from_pretrained(folder, export=True).can_generate()
