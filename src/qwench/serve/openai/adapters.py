"""/v1/load_lora_adapter and /v1/unload_lora_adapter. Called by routes.py."""

from __future__ import annotations

from pathlib import Path

from qwench.serve.failures import ApiError
from qwench.serve.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from qwench.serve.service import Service


async def load_adapter(service: Service, body: LoadAdapterRequest) -> str:
    """Raises ApiError 403 unless the server was told to allow it, 400 for an adapter that can't be loaded."""
    folder = _allowed(service, body.lora_path)
    if body.lora_name in service.settings.names:
        raise ApiError.bad_request(f"{body.lora_name!r} is the name of the model itself", param="lora_name")
    await service.engine.load_lora(body.lora_name, str(folder), replace=body.load_inplace)
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


async def unload_adapter(service: Service, body: UnloadAdapterRequest) -> str:
    """Raises ApiError 403 unless the server was told to allow it, 404 for an unknown name."""
    _allowed(service, ".")
    await service.engine.unload_lora(body.lora_name)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


def _allowed(service: Service, path: str) -> Path:
    """The folder, which must be within the one that the server was given."""
    root = service.settings.lora_dir
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
