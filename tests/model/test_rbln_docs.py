"""docs/rbln.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="qwench.rbln is a face of transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="qwench.rbln is a face of transformers: pip install qwench[hf]")

from qwench.rbln import RBLNQwen2ForCausalLM

ROOT = Path(__file__).parents[2]


def test_every_block_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in one namespace, beside a link to the models of a clone."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "rbln.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    models = []
    for block in blocks:
        exec(compile(block, "docs/rbln.md", "exec"), names)
        models.append(names["model"])
    assert all(isinstance(model, RBLNQwen2ForCausalLM) for model in models)
    assert models[0].rbln_config.max_seq_len == 4096 and models[0].rbln_config.tensor_parallel_size == 4
    printed = capsys.readouterr().out
    assert "Once upon a time" in printed and "lm_head" in printed
