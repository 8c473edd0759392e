"""A rank's rows of the artifact's weights on its device: of matrices only the panels that hold them go up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from qwench.program.local import LocalProgram, Share
from qwench.program.ops import Weight
from qwench.program.shard import PANEL, Span
from qwench.targets.cuda.devices.device import NUMPY_DTYPES, Device, DeviceArray, new_array
from qwench.targets.cuda.memory.weights import (
    ROW_MULTIPLE,
    DeviceMatrix,
    DeviceWeights,
    load_stack,
    load_vector,
    padded,
)
from qwench.targets.target import Array, Float32


def load_local_weights(
    device: Device, local: LocalProgram, whole: Mapping[str, Weight], tensors: Mapping[str, Array]
) -> DeviceWeights:
    """whole: the weights of the whole Program."""
    loaded = DeviceWeights({}, {})
    for name, weight in local.program.weights.items():
        if name not in local.shares:
            if weight.is_vector:
                loaded.vectors[name] = load_vector(device, weight, tensors)
            else:
                loaded.matrices[name] = load_stack(device, [weight], tensors)
    for name, share in local.shares.items():
        weight, packed = whole[share.weight], tensors[share.weight]
        if weight.is_vector:
            values = packed.view(np.float32)
            rows = np.concatenate([values[first:last] for first, last in share.rows])
            loaded.vectors[name] = new_array(device, rows, "fp32")
        else:
            loaded.matrices[name] = _load_rows(device, weight, packed, share)
    return loaded


def _load_rows(device: Device, whole: Weight, packed: Array, share: Share) -> DeviceMatrix:
    """Cut along K as the whole matrix is, so that sums are the same."""
    rows_per_panel = PANEL // 2 if whole.paired else PANEL
    spans = share.rows[:1] if whole.paired else share.rows  # gates; their ups are in the same panels
    panels = [(first // rows_per_panel, -(-last // rows_per_panel)) for first, last in spans]
    num_panels = -(-whole.shape[0] // PANEL) if not whole.paired else -(-whole.shape[0] // 2 // rows_per_panel)
    raw = packed.view(np.uint8).reshape(-1)
    panel_bytes = raw.nbytes // num_panels
    own = np.concatenate([raw[first * panel_bytes : last * panel_bytes] for first, last in panels])
    count = sum(last - first for first, last in share.rows)
    starts_with_panel = all(first % rows_per_panel == 0 for first, _ in spans)
    if len(spans) == 1 and starts_with_panel:
        matrix = load_stack(device, [dataclasses.replace(whole, shape=(count, whole.shape[1]))], {whole.name: own})
        return dataclasses.replace(matrix, whole_rows=whole.shape[0])
    in_panels = sum(last - first for first, last in panels) * PANEL
    matrix = load_stack(device, [dataclasses.replace(whole, shape=(in_panels, whole.shape[1]))], {whole.name: own})
    return dataclasses.replace(_take(device, matrix, _places(spans, panels)), whole_rows=whole.shape[0])


def _places(spans: tuple[Span, ...], panels: list[Span]) -> list[Span]:
    """Where the rows of spans lie among those of their panels."""
    places, before = [], 0
    for (first, last), (panel, end) in zip(spans, panels, strict=True):
        start = before + first - panel * PANEL
        places.append((start, start + last - first))
        before += (end - panel) * PANEL
    return places


def _take(device: Device, matrix: DeviceMatrix, places: list[Span]) -> DeviceMatrix:
    """A matrix of some of the rows."""
    count, width = sum(last - first for first, last in places), matrix.values.shape[1]
    values = device.zeros(matrix.values.dtype, padded(count, ROW_MULTIPLE), width)
    done = 0
    for first, last in places:
        size = last - first
        device.copy(matrix.values.part(first * width, size * width), values.part(done * width, size * width))
        done += size
    return dataclasses.replace(
        matrix, rows=count, values=values, scales=_take_columns(device, matrix.scales, places),
        offsets=_take_columns(device, matrix.offsets, places),
    )  # fmt: skip


def _take_columns(device: Device, groups: DeviceArray | None, places: list[Span]) -> DeviceArray | None:
    """groups: [1, groups, rows_padded], scales or offsets."""
    if groups is None:
        return None
    host: Float32 = np.empty(groups.shape, NUMPY_DTYPES[groups.dtype])
    device.download(groups, host)
    taken = np.concatenate([host[:, :, first:last] for first, last in places], axis=2)
    return new_array(device, np.pad(taken, ((0, 0), (0, 0), (0, -taken.shape[2] % ROW_MULTIPLE))), groups.dtype)
