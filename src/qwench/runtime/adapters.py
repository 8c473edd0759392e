"""The LoRA adapters of an engine: names to the numbers that its executor knows them by.

A name can be taken away or given to another adapter while requests run with the old one; that leaves when they are
done. Called by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwench.errors import RequestError
from qwench.lora.adapter import LoraAdapter
from qwench.targets.target import Executor


@dataclass(eq=False)
class LoadedAdapter:
    """number: in StepBatch.adapters. digest: of its values, as bytes. num_requests: unfinished ones that use it."""

    name: str
    number: int
    digest: bytes
    num_requests: int = 0
    is_named: bool = True


@dataclass
class Adapters:
    """Those that requests can name, and those that are still used."""

    executor: Executor
    _named: dict[str, LoadedAdapter] = field(default_factory=dict)
    _numbers: set[int] = field(default_factory=set)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._named)

    @property
    def are_any(self) -> bool:
        return bool(self._numbers)

    def load(self, name: str, adapter: LoraAdapter, *, replace: bool = False) -> None:
        """Raises RequestError for a name that is taken and not to be replaced, TargetError for an adapter that can't be
        kept apart."""
        if name in self._named and not replace:
            raise RequestError(f"there is already an adapter {name!r}; unload it first, or give another name")
        number = next(i for i in range(len(self._numbers) + 1) if i not in self._numbers)
        self.executor.set_adapter(number, adapter)
        self._numbers.add(number)
        if name in self._named:
            self.unload(name)
        self._named[name] = LoadedAdapter(name, number, bytes.fromhex(adapter.digest))

    def unload(self, name: str) -> None:
        """Raises RequestError for an unknown name."""
        adapter = self.find(name)
        del self._named[name]
        adapter.is_named = False
        self._free(adapter)

    def find(self, name: str) -> LoadedAdapter:
        """Raises RequestError for an unknown name."""
        if name not in self._named:
            known = f"those are {', '.join(map(repr, self._named))}" if self._named else "there are none"
            raise RequestError(f"there is no adapter {name!r}; {known}")
        return self._named[name]

    def begin(self, adapter: LoadedAdapter | None) -> None:
        """A request runs with it."""
        if adapter is not None:
            adapter.num_requests += 1

    def end(self, adapter: LoadedAdapter | None) -> None:
        """A request that ran with it is done."""
        if adapter is not None:
            adapter.num_requests -= 1
            self._free(adapter)

    def _free(self, adapter: LoadedAdapter) -> None:
        if adapter.num_requests == 0 and not adapter.is_named:
            self.executor.set_adapter(adapter.number, None)
            self._numbers.remove(adapter.number)
