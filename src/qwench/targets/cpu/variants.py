"""Which kernels run here. A variant is a set of kernels for some instructions; all variants give the same bits.

What a target's instructions allow is known from its name; which of these is fastest for a Program is measured once on
each kind of processor, a millisecond a product, and kept in the cache folder. Called by the cpu target and benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import qwench
from qwench.errors import TargetError
from qwench.host import cache_dir, cpu_name, forced_kernels
from qwench.program.memory import rows_per_token
from qwench.program.ops import Program, matrices_of
from qwench.shared_files import replace_text
from qwench.targets.cpu import _native

# Target -> its variants, best first as far as their instructions tell. A later one has to be faster by WORTH_CHANGING.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "cpu-avx512": ("avx512bf16", "avx512"),
    "cpu-avx2": ("avx2",),
    "cpu-generic": ("generic",),
}
WORTH_CHANGING = 1.05

Product = tuple[str, str]  # the kinds of weights and activations


@dataclass(frozen=True)
class Choice:
    """A variant, and what made it the one: variant -> product -> 10^9 operations/s of one thread; empty if there was
    nothing to choose between."""

    variant: str
    measured: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        """As "avx512 (int8 x int8: avx512 910, avx2 185 GOPS a thread)"."""
        if not self.measured:
            return self.variant
        products = next(iter(self.measured.values()))
        told = (
            f"{product}: {', '.join(f'{variant} {gops[product]:.0f}' for variant, gops in self.measured.items())}"
            for product in products
        )
        return f"{self.variant} ({'; '.join(told)} GOPS a thread)"


def variants_of(target: str) -> tuple[str, ...]:
    """The variants that `target` allows on this processor, never empty.

    Raises TargetError when it lacks the instructions; there is no fallback.
    """
    supported = _native.supported_variants()
    if target == "cpu":
        fast = tuple(v for v in supported if v != "generic")
        return fast or ("generic",)
    if found := tuple(v for v in VARIANTS[target] if v in supported):
        return found
    usable = ", ".join(name for name, variants in VARIANTS.items() if set(variants) & set(supported))
    raise TargetError(f"this processor can't run target {target!r}; it can run: cpu, {usable}")


def choose_variant(target: str, program: Program) -> Choice:
    """The fastest variant of `target` for the products of `program`; of the target cpu the one that $QWENCH_KERNELS
    names, if it does.

    Raises TargetError for a name that isn't among this processor's variants.
    """
    allowed = variants_of(target)
    if target == "cpu" and (forced := forced_kernels()):
        if forced not in _native.supported_variants():
            raise TargetError(
                f"QWENCH_KERNELS is {forced!r}; this processor has: {', '.join(_native.supported_variants())}"
            )
        return Choice(forced, {})
    operations = _operations(program)
    if ("bf16", "bf16") not in operations:  # all that tells these two apart
        allowed = tuple(v for v in allowed if v != "avx512bf16")
    if len(allowed) == 1:
        return Choice(allowed[0], {})
    measured = measured_gops(allowed, operations)
    seconds = {v: sum(n / measured[v][_label(p)] for p, n in operations.items()) for v in allowed}
    best = allowed[0]
    for variant in allowed[1:]:
        if seconds[variant] * WORTH_CHANGING < seconds[best]:
            best = variant
    return Choice(best, measured)


def _operations(program: Program) -> dict[Product, float]:
    """Product -> multiply-adds that a token takes."""
    operations: dict[Product, float] = {}
    for op in program.ops:
        if matrices_of(op):
            weight = program.weights[op.weights[0]]
            times = rows_per_token(program, program.buffers[op.inputs[0]])  # of experts, one stands for all
            product = weight.format.kind, program.buffers[op.inputs[0]].format.kind
            operations[product] = operations.get(product, 0.0) + float(times * weight.shape[0] * weight.shape[1])
    return operations


def _label(product: Product) -> str:
    return "{} x {}".format(*product)


def measured_gops(variants: Iterable[str], products: Iterable[Product]) -> dict[str, dict[str, float]]:
    """Variant -> product as "int8 x int8" -> 10^9 operations/s of one thread, from the cache where they are in it."""
    path = cache_dir() / "kernels.json"
    machine = f"{cpu_name()}, qwench {qwench.__version__}"
    known = _read(path)
    here = known.setdefault(machine, {})
    result: dict[str, dict[str, float]] = {}
    missing = False
    for variant in variants:
        for product in products:
            key = f"{variant}: {_label(product)}"
            if key not in here:
                here[key], missing = round(_native.measure_product_gops(variant, *product), 1), True
            result.setdefault(variant, {})[_label(product)] = here[key]
    if missing:
        _write(path, known)
    return result


def _read(path: Path) -> dict[str, dict[str, float]]:
    """What is in the cache; nothing if it can't be read or isn't what `_write` left there."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        sound = all(isinstance(v, (int, float)) and v > 0 for here in known.values() for v in here.values())
    except (OSError, ValueError, AttributeError):
        return {}
    return known if sound else {}


def _write(path: Path, known: Mapping[str, Mapping[str, float]]) -> None:
    """Where the folder can't be written, the next process measures again."""
    with suppress(OSError):
        replace_text(path, json.dumps(known, indent=1) + "\n")
