"""A kernel and the arguments of a launch -> machine code, by Triton, without torch and without a GPU.

Triton keeps what it made in its own cache on disk, so that only the first process waits for it. Called by `gpu.py`, and
by the tests for GPUs that nobody has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwench.targets.cuda.devices.device import DeviceArray

ALIGNMENT = 16  # addresses and numbers that are multiples of it allow wider loads; a kernel is compiled for either case


@dataclass(frozen=True)
class Variant:
    """What of a launch decides its code. types: of each argument that isn't constant, as Triton names it. aligned: the
    places of those that are multiples of ALIGNMENT."""

    types: tuple[str, ...]
    aligned: tuple[int, ...]
    constants: tuple[Any, ...]
    num_warps: int
    num_stages: int


def variant_of(kernel: Any, arguments: Mapping[str, Any], num_warps: int, num_stages: int) -> Variant:
    """For a function of `kernels/`, which must get every argument."""
    types: list[str] = []
    aligned: list[int] = []
    constants: list[Any] = []
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            constants.append(value)
            continue
        types.append(_type_of(value))
        number = value.pointer if isinstance(value, DeviceArray) else value
        if isinstance(number, int) and number % ALIGNMENT == 0:
            aligned.append(place)
    return Variant(tuple(types), tuple(aligned), tuple(constants), num_warps, num_stages)


def compile_kernel(kernel: Any, variant: Variant, target: Any) -> Any:
    """Triton's CompiledKernel. target: its GPUTarget, such as GPUTarget("cuda", 90, 32)."""
    import triton
    from triton.compiler import ASTSource

    types, constants = iter(variant.types), iter(variant.constants)
    signature = {p.name: "constexpr" if p.is_constexpr else next(types) for p in kernel.params}
    constexprs = {p.name: next(constants) for p in kernel.params if p.is_constexpr}
    attrs = {(place,): [["tt.divisibility", ALIGNMENT]] for place in variant.aligned}
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": False}
    return triton.compile(ASTSource(kernel, signature, constexprs, attrs), target=target, options=options)


def _type_of(value: Any) -> str:
    if isinstance(value, DeviceArray):
        return f"*{value.dtype}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
