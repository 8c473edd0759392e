"""How fast this machine is, measured: reading memory and computing, with the instructions that a target uses.

Knows nothing of models; `throughput.py` and `profile.py` set what they measure beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwench.errors import TargetError
from qwench.targets.cpu import NAMES, _native
from qwench.targets.cpu.variants import variants_of


@dataclass(frozen=True)
class Machine:
    """How to measure this machine with as many threads as the model uses.

    read_gbps(megabytes): reading a buffer of that size. peak_gops(kind): multiply and add count as two.
    """

    read_gbps: Callable[[int], float]
    peak_gops: Callable[[str], float]


def this_machine(target: str, num_threads: int) -> Machine:
    """Measured with the instructions of `target`, the best there are for the reference. Raises TargetError for one that
    is no CPU."""
    if target not in (*NAMES, "reference"):
        raise TargetError(f"the ceilings of target {target!r} are not measured here; see benchmarks/gpu.py")
    variants = variants_of("cpu" if target == "reference" else target)
    return Machine(
        lambda megabytes: max(_native.measure_read_gbps(v, num_threads, megabytes) for v in variants),
        lambda kind: max(_native.measure_peak_gops(v, kind, num_threads) for v in variants),
    )
