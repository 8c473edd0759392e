"""Everything `qwench serve` can be told, with its defaults. Knows no HTTP; made by the command line."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from qwench.errors import ConfigError
from qwench.serve.models.model_settings import ModelSettings, check_names

TEMPLATE_VARIABLES = ("enable_thinking", "add_generation_prompt", "reasoning_effort")  # that requests may set
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s,*@]+/?")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """models: the first one is for requests that name none. num_threads: of each; None: the processors this process may
    use. lora_dir: in which clients may load more adapters; None: nowhere.

    memory: bytes that the models share; None: there is but one, and it has what its config says. keep_alive_s: for how
    long a model stays loaded that nobody uses; None: until its memory is needed, and one model alone for ever, whatever
    requests say. load_timeout_s: how long requests wait for their model.
    max_queued: samples that may wait beside those that run. api_key_file: None: open to everybody who can connect.
    allowed_hosts: names in Host headers; empty: any, unless `host` is this machine's own loopback.
    max_body_bytes: None: by the model's context. drain_s: how long answers may go on after SIGTERM.
    text_limit_s: for rendering and tokenising one request. template_variables: that requests may set.
    strict_calls: what isn't written exactly as a call of a tool is text. whole_calls: none is given before it is whole.
    is_strict: refuse what has no effect, instead of naming it. cors_origins: whose pages may use the server from a
    browser; "*": everybody's.
    """

    models: tuple[ModelSettings, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    num_threads: int | None = None
    enable_prefix_caching: bool = True
    memory: int | None = None
    keep_alive_s: float | None = None
    load_timeout_s: float = 300.0
    lora_dir: Path | None = None
    max_queued: int = 128
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int | None = None
    drain_s: float = 60.0
    text_limit_s: float = 5.0
    template_variables: tuple[str, ...] = TEMPLATE_VARIABLES
    strict_calls: bool = False
    whole_calls: bool = False
    is_strict: bool = False
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            ("port", 0 <= self.port < 1 << 16, "from 0 (any free one) to 65535"),
            ("max_queued", 0 <= self.max_queued <= 1 << 20, "from 0 to 1048576"),
            ("max_body_bytes", self.max_body_bytes is None or self.max_body_bytes > 0, "above 0"),
            ("drain_s", 0 <= self.drain_s <= 86400, "from 0 to 86400"),
            ("load_timeout_s", 0 < self.load_timeout_s <= 86400, "above 0, up to 86400"),
            ("text_limit_s", 0 < self.text_limit_s <= 600, "above 0, up to 600"),
        )
        for name, good, allowed in checks:
            if not good:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {allowed}")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"{origin!r} is no origin; give scheme, host and port alone, such as https://chat.example.com or "
                    "http://localhost:3000, or * for all pages"
                )
        check_names(self.models)
        if self.lora_dir is not None and not self.lora_dir.is_dir():
            raise ConfigError(f"--lora-dir {self.lora_dir} is not a folder")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def accepted_hosts(self) -> frozenset[str]:
        """Names that a Host header may have; empty: any. A page of the web that has its own name resolve to 127.0.0.1
        must not reach a server that was meant for this machine alone."""
        if self.allowed_hosts:
            return frozenset(name.lower() for name in self.allowed_hosts)
        return frozenset((*LOOPBACK_NAMES, self.host)) if self.is_loopback else frozenset()
