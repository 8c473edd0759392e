"""Types of the native library; what each call means is told in native/bindings.cpp and the headers it binds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[Any]
_Floats = npt.NDArray[np.float32]
_Halves = npt.NDArray[np.uint16]
_Doubles = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int32]
_Buffer = tuple[int, int, str, int, str, bool]
_Format = tuple[str, int, str, str]  # kind, group size, scales, offsets
_Matrix = tuple[_Format, int, int, Any]  # and rows, columns, bytes
_Quantized = tuple[_Bytes, _Bytes, _Bytes | None, _Bytes | None, _Bytes | None, _Bytes | None]

def supported_variants() -> list[str]: ...
def crc32c(data: _Bytes, num_threads: int) -> int: ...
def all_finite(data: _Bytes, dtype: str, num_threads: int) -> bool: ...
def measure_read_gbps(variant: str, num_threads: int, megabytes: int) -> float: ...
def measure_product_gops(variant: str, weights: str, activations: str) -> float: ...
def measure_peak_gops(variant: str, kind: str, num_threads: int) -> float: ...
def packed_bytes(format: _Format, rows: Sequence[int], k: int, paired: bool) -> int: ...
def pack(
    sources: Sequence[_Bytes],
    dtype: str,
    rows: Sequence[int],
    k: int,
    format: _Format,
    paired: bool,
    out: _Bytes,
    variant: str,
    num_threads: int,
) -> None: ...
def pack_codes(sources: Sequence[_Quantized], format: _Format, paired: bool, out: _Bytes, num_threads: int) -> None: ...
def likeliest(logits: _Floats, maxima: _Floats, num_rows: int) -> list[int]: ...

class Sampling:
    def __init__(self, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, sample: int) -> None: ...

class Draws:
    def __init__(self) -> None: ...
    def gather(
        self, logits: _Floats, maxima: _Floats | None, rows: Sequence[int], samplings: Sequence[Sampling]
    ) -> _Floats: ...
    def draw(self, counters: Sequence[int], attempt: int) -> list[int]: ...

class Executor:
    def __init__(
        self,
        variant: str,
        num_threads: int,
        max_tokens: int,
        num_heads: int,
        vocab_size: int,
        num_outputs: int,
        arena_bytes: int,
        scratch_width: int,
        experts_per_token: int,
        cache_places: Sequence[tuple[int, int]],
        num_places: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        cache_dtype: str,
        rounds_queries: bool,
        partition_len: int,
        heads: tuple[int, int],
        host_heads: Sequence[tuple[int, int]],
        host: int,
        team: tuple[int, int, int, int, list[int]] | None,
        link: tuple[tuple[int, int, int, int, int], int, int] | None,
    ) -> None: ...
    def share_threads(self, other: Executor) -> None: ...
    def add_embed(self, format: _Format, n: int, k: int, weight: _Bytes, out: _Buffer, /) -> None: ...
    def add_norm(self, input: _Buffer, gain: _Floats, eps: float, out: _Buffer, order: _Floats | None, /) -> None: ...
    def add_linear(
        self,
        input: _Buffer,
        format: _Format,
        n: int,
        k: int,
        weight: _Bytes,
        bias: _Floats | None,
        epilogue: str,
        residual: _Buffer,
        out: _Buffer,
        panels: tuple[int, int],
        host_panels: Sequence[tuple[int, int]],
    ) -> None: ...
    def add_qkv_rope_write(
        self, input: _Buffer, format: _Format, n: int, k: int, weight: _Bytes, bias: _Floats | None,
        head_norms: tuple[_Floats, _Floats, float] | None, layer: int, q: _Buffer, /,
    ) -> None: ...  # fmt: skip
    def add_attention(
        self, q: _Buffer, layer: int, window: int, is_causal: bool, scale: float, out: _Buffer,
        order: _Floats | None, /,
    ) -> None: ...  # fmt: skip
    def add_relu(self, input: _Buffer, out: _Buffer, /) -> None: ...
    def add_take_rows(self, input: _Buffer, out: _Buffer, /) -> None: ...
    def add_route(
        self, input: _Buffer, format: _Format, n: int, k: int, weight: _Bytes, num_experts: int, normalizes: bool,
        routes: _Buffer, /,
    ) -> None: ...  # fmt: skip
    def add_shared_linear_add(
        self, input: _Buffer, routes: _Buffer, format: _Format, n: int, k: int, weight: _Bytes, residual: _Buffer,
        out: _Buffer, panels: tuple[int, int], host_panels: Sequence[tuple[int, int]], /,
    ) -> None: ...  # fmt: skip
    def add_dispatch(self, input: _Buffer, routes: _Buffer, num_experts: int, out: _Buffer, /) -> None: ...
    def add_expert_gate_up_silu(
        self, input: _Buffer, experts: list[_Matrix], out: _Buffer, panels: tuple[int, int],
        host_panels: Sequence[tuple[int, int]], /,
    ) -> None: ...  # fmt: skip
    def add_expert_linear_add(
        self, input: _Buffer, experts: list[_Matrix], residual: _Buffer, out: _Buffer, panels: tuple[int, int],
        host_panels: Sequence[tuple[int, int]], /,
    ) -> None: ...  # fmt: skip
    def num_products(self) -> int: ...
    def set_lora(
        self, product: int, adapter: int, a: _Halves, b: _Halves, scales: _Floats, first_rank: _Ints, k: int,
        depth: int, /,
    ) -> None: ...  # fmt: skip
    def drop_lora(self, adapter: int, /) -> None: ...
    def set_rope_table(self, table: _Floats, /) -> None: ...
    def step(
        self, token_ids: _Ints, query_start: _Ints, seq_lens: _Ints, block_tables: _Ints, logit_rows: _Ints,
        embeddings: _Floats, hidden_rows: _Ints, adapters: _Ints | None, logits: _Floats, hidden: _Floats,
        maxima: _Floats | None, top_groups: _Ints | None, /,
    ) -> None: ...  # fmt: skip
    def chain(
        self, token: int, length: int, block_table: _Ints, margins: _Doubles, odds: _Doubles, product: float,
        least: float, most: int, temperature: float, least_confidence: int, vocab_size: int, logits: _Floats,
        maxima: _Floats, /,
    ) -> tuple[list[int], list[int], int, bool]: ...  # fmt: skip
    def embed(self, token_ids: _Ints, rows: _Floats, /) -> None: ...
    def serve(self) -> int: ...
    def mail(self) -> _Bytes: ...
    def send(self, kind: int, num_bytes: int) -> None: ...
    def acknowledge(self, error: str, /) -> None: ...
    def wait_for_others(self) -> str: ...
    def lose(self, rank: int, /) -> None: ...
    def lost_rank(self) -> int: ...
    def lost_host(self) -> int: ...
    def waited_seconds(self) -> float: ...
    def exchanged(self) -> tuple[int, int, int]: ...
    def phase_seconds(self) -> list[tuple[str, float]]: ...
    def block_bytes(self) -> int: ...
    def copy_block(self, source: int, destination: int, /) -> None: ...
    def read_block(self, block: int, bytes: _Bytes, /) -> None: ...
    def write_block(self, block: int, bytes: _Bytes, /) -> None: ...
