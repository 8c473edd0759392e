"""What the server's routes about itself answer, serve/state.py, as schemas; see shared/reply.py."""

from __future__ import annotations

from typing import Literal

from pydantic import RootModel

from qwench.serve.protocol.shared.reply import Reply


class Version(Reply):
    """Of /version."""

    version: str


class Index(Reply):
    """Of /v1. routes: what stands below it."""

    object: Literal["api"]
    version: str
    routes: list[str]


class GenerationSettings(Reply):
    """n_ctx: tokens of prompt and answer."""

    n_ctx: int


class Modalities(Reply):
    vision: Literal[False]
    audio: Literal[False]


class Props(Reply):
    """Of /props. total_slots: answers that run at once."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_path: str
    model_alias: str
    build_info: str
    modalities: Modalities


class Slot(Reply):
    """A place for an answer."""

    id: int
    n_ctx: int
    is_processing: bool


class Slots(RootModel[list[Slot]]):
    """Of /slots."""


class Status(Reply):
    """Of /health and /ready."""

    status: Literal["ok", "ready"]
