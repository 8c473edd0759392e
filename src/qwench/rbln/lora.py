"""Optimum RBLN's options for LoRA adapters, `lora_config`, under its names and rules.

Adapters have ids from 1 on; 0 is the model itself, which is also called "base". Knows nothing of running them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.errors import ConfigError
from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.lora.peft_folder import read_adapter
from qwench.option_checks import check_flag, check_positive

BASE = "base"


@dataclass(frozen=True)
class RBLNLoRAAdapterConfig:
    """An adapter as PEFT saves it. lora_path: its folder.

    r: the rank that it must have. lora_alpha, use_rslora: in place of its own. target_modules: leaves out its other
    modules. scaling_factor: times its own scale. None: as the folder says. Raises ConfigError.
    """

    lora_int_id: int
    lora_name: str
    lora_path: str | Path
    r: int | None = None
    lora_alpha: float | None = None
    target_modules: Sequence[str] | None = None
    bias: str | None = None
    use_rslora: bool | None = None
    scaling_factor: float | None = None

    def __post_init__(self) -> None:
        if type(self.lora_int_id) is not int or self.lora_int_id < 1:
            raise ConfigError(f"lora_int_id is {self.lora_int_id!r}; it must be from 1 on, for 0 is the model itself")
        if not isinstance(self.lora_name, str) or self.lora_name in ("", BASE):
            raise ConfigError(f"lora_name is {self.lora_name!r}; it must be a name, and not {BASE!r}")
        check_positive("r", self.r)
        check_flag("use_rslora", self.use_rslora)
        if self.bias not in (None, "none"):
            raise ConfigError(f"bias is {self.bias!r}; allowed: 'none'")
        for name in ("lora_alpha", "scaling_factor"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ConfigError(f"{name} is {value!r}; it must be a number above 0")

    def read(self, shapes: Mapping[str, tuple[int, ...]]) -> LoraAdapter:
        """The adapter for a model whose tensors have these shapes. Raises CheckpointError, and ConfigError when
        target_modules leaves nothing of it."""
        own = {name: getattr(self, name) for name in ("r", "lora_alpha", "use_rslora")}
        given = {name: value for name, value in own.items() if value is not None}
        pairs, factor = read_adapter(self.lora_path, shapes, given).pairs, self.scaling_factor or 1.0
        kept = {name: LoraPair(p.a, p.b, factor * p.scale) for name, p in pairs.items() if self._targets(name)}
        if not kept:
            raise ConfigError(f"target_modules {self.target_modules!r} leaves nothing of {self.lora_path}")
        return LoraAdapter(kept)

    def _targets(self, name: str) -> bool:
        module = name.removesuffix(".weight").rpartition(".")[2]
        return self.target_modules is None or module in self.target_modules


@dataclass(frozen=True, init=False)
class RBLNLoRAConfig:
    """adapters: in the order of their ids, which are 1, 2, ... max_lora_rank: that none exceeds; None: any rank."""

    adapters: tuple[RBLNLoRAAdapterConfig, ...]
    max_lora_rank: int | None

    def __init__(
        self, adapters: Sequence[RBLNLoRAAdapterConfig | Mapping[str, Any]], max_lora_rank: int | None = None
    ) -> None:
        """Raises ConfigError."""
        try:
            made = [a if isinstance(a, RBLNLoRAAdapterConfig) else RBLNLoRAAdapterConfig(**a) for a in adapters]
        except TypeError as error:
            raise ConfigError(f"lora_config: an adapter isn't one: {error}") from None
        made.sort(key=lambda adapter: adapter.lora_int_id)
        ids, names = [adapter.lora_int_id for adapter in made], {adapter.lora_name for adapter in made}
        if not made or ids != list(range(1, len(made) + 1)):
            raise ConfigError(f"lora_config: ids are {ids}; they must be 1, 2, ... without gaps, one for each adapter")
        if len(names) < len(made):
            raise ConfigError("lora_config: two adapters have one name")
        check_positive("max_lora_rank", max_lora_rank)
        object.__setattr__(self, "adapters", tuple(made))
        object.__setattr__(self, "max_lora_rank", max_lora_rank)

    @classmethod
    def of(cls, given: RBLNLoRAConfig | Mapping[str, Any] | None) -> RBLNLoRAConfig | None:
        """What an option `lora_config` holds. Raises ConfigError."""
        if given is None or isinstance(given, RBLNLoRAConfig):
            return given
        try:
            return cls(**given)
        except TypeError as error:
            raise ConfigError(f"lora_config is {given!r}; give an RBLNLoRAConfig or a dict of its fields") from error

    @property
    def num_adapters(self) -> int:
        """The model itself among them, as in the names and ids."""
        return len(self.adapters) + 1

    @property
    def adapter_ids(self) -> list[int]:
        return list(range(self.num_adapters))

    @property
    def adapter_names(self) -> list[str]:
        return [BASE, *(adapter.lora_name for adapter in self.adapters)]

    def with_paths(self, folders: Sequence[str | Path]) -> RBLNLoRAConfig:
        """The same adapters in other folders."""
        moved = [dataclasses.replace(a, lora_path=str(f)) for a, f in zip(self.adapters, folders, strict=True)]
        return RBLNLoRAConfig(moved, self.max_lora_rank)
