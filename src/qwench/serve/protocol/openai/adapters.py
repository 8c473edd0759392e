"""The bodies of /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM defines them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from qwench.serve.protocol.validation.body import Body

AdapterName = Annotated[str, Field(min_length=1, max_length=256)]


class LoadAdapterRequest(Body):
    """lora_path: a folder of the server's, within its --lora-dir. load_inplace: in place of one of that name.
    base_model_name: which of several models it is for."""

    lora_name: AdapterName
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False
    base_model_name: str | None = None


class UnloadAdapterRequest(Body):
    """lora_int_id: as vLLM's clients send it; the name is what counts."""

    lora_name: AdapterName
    lora_int_id: int | None = None
