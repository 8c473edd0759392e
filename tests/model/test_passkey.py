"""models/qwench-passkey finds in qwench what it finds in transformers, at every depth: in the length it was trained
on, and with YaRN beyond it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers_parity import OLDER

from qwench import LLM, SamplingParams

MODELS = Path(__file__).parents[2] / "models"
FOLDER = MODELS / "qwench-passkey"
TRAINED, NUM_DEPTHS = 256, 11

pytestmark = pytest.mark.skipif(not any(FOLDER.glob("*.safetensors")), reason="models/qwench-passkey has no weights")


def training() -> Any:
    spec = importlib.util.spec_from_file_location("passkey", MODELS / "training" / "passkey.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


def truth_answers(folder: Path, prompts: list[list[int]], rope_parameters: dict[str, Any] | None) -> list[list[int]]:
    config = Qwen2Config.from_pretrained(folder)
    if rope_parameters:
        config.rope_parameters = {"rope_theta": 10000.0, **rope_parameters}
    model = Qwen2ForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found.append(model.generate(ids, max_new_tokens=5, do_sample=False)[0, len(prompt) :].tolist())
    return found


def prompts_of(length: int) -> tuple[list[list[int]], list[list[int]]]:
    passkey = training()
    pairs = [passkey.prompt(length, i / (NUM_DEPTHS - 1), seed=i) for i in range(NUM_DEPTHS)]
    return [prompt for prompt, _ in pairs], [code for _, code in pairs]


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_found_at_every_depth(weights: str, best_target: str) -> None:
    prompts, codes = prompts_of(TRAINED - 8)
    theirs = truth_answers(FOLDER, prompts, None)
    with LLM(FOLDER, weights=weights, target=best_target) as llm:
        ours = answers(llm, prompts)
    found = [i for i, code in enumerate(codes) if theirs[i] == code]
    print(f"{len(prompts[0])} tokens: {len(found)} of {NUM_DEPTHS} found by transformers")
    assert len(found) >= NUM_DEPTHS - 2  # the model is good enough for the test to mean something
    assert all(ours[i] == codes[i] for i in found)
    assert weights != "bf16" or ours == theirs


@pytest.mark.skipif(OLDER, reason="this release of transformers computes such a RoPE in another way than today's")
@pytest.mark.parametrize("factor", [4, 8])
def test_with_yarn_beyond_the_trained_length(factor: int, best_target: str) -> None:
    """Wherever transformers finds it under the same scaling, qwench does; their other answers are alike, too."""
    length = factor * TRAINED - 8
    prompts, codes = prompts_of(length)
    yarn = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": TRAINED}
    theirs = truth_answers(FOLDER, prompts, yarn)
    with LLM(FOLDER, rope_scaling=f"yarn:{factor}", target=best_target, batch_size=2) as llm:
        ours = answers(llm, prompts)
    found = sum(answer == code for answer, code in zip(theirs, codes, strict=True))
    print(f"{length} tokens: {found} of {NUM_DEPTHS} found by transformers")
    assert ours == theirs
    assert found > 0
