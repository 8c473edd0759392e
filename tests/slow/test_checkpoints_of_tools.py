"""Checkpoints that the tools themselves make, beside transformers in fp32 with the weights that each tool reads back.

`make tools` installs the tools, each in an environment of its own; where one is missing its tests skip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from make_checkpoints import ROOT, TOOLS, stored_tensors
from transformers_parity import Ties, assert_same_tokens, left_padded, load_truth, random_prompts

from qwench.checkpoint.checkpoint import as_floats
from qwench.checkpoint.weights import SafetensorsCheckpoint
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.modeling import QwenchForCausalLM
from qwench.program.models import source_shapes

TOOLS_FOLDER = ROOT / "build" / "tools"
NEW_TOKENS = 24
# Some tools multiply scales and codes in 16 bits, qwench in fp32.
SAME_WEIGHTS = 2.0**-8


def made(tool: str, kind: str) -> Path:
    """Where the tool's checkpoint and its truth are; made once for all runs, since a tool takes minutes."""
    folder = TOOLS_FOLDER / tool / "made"
    python = TOOLS_FOLDER / tool / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs a tool: {tool}, which `make tools` installs")
    if not (folder / kind / "truth").exists():
        shutil.rmtree(folder / kind, ignore_errors=True)
        command = [str(python), str(Path(__file__).with_name("make_checkpoints.py")), tool, str(folder), kind]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "GPTQMODEL_CPU_WORKERS": "2"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TOOLS_FOLDER)
        assert done.returncode == 0, done.stderr[-3000:]
    if (reason := folder / kind / "failed.txt").exists():
        pytest.fail(f"{tool} made nothing:\n{reason.read_text()}")
    return folder / kind


@pytest.mark.parametrize(("tool", "kind"), [(tool, kind) for tool, (kinds, _) in TOOLS.items() for kind in kinds])
def test_what_a_tool_made(tmp_path: Path, tool: str, kind: str) -> None:
    folder = made(tool, kind)
    checkpoint = SafetensorsCheckpoint(folder / "made")
    checkpoint.check(source_shapes(checkpoint.spec))
    assert checkpoint.is_quantized
    is_same = not kind.startswith("fp8")  # which becomes bf16
    for name, expected in stored_tensors(folder / "truth").items():
        if name.endswith("_proj.weight"):
            read = np.asarray(as_floats(checkpoint.read(name)), np.float32)
            np.testing.assert_allclose(read, expected.numpy(), rtol=SAME_WEIGHTS, atol=1e-7, err_msg=name)
            is_same &= np.array_equal(read, expected.numpy())
    config = QwenchConfig(activations="fp32", kv_cache="fp32")
    artifact = compile_checkpoint(folder / "made", tmp_path / "compiled", config)
    is_exact = all(c.relative_error == 0 for c in artifact.manifest.conversions.values())
    assert is_exact == (not kind.startswith("fp8"))
    truth, ours = load_truth(folder / "truth"), QwenchForCausalLM.from_pretrained(str(tmp_path / "compiled"))
    prompts = left_padded(random_prompts(0, 2040, [5, 40, 90]), pad=2045)
    with torch.no_grad():
        expected = truth(prompts["input_ids"][2:]).logits[0].numpy()
    got = ours(prompts["input_ids"][2:]).logits[0].numpy()
    cosine = (expected * got).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(got, axis=1)
    assert 1 - cosine.min() < (2e-6 if is_same else 3e-4)
    if is_same:
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
        answers = (model.generate(**prompts, **options) for model in (ours, truth))
        assert_same_tokens(truth, prompts, *answers, Ties([]))
