"""Adapters as PEFT saves them, with weights that move the answer, and the model that PEFT makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers_parity import load_truth

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_adapter(
    base: Path, folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16, std: float = 0.3, **config: Any
) -> Path:
    """A random adapter for the checkpoint `base`, whose B isn't zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"}
    model = get_peft_model(load_truth(base), LoraConfig(**(shape | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, std * parameter.shape[-1] ** -0.5)
                parameter.copy_(parameter.to(dtype))  # values of that many bits, in fp32
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def load_peft(base: Path, adapter: Path) -> Any:
    """PEFT's own model of the two, in fp32."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_truth(base), str(adapter)).eval()
