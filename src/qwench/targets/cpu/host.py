"""Which native variant runs: the only module that decides it.

Knows nothing of programs. Called by the cpu target and the benchmark.
"""

from __future__ import annotations

from qwench.errors import TargetError
from qwench.targets.cpu import _native


def variant_for(target: str) -> str:
    """The kernel variant that `target` means here: "cpu" is the best one, "cpu-avx2" is "avx2" or an error.

    Raises TargetError when this processor lacks the instructions; there is no fallback.
    """
    variants: list[str] = _native.supported_variants()
    if target == "cpu":
        return variants[0]
    wanted = target.removeprefix("cpu-")
    if wanted not in variants:
        usable = ", ".join(f"cpu-{v}" for v in variants)
        raise TargetError(f"this processor can't run target {target!r}; it can run: cpu, {usable}")
    return wanted
