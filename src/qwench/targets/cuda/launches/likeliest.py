"""What a greedy sampler looks at of logits: the largest of each group, and the group with the largest of all.

Called by the executors, of all logits or of a rank's own.
"""

from __future__ import annotations

from qwench.targets.cuda.devices.device import Device, DeviceArray
from qwench.targets.cuda.launches.attention import power_of_two
from qwench.targets.target import LOGIT_GROUP, Float32

_BLOCK = 32  # groups of a program


def launch_likeliest(
    device: Device, logits: DeviceArray, width: int, count: int, maxima: DeviceArray, best: DeviceArray,
    num_groups: int | None = None,
) -> None:  # fmt: skip
    """logits: [at least count, at least width]. maxima: [.., at least num_groups], by default as wide; -inf beyond the
    groups that there are. best: [.., at least LOGIT_GROUP]. All fp32, rows as far apart as they are wide."""
    from qwench.targets.cuda.kernels.rows import group_maxima, take_best

    groups = maxima.shape[-1] if num_groups is None else num_groups
    shared = {"num_groups": groups, "WIDTH": width, "LOGITS_WIDTH": logits.shape[-1], "GROUP": LOGIT_GROUP}
    device.launch(
        group_maxima, (count, -(-groups // _BLOCK), 1), logits=logits, out=maxima, out_width=maxima.shape[-1],
        BLOCK=_BLOCK, **shared,
    )  # fmt: skip
    device.launch(
        take_best, (count, 1, 1), logits=logits, maxima=maxima, out=best, maxima_width=maxima.shape[-1],
        out_width=best.shape[-1], BLOCK=power_of_two(groups), **shared,
    )  # fmt: skip


def has_one_largest(maxima: Float32) -> bool:
    """Whether each row of [rows, groups] has; false where NaN, or equals, make that a question."""
    return bool(((maxima == maxima.max(axis=1, keepdims=True)).sum(axis=1) == 1).all())


def put_best(logits: Float32, maxima: Float32, best: Float32) -> None:
    """Of each row the group with the largest, [rows, LOGIT_GROUP], to its place among the logits."""
    for row, group, values in zip(logits, maxima.argmax(axis=1), best):
        place = row[group * LOGIT_GROUP : (group + 1) * LOGIT_GROUP]
        place[:] = values[: len(place)]
