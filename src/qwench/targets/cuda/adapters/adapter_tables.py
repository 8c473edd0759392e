"""Where each adapter's matrices lie, as kernels/lora.py reads it: tables of [products, slots, MOST_SOURCES], here and
on the device. Called by lora.py."""

from __future__ import annotations

import numpy as np

from qwench.targets.cuda.devices.device import NUMPY_DTYPES, Device, DeviceArray, HostArray, new_array

MOST_SOURCES = 3  # of a matrix: q, k and v
_DTYPES = {"a_places": "i64", "b_places": "i64", "ranks": "i32", "factors": "fp32"}


class AdapterTables:
    """An adapter's slot is its number plus 1; slot 0 is no adapter. Numbers of what isn't changed are 0.

    a_places, b_places: addresses. ranks: padded. factors: what the ranks' values are multiplied by.
    """

    def __init__(self, device: Device, num_products: int) -> None:
        self._device = device
        self._host: dict[str, HostArray] = {
            name: np.zeros((num_products, 1, MOST_SOURCES), NUMPY_DTYPES[dtype]) for name, dtype in _DTYPES.items()
        }
        self._on_device: dict[str, DeviceArray] = {}

    @property
    def num_slots(self) -> int:
        return int(self._host["ranks"].shape[1])

    def widen(self, num_slots: int) -> None:
        """Makes room, in other places."""
        more = ((0, 0), (0, num_slots - self.num_slots), (0, 0))
        host = {name: np.pad(values, more) for name, values in self._host.items()}
        self._on_device = {name: new_array(self._device, host[name], dtype) for name, dtype in _DTYPES.items()}
        self._host = host

    def clear(self, slot: int) -> None:
        for values in self._host.values():
            values[:, slot] = 0

    def write(
        self, product: int, slot: int, source: int, a: DeviceArray, b: DeviceArray, ranks: int, factor: float
    ) -> None:
        for name, value in (("a_places", a.pointer), ("b_places", b.pointer), ("ranks", ranks), ("factors", factor)):
            self._host[name][product, slot, source] = value

    def upload(self) -> None:
        """What was written since, all at once."""
        for name, values in self._host.items():
            self._device.upload(values, self._on_device[name])

    def of(self, product: int) -> dict[str, DeviceArray]:
        """By name, [num_slots, MOST_SOURCES]."""
        size = self.num_slots * MOST_SOURCES
        return {
            name: array.part(product * size, self.num_slots, MOST_SOURCES) for name, array in self._on_device.items()
        }
