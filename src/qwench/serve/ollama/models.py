"""/api/tags, /api/ps, /api/show and /api/pull: what there is, and what it can do. Called by routes.py."""

from __future__ import annotations

from typing import Any

from qwench.serve.models.model_card import ModelCard, read_card
from qwench.serve.models.models import Models
from qwench.serve.ollama.reply import time_in
from qwench.serve.service import ServedModel, Service

FOR_EVER = "2100-01-01T00:00:00Z"  # until when a model stays in memory that nothing drives out


def list_models(models: Models) -> dict[str, Any]:
    return {"models": [_listed(model) for model in models.served]}


def list_running(models: Models) -> dict[str, Any]:
    """Those in memory."""
    running = (model for model in models.served if models.loader.state(model.service) == "loaded")
    return {"models": [_listed(model) | _in_memory(models, model.service) for model in running]}


def _in_memory(models: Models, service: Service) -> dict[str, Any]:
    seconds = models.loader.expires_in_s(service)
    expires = FOR_EVER if seconds is None else time_in(seconds)
    return {"expires_at": expires, "size_vram": 0, "context_length": service.max_seq_len}


def show_model(model: ServedModel) -> dict[str, Any]:
    card = read_card(model.service.model.folder)
    return {
        "modelfile": f"FROM {tagged(model.name)}\n", "parameters": f"num_ctx {card.max_seq_len}",
        "template": card.chat_template, "details": _details(model, card), "model_info": _numbers(card),
        "capabilities": _capabilities(card), "modified_at": card.created,
    }  # fmt: skip


def tagged(name: str) -> str:
    """A model's name with a tag, as Ollama has them always."""
    return name if ":" in name else f"{name}:latest"


def _listed(model: ServedModel) -> dict[str, Any]:
    card = read_card(model.service.model.folder)
    return {
        "name": tagged(model.name), "model": tagged(model.name), "modified_at": card.created,
        "size": card.size_bytes, "digest": card.digest, "details": _details(model, card),
    }  # fmt: skip


def _details(model: ServedModel, card: ModelCard) -> dict[str, Any]:
    family = card.spec.model_type
    return {
        "parent_model": "" if model.lora is None else tagged(model.service.name), "format": "qwench", "family": family,
        "families": [family], "parameter_size": _short(card.num_weights), "quantization_level": card.weights.upper(),
    }  # fmt: skip


def _short(count: int) -> str:
    """494.0M, 7.6B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


def _numbers(card: ModelCard) -> dict[str, str | int | float]:
    """Under GGUF's names."""
    spec = card.spec
    of_family = {
        "context_length": card.max_seq_len, "embedding_length": spec.hidden_size, "block_count": spec.num_layers,
        "feed_forward_length": spec.intermediate_size, "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads, "attention.layer_norm_rms_epsilon": spec.rms_norm_eps,
        "attention.key_length": spec.head_dim, "vocab_size": spec.vocab_size,
    }  # fmt: skip
    named = {f"{spec.model_type}.{name}": value for name, value in of_family.items()}
    return {"general.architecture": spec.model_type, "general.parameter_count": card.num_weights, **named}


def _capabilities(card: ModelCard) -> list[str]:
    if card.spec.head.kind != "causal_lm" or not card.spec.is_causal:
        return ["embedding"]
    can = {"completion": True, "tools": card.knows_tools, "thinking": card.thinks, "insert": card.can_fill}
    return [name for name, is_so in can.items() if is_so]
