"""LoRA adapters under the names that transformers has for them: load_adapter, set_adapter and their like.

Inherited by all models, which ask `adapters_of` for each pass. Unlike in transformers, each row of a batch may
have an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.errors import ConfigError, RequestError
from qwench.lora.peft_folder import read_adapter
from qwench.program.models import adaptable_shapes

if TYPE_CHECKING:
    from qwench.artifact.artifact import Artifact
    from qwench.runtime.engine import Engine

DEFAULT_NAME = "default"  # transformers'


class AdapterMethods:
    """The active adapters are one for all rows, or one per row."""

    artifact: Artifact
    _active: tuple[str | None, ...] = ()
    _are_disabled = False

    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...

    def load_adapter(self, peft_model_id: str | Path, adapter_name: str | None = None, **kwargs: Any) -> None:
        """Loads a folder as PEFT saves it, beside the weights, and makes it the active adapter.

        Raises ConfigError for other keywords than transformers' is_trainable=False and a name that is taken,
        CheckpointError when the folder holds no LoRA of this model, TargetError for one that can't be kept apart.
        """
        for name, value in kwargs.items():
            if value not in (None, False):
                raise ConfigError(
                    f"load_adapter: {name} isn't an option here; give the folder of an adapter and a name"
                )
        name = adapter_name or DEFAULT_NAME
        adapter = read_adapter(peft_model_id, adaptable_shapes(self.artifact.program.spec))
        try:
            self.engine.adapters.load(name, adapter)
        except RequestError as error:
            raise ConfigError(str(error)) from None
        self._active = (name,)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Answers with this adapter from now on; with several, one for each row of a batch. Raises ConfigError for a
        name that isn't loaded."""
        self._activate([adapter_name] if isinstance(adapter_name, str) else list(adapter_name))

    def _activate(self, names: Sequence[str | None]) -> None:
        if not names:
            raise ConfigError("there is no name of an adapter; disable_adapters() answers without any")
        for name in names:
            if name is not None:
                self._check(name)
        self._active, self._are_disabled = tuple(names), False

    def active_adapters(self) -> list[str]:
        return [] if self._are_disabled else [name for name in self._active if name is not None]

    def disable_adapters(self) -> None:
        """Answers as the model itself, until `enable_adapters` or `set_adapter`."""
        self._are_disabled = True

    def enable_adapters(self) -> None:
        self._are_disabled = False

    def delete_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Raises ConfigError for a name that isn't loaded."""
        for name in (adapter_names,) if isinstance(adapter_names, str) else adapter_names:
            self._check(name)
            self.engine.adapters.unload(name)
            self._active = tuple(active for active in self._active if active != name)

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError("add_adapter: a compiled model isn't trained; train with PEFT and load_adapter what it saves")

    def adapters_of(self, num_rows: int) -> list[str | None]:
        """The names of a batch's adapters. Beams and return sequences of a row lie side by side. Raises RequestError
        when there are several adapters, but not one for each row."""
        if self._are_disabled or not self._active:
            return [None] * num_rows
        each, rest = divmod(num_rows, len(self._active))
        if rest:
            raise RequestError(
                f"set_adapter gave {len(self._active)} adapters, one for each row, but there are {num_rows} rows"
            )
        return [name for name in self._active for _ in range(each)]

    def adapter_numbers(self, num_rows: int) -> list[int]:
        """The same as the executor knows them: -1 for none."""
        found = self.engine.adapters.find
        return [-1 if name is None else found(name).number for name in self.adapters_of(num_rows)]

    def _check(self, name: str) -> None:
        if name not in self.engine.adapters.names:
            loaded = ", ".join(map(repr, self.engine.adapters.names)) or "none"
            raise ConfigError(f"there is no adapter {name!r}; loaded: {loaded}")
