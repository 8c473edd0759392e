"""Long contexts for real: transformers' logits at 32,768 positions and beyond, 131,072 tokens in the memory planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PASSKEY_MODEL = ROOT / "models" / "qwench-passkey"
KEPT = 16


@pytest.mark.parametrize(
    ("scaling", "length"), [(None, 32768), (None, 33000), ("yarn", 32760), ("yarn", 32768), ("yarn", 40000)]
)
def test_logits_below_at_and_beyond_32768_positions(scaling: str | None, length: int, tmp_path: Path) -> None:
    """Two layers of a random model, YaRN as Qwen2's model cards say; the rows that see the whole prompt."""
    torch = pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from qwench import QwenchForCausalLM

    torch.manual_seed(1)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    if scaling:
        rope |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32768, rope_parameters=rope, initializer_range=0.3,
    )).to(torch.bfloat16).save_pretrained(tmp_path)  # fmt: skip
    truth = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()  # frequencies are fp32 only anew
    model = QwenchForCausalLM.from_pretrained(tmp_path, qwench_max_seq_len=131072, qwench_batch_size=1)
    ids = torch.randint(0, 128, (1, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        theirs = truth(ids, logits_to_keep=KEPT, use_cache=False).logits
    ours = model(ids, logits_to_keep=KEPT).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * float(theirs.std()))


@pytest.mark.skipif(not PASSKEY_MODEL.is_dir(), reason="models/qwench-passkey is not there")
def test_131072_tokens_end_to_end_in_the_memory_planned(tmp_path: Path) -> None:
    """Read step by step through the engine and continued, in a process of its own. What the process takes beside the
    plan (huge pages begun for small buffers, the interpreter) doesn't depend on the length: growth is compared."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.length", str(PASSKEY_MODEL), "--rope-scaling", "yarn:512"]
    command += ["--lengths", "--whole", "4096", "131072", "--json", str(report)]
    subprocess.run(command, check=True, cwd=ROOT)
    short, whole = json.loads(report.read_text())["whole"]
    print(f"\n{short}\n{whole}")
    assert short["answer_tokens"] == whole["answer_tokens"] == 32
    measured, planned = (whole[name] - short[name] for name in ("measured_bytes", "planned_bytes"))
    assert measured == pytest.approx(planned, rel=0.05)
