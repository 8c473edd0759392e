"""/v1/load_lora_adapter and /v1/unload_lora_adapter. Called by routes.py."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request

from qwench.serve.failures import ApiError
from qwench.serve.models.models import Models
from qwench.serve.processes.engine_client import no_adapter
from qwench.serve.protocol.openai.adapters import LoadAdapterRequest, UnloadAdapterRequest
from qwench.serve.settings import ServeSettings


async def load_adapter(models: Models, body: LoadAdapterRequest, request: Request) -> str:
    """Raises ApiError 403 unless the server was told to allow it, 400 for an adapter that can't be loaded."""
    folder = _allowed(models.settings, body.lora_path)
    base = models.find(body.base_model_name)
    for other in models.served:
        if other.name == body.lora_name and other.lora is None:
            raise ApiError.bad_request(f"{body.lora_name!r} is the name of the model itself", param="lora_name")
        if other.name == body.lora_name and other.service is not base.service:
            raise ApiError.bad_request(
                f"there is already an adapter {body.lora_name!r}, of {other.service.name!r}", param="lora_name"
            )
    if body.base_model_name is None and len(models.services) > 1:
        raise ApiError.bad_request("say which of the models it is for", param="base_model_name")
    async with models.use(base.name, request):
        await base.service.engine.load_lora(body.lora_name, str(folder), replace=body.load_inplace)
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


async def unload_adapter(models: Models, body: UnloadAdapterRequest, request: Request) -> str:
    """Raises ApiError 403 unless the server was told to allow it, 404 for an unknown name."""
    _allowed(models.settings, ".")
    adapter = next((model for model in models.served if model.lora == body.lora_name), None)
    if adapter is None:
        raise no_adapter(body.lora_name)
    async with models.use(adapter.name, request):
        await adapter.service.engine.unload_lora(body.lora_name)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


def _allowed(settings: ServeSettings, path: str) -> Path:
    """The folder, which must be within the one that the server was given."""
    root = settings.lora_dir
    if root is None:
        raise ApiError(
            403, "this server's adapters are fixed; start it with --lora-dir DIR to allow others", code="forbidden"
        )
    try:
        folder = (root / path).resolve()
    except (OSError, ValueError):
        raise ApiError.bad_request("lora_path is no path", param="lora_path") from None
    if not folder.is_relative_to(root.resolve()):
        raise ApiError(
            403,
            "lora_path is outside the folder that this server loads adapters from",
            param="lora_path",
            code="forbidden",
        )
    return folder
