"""The static memory plan: where each activation buffer lives in one arena, decided at compile time.

A buffer lives from the op that writes it to the last op that reads it; buffers whose lives don't overlap share
bytes. An in-place add takes over the residual's place, so the residual stream is one buffer throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwench.program.ops import Buffer, Program, residual_of

ALIGNMENT = 64  # one cache line, one AVX-512 vector


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets in bytes of each buffer in an arena of `arena_bytes`, for steps of up to `max_step_tokens` tokens."""

    max_step_tokens: int
    arena_bytes: int
    work_bytes: int  # fp32 values between the halves of a fused op, which no buffer holds
    offsets: dict[str, int]

    @property
    def num_bytes(self) -> int:
        return self.arena_bytes + self.work_bytes


def buffer_bytes(buffer: Buffer, num_rows: int) -> int:
    """Bytes of `num_rows` rows: fp32, or for each part int8 codes with an fp32 scale and an int32 sum per group."""
    if not buffer.format.is_quantized:
        return num_rows * buffer.width * 4
    k = buffer.format.padded_k(buffer.width)
    return num_rows * buffer.format.num_parts * (k + k // buffer.format.group_size * 8)


def rows_per_token(program: Program, buffer: Buffer) -> int:
    """At most: of those that are routed, one for each expert that a token chooses."""
    experts = program.spec.experts
    return experts.top_k if buffer.rows == "routed" and experts is not None else 1


def plan_memory(program: Program, max_step_tokens: int) -> MemoryPlan:
    """First-fit by time of birth. Results are the caller's and not part of the arena."""
    alias = _in_place(program)
    lives = _lifetimes(program, alias)
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, int, int]] = []  # birth, death, start, stop
    for name, (birth, death) in sorted(lives.items(), key=lambda item: item[1][0]):
        buffer = program.buffers[name]
        size = -(-buffer_bytes(buffer, max_step_tokens * rows_per_token(program, buffer)) // ALIGNMENT) * ALIGNMENT
        start = 0
        for _, _, low, high in sorted((p for p in placed if p[0] <= death and birth <= p[1]), key=lambda p: p[2]):
            if start + size <= low:
                break
            start = max(start, high)
        placed.append((birth, death, start, start + size))
        offsets[name] = start
    offsets |= {name: offsets[root] for name, root in alias.items() if root in offsets}
    return MemoryPlan(
        max_step_tokens, max((p[3] for p in placed), default=0), work_width(program) * max_step_tokens * 4, offsets
    )


def work_width(program: Program) -> int:
    """Values per token that a fused op holds between its halves: q, k, v before RoPE; attention before quantising; the
    scores of experts before the best are chosen."""
    spec = program.spec
    scores = [program.weights[op.weights[0]].shape[0] for op in program.ops if op.kind == "route"]
    return max(spec.q_size + 2 * spec.kv_size, *scores, 0)


def _in_place(program: Program) -> dict[str, str]:
    """Output of each add -> the first buffer of its residual chain, when nobody reads the old value later."""
    root: dict[str, str] = {}
    order = {op.name: i for i, op in enumerate(program.ops)}
    for i, op in enumerate(program.ops):
        residual = residual_of(op)
        if residual is not None and all(order[reader.name] <= i for reader in program.consumers(residual)):
            root[op.output] = root.get(residual, residual)
    return root


def _lifetimes(program: Program, alias: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Buffer -> (index of the op that writes it, index of the last op that reads it), aliases merged."""
    lives: dict[str, tuple[int, int]] = {}
    for i, op in enumerate(program.ops):
        for name in (*op.inputs, op.output):
            name = alias.get(name, name)
            if name and name not in program.results:
                birth, _ = lives.get(name, (i, i))
                lives[name] = (birth, i)
    return lives
