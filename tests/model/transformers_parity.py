"""What the model tests share: random checkpoints, and the comparison with transformers, ties included.

A checkpoint is written in bf16 by transformers itself and loaded by transformers in fp32, so both sides compute with
the same weights and the truth doesn't depend on qwench.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
IS_4 = RELEASE < (5, 0)  # whose RoPE fields are other ones
OLDER = RELEASE < (5, 23)  # whose mistakes are other ones: what it answers wrongly is not compared
TIE = 1e-5  # two logits closer than this, relative to the larger, may change places by rounding


def write_checkpoint(folder: Path, seed: int = 0, kind: Any = AutoModelForCausalLM, **config: Any) -> Path:
    """A random model in bf16, Qwen2 or another model_type, with weights so large that every part moves the answer."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "model_type": "qwen2",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    if IS_4 and "rope_parameters" in config:
        scaling = dict(config.pop("rope_parameters"))
        config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    model = kind.from_config(AutoConfig.for_model(**(shape | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # [experts, rows, columns] in a mixture of experts
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(1, 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def load_truth(
    folder: Path, dtype: torch.dtype = torch.float32, kind: Any = AutoModelForCausalLM, **config: Any
) -> PreTrainedModel:
    """transformers' own model of the checkpoint. kind: the AutoModel that loads it."""
    return kind.from_pretrained(folder, dtype=dtype, **config).eval()


def left_padded(prompts: list[torch.Tensor], pad: int = 0) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [batch, longest] int64."""
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def random_prompts(seed: int, vocab_size: int, lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (n,), generator=generator) for n in lengths]


@dataclass
class Ties:
    """Rows excused so far, with the two logits that show why."""

    shown: list[str]


def assert_same_tokens(
    truth: PreTrainedModel, inputs: dict[str, torch.Tensor], ours: torch.Tensor, theirs: torch.Tensor, ties: Ties
) -> None:
    """Greedy answers [batch, length + new] are equal, or differ first where transformers itself has a tie."""
    assert ours.shape == theirs.shape
    for row in range(len(ours)):
        different = (ours[row] != theirs[row]).nonzero()
        if not len(different):
            continue
        at = int(different[0])
        prefix = theirs[row, :at][inputs["attention_mask"].shape[1] - int(inputs["attention_mask"][row].sum()) :]
        with torch.no_grad():
            logits = truth(prefix[None]).logits[0, -1]
        mine, right = float(logits[ours[row, at]]), float(logits[theirs[row, at]])
        message = f"row {row}, token {at}: {int(ours[row, at])} ({mine:.9g}) for {int(theirs[row, at])} ({right:.9g})"
        assert abs(mine - right) <= TIE * max(abs(mine), abs(right)), message
        ties.shown.append(message)


def assert_same_model(model: Any, truth: PreTrainedModel, seed: int, num_new: int) -> None:
    """Greedy tokens of a padded batch, logits and last hidden states, of random prompts."""
    assert type(model.config) is type(truth.config)
    ties, vocab_size = Ties([]), truth.config.vocab_size
    inputs = left_padded(random_prompts(seed, vocab_size, [1, 8, 13, 64]))
    theirs = truth.generate(**inputs, max_new_tokens=num_new, do_sample=False)
    ours = model.generate(**inputs, max_new_tokens=num_new, do_sample=False)
    assert_same_tokens(truth, inputs, ours, theirs, ties)
    assert len(ties.shown) <= 1
    ids = torch.randint(0, vocab_size, (2, 50), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = truth(ids, output_hidden_states=True)
    got = model(ids, output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.hidden_states[-1], expected.hidden_states[-1], rtol=1e-4, atol=1e-4)
