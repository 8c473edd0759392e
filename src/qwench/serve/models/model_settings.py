"""What `qwench serve` is told of each model, and the names that models have.

Knows no HTTP; made by the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwench.config import QwenchConfig
from qwench.errors import ConfigError


@dataclass(frozen=True)
class ModelSettings:
    """folder: an artifact's. names: what clients call the model, the first one in answers. config: options of loading.

    lora: adapters to have from the start, name -> folder. prefix_dir: a folder of prefixes that `qwench prefix save`
    wrote, to be in the cache from the start. draft: a model that guesses for this one. share: bytes that it takes, once
    loaded, of the memory that models share, and least_share: with how few it is loaded where others hold the rest; None
    where it shares with none. max_seq_len: where it is known before. starts: whether it is loaded with the server, not
    when it is first asked for.
    """

    folder: Path
    names: tuple[str, ...]
    config: QwenchConfig = field(default_factory=QwenchConfig)
    lora: Mapping[str, Path] = field(default_factory=dict)
    prefix_dir: Path | None = None
    draft: str | None = None
    share: int | None = None
    least_share: int | None = None
    max_seq_len: int | None = None
    starts: bool = True

    def __post_init__(self) -> None:
        if taken := sorted(set(self.lora) & set(self.names)):
            raise ConfigError(f"{taken[0]!r} is the name of the model; give the adapter another one")


def plain_name(name: str) -> str:
    """A model's name without what clients change of it."""
    return name.strip().lower().removesuffix(":latest")


def check_names(models: Iterable[ModelSettings]) -> None:
    """Raises ConfigError where two models, or their adapters, have names that a request couldn't tell apart."""
    owners: dict[str, tuple[ModelSettings, str]] = {}
    for model in models:
        for name in (*model.names, *model.lora):
            owner, other = owners.setdefault(plain_name(name), (model, name))
            if owner is not model:
                raise ConfigError(
                    f"two models are called {name!r}" + (f" (one of them {other!r})" if other != name else "")
                    + "; name them with NAME=MODEL, or adapters with --lora MODEL/NAME=FOLDER"
                )  # fmt: skip
