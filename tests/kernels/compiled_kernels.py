"""Compiles, in a process of its own, what a layer of a real shape launches; prints a line of JSON for each kernel.

    python compiled_kernels.py SHAPE ARCHITECTURE FORMAT ACTIVATIONS CACHE TOKENS[,TOKENS...] [NAME...]

SHAPE: dense or mixture. ARCHITECTURE: 80, 90, 100 or gfx942. NAME: of the only kernels to compile. Needs no GPU, but a
Triton that isn't interpreted.
"""

from __future__ import annotations

import json
import re
import sys

from recording_device import MIXTURE, SHAPE, described, launches_of
from triton.backends.compiler import GPUTarget

from qwench.formats import Format
from qwench.targets.cuda.devices.compilation import compile_kernel

SHARED_BYTES = {"80": 163 << 10, "90": 227 << 10, "100": 227 << 10}  # that a program may have
INSTRUCTIONS = re.compile(r"\b(wgmma\.mma_async\.\S+|mma\.sync\.\S+|tcgen05\.mma\.\S+)")


def main(shape: str, architecture: str, fmt: str, activations: str, cache: str, tokens: str, *names: str) -> None:
    is_nvidia = architecture.isdigit()
    target = GPUTarget("cuda", int(architecture), 32) if is_nvidia else GPUTarget("hip", architecture, 64)
    shared_bytes = SHARED_BYTES.get(architecture, 64 << 10)
    counts = tuple(map(int, tokens.split(",")))
    config = {"dense": SHAPE, "mixture": MIXTURE}[shape]
    for kernel, variant in launches_of(Format.parse(fmt), activations, cache, counts, shared_bytes, config):
        if names and kernel.__name__ not in names:
            continue
        compiled = compile_kernel(kernel, variant, target)
        line = {
            "kernel": kernel.__name__,
            "described": described(kernel, variant),
            "shared_bytes": compiled.metadata.shared,
            "fits": compiled.metadata.shared <= shared_bytes,
            "instructions": sorted(set(INSTRUCTIONS.findall(compiled.asm.get("ptx", "")))),
            "machine_code_bytes": len(compiled.asm["cubin" if is_nvidia else "hsaco"]),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
