"""The two children of the server, launched with what they need to know.

Called by the command line before it imports the rest of the server, which takes longer than loading a small model.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwench.serve.processes.child import Child
from qwench.serve.settings import ServeSettings


@dataclass(frozen=True)
class Children:
    """engine: owns the model. text: renders templates and tokenises."""

    engine: Child
    text: Child

    @classmethod
    def launch(cls, settings: ServeSettings) -> Children:
        options = {
            "model": str(settings.model), "config": settings.config.to_dict(), "num_threads": settings.num_threads,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "prefix_dir": None if settings.prefix_dir is None else str(settings.prefix_dir),
        }  # fmt: skip
        return cls(
            Child("qwench.serve.processes.engine_process", options),
            Child("qwench.serve.processes.text_process", {"folder": str(settings.model)}),
        )

    def end(self) -> None:
        """At once; of no consequence where they have ended."""
        self.engine.end()
        self.text.end()
