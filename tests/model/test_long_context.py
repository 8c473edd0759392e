"""Every type of RoPE scaling against transformers, below, at and beyond the length before scaling; sliding windows.

What depends in transformers on the sequence of the moment (dynamic, longrope) depends here on the length compiled for:
compared where they coincide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="compares with transformers: pip install qwench[hf]")
pytest.importorskip("torch", reason="compares with transformers: pip install qwench[hf]")

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers_parity import (
    OLDER,
    Ties,
    assert_same_tokens,
    left_padded,
    load_truth,
    random_prompts,
    write_checkpoint,
)

from qwench import QwenchForCausalLM

ORIGINAL = 48
LENGTHS = (ORIGINAL - 9, ORIGINAL, ORIGINAL + 1, 4 * ORIGINAL)  # below, at, beyond, and to the end
HEAD_DIM = 16
OTHER_ROPE = "this release of transformers computes such a RoPE in another way than today's"
STATIC: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": ORIGINAL},
    "proportional": {"factor": 2.0},
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "original_max_position_embeddings": ORIGINAL, "factor": 4.0,
    "short_factor": [1 + 0.1 * i for i in range(HEAD_DIM // 2)],
    "long_factor": [1 + 0.8 * i for i in range(HEAD_DIM // 2)],
}  # fmt: skip


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[None]).logits[0].float()


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * float(theirs.std()))


def prompt_of(length: int) -> torch.Tensor:
    return random_prompts(length, 300, [length])[0]


@pytest.mark.parametrize("name", [name for name in STATIC if name in ROPE_INIT_FUNCTIONS])
def test_scaling_in_config_json(name: str, tmp_path: Path, best_target: str) -> None:
    rope = {"rope_type": name, "rope_theta": 1e4, **STATIC[name]}
    folder = write_checkpoint(tmp_path, seed=1, max_position_embeddings=4 * ORIGINAL, rope_parameters=rope)
    truth, model = load_truth(folder), QwenchForCausalLM.from_pretrained(folder, qwench_target=best_target)
    for length in LENGTHS:
        assert_alike(logits_of(model, prompt_of(length)), logits_of(truth, prompt_of(length)))


@pytest.mark.skipif(OLDER, reason=OTHER_ROPE)
def test_scaling_as_an_option_is_scaling_in_config_json(tmp_path: Path, best_target: str) -> None:
    """The checkpoint knows nothing of it; transformers is told by its config, qwench by qwench_rope_scaling."""
    folder = write_checkpoint(tmp_path, seed=2, max_position_embeddings=ORIGINAL)
    model = QwenchForCausalLM.from_pretrained(folder, qwench_rope_scaling="yarn:4", qwench_target=best_target)
    assert model.max_seq_len == 4 * ORIGINAL
    truth = load_truth(folder)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
    truth.model.rotary_emb = type(truth.model.rotary_emb)(type(truth.config)(**truth.config.to_dict() | {
        "rope_parameters": yarn, "max_position_embeddings": 4 * ORIGINAL}))  # fmt: skip
    for length in LENGTHS:
        assert_alike(logits_of(model, prompt_of(length)), logits_of(truth, prompt_of(length)))


def test_dynamic_up_to_the_original_length(tmp_path: Path, best_target: str) -> None:
    """By default a dynamically scaled model is compiled for max_position_embeddings, where nothing is scaled."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    folder = write_checkpoint(tmp_path, seed=3, max_position_embeddings=ORIGINAL, rope_parameters=rope)
    truth, model = load_truth(folder), QwenchForCausalLM.from_pretrained(folder, qwench_target=best_target)
    for length in (1, ORIGINAL - 1, ORIGINAL):
        assert_alike(logits_of(model, prompt_of(length)), logits_of(truth, prompt_of(length)))


@pytest.mark.skipif(OLDER, reason=OTHER_ROPE)
def test_dynamic_beyond_it(tmp_path: Path, best_target: str) -> None:
    """Sequences of the length compiled for, and shorter ones that transformers computes after such a one."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    folder = write_checkpoint(tmp_path, seed=3, max_position_embeddings=ORIGINAL, rope_parameters=rope)
    model = QwenchForCausalLM.from_pretrained(folder, qwench_max_seq_len=150, qwench_target=best_target)
    truth = load_truth(folder)
    before = logits_of(truth, prompt_of(ORIGINAL + 10))
    for length in (150, ORIGINAL + 10, 149):
        assert_alike(logits_of(model, prompt_of(length)), logits_of(truth, prompt_of(length)))
    after = logits_of(truth, prompt_of(ORIGINAL + 10))
    assert (after - before).abs().max() > 0.01 * before.std()  # transformers' answer depends on what came before


@pytest.mark.skipif(OLDER, reason=OTHER_ROPE)
@pytest.mark.parametrize("max_seq_len", [ORIGINAL, 4 * ORIGINAL])
def test_longrope(max_seq_len: int, tmp_path: Path, best_target: str) -> None:
    """Short factors for a model compiled for at most the original length, long ones for a longer one."""
    rope = {**LONGROPE, "rope_theta": 1e4}
    folder = write_checkpoint(tmp_path, seed=4, max_position_embeddings=4 * ORIGINAL, rope_parameters=rope)
    model = QwenchForCausalLM.from_pretrained(folder, qwench_max_seq_len=max_seq_len, qwench_target=best_target)
    truth, ties = load_truth(folder), Ties([])
    is_short = max_seq_len == ORIGINAL
    for length in (1, ORIGINAL) if is_short else (ORIGINAL + 1, 4 * ORIGINAL):
        assert_alike(logits_of(model, prompt_of(length)), logits_of(truth, prompt_of(length)))
    inputs = left_padded([prompt_of(ORIGINAL - 20 if is_short else ORIGINAL + 5)])
    ours, theirs = (m.generate(**inputs, max_new_tokens=20, do_sample=False) for m in (model, truth))
    assert_same_tokens(truth, inputs, ours, theirs, ties)
    assert not ties.shown


WINDOWS = {
    "all slide": {"num_hidden_layers": 3, "max_window_layers": 0, "sliding_window": 20},
    "half of the layers slide": {"num_hidden_layers": 4, "max_window_layers": 2, "sliding_window": 20},
    "one of three slides": {"num_hidden_layers": 3, "max_window_layers": 2, "sliding_window": 70},
}


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_windows_in_a_long_text(name: str, tmp_path: Path, best_target: str) -> None:
    """Prompts of many windows, then tokens; the engine and transformers' loop over `forward` alike."""
    folder = write_checkpoint(
        tmp_path, seed=5, max_position_embeddings=1024, use_sliding_window=True, **WINDOWS[name], hidden_size=48
    )
    truth = load_truth(folder)
    model = QwenchForCausalLM.from_pretrained(
        folder, qwench_target=best_target, qwench_prefill_chunk_size=32, qwench_kvcache_block_size=16,
        qwench_batch_size=2,
    )  # fmt: skip
    inputs = left_padded(random_prompts(9, 300, [500, 380]))
    theirs = truth.generate(**inputs, max_new_tokens=40, do_sample=False)
    ties = Ties([])
    for more in ({}, {"return_dict_in_generate": True}):
        ours = model.generate(**inputs, max_new_tokens=40, do_sample=False, **more)
        assert_same_tokens(truth, inputs, ours if not more else ours.sequences, theirs, ties)
    del ours
    assert not ties.shown
    if name == "all slide":  # 540 positions would be 34 blocks a sequence
        assert model.engine.cache.num_blocks == 2 * (-(-(32 + 19 + 63 + 15) // 16))


def test_beams_over_a_sliding_window(tmp_path: Path, best_target: str) -> None:
    folder = write_checkpoint(
        tmp_path, seed=6, max_position_embeddings=512, use_sliding_window=True, **WINDOWS["half of the layers slide"]
    )
    truth, model = load_truth(folder), QwenchForCausalLM.from_pretrained(
        folder, qwench_target=best_target, qwench_prefill_chunk_size=32, qwench_kvcache_block_size=16
    )  # fmt: skip
    inputs = left_padded(random_prompts(10, 300, [200]))
    theirs = truth.generate(**inputs, max_new_tokens=30, num_beams=3, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=30, num_beams=3, do_sample=False), theirs)
