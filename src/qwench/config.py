"""QwenchConfig: every compile option, its default and its rules.

None means "decide for me"; `resolve` turns it into a value, in a new object, once the model is known. The resolved
config is what an artifact keeps. Knows nothing of targets beyond their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.program.formats import GROUP_SIZES, WEIGHT_KINDS, Format
from qwench.program.ops import Weight
from qwench.targets.target import TARGETS

KV_CACHE_DTYPES = ("bf16", "fp32")
BLOCK_MULTIPLE = 16  # cache positions per vector of scores; see targets/cpu/native/attention


@dataclass(frozen=True)
class QwenchConfig:
    """Compile options. Every field may be None: "the default for this model and machine".

    weights: format of the matrices: bf16 (exact for bf16 checkpoints), int8 or int4.
    head_weights: format of embedding and output head; default: int8 when `weights` is int4, else as `weights`.
    group_size: values along K that share a scale in int8 and int4.
    kv_cache: fp32 or bf16; default: fp32 beside bf16 weights, where answers must match the original's, else bf16.
    max_seq_len: tokens in a sequence, prompt and answer; default: the model's max_position_embeddings.
    batch_size: sequences that generate at once.
    prefill_chunk_size: tokens in one step, over all sequences.
    kvcache_block_size: positions in a cache block, a multiple of 16.
    kvcache_num_blocks: blocks in the cache; default: estimated from the memory there is when the model is loaded.
    memory: bytes that the loaded model may use; default: what the machine has free.
    target: the kind of machine.
    """

    weights: str | None = None
    head_weights: str | None = None
    group_size: int | None = None
    kv_cache: str | None = None
    max_seq_len: int | None = None
    batch_size: int | None = None
    prefill_chunk_size: int | None = None
    kvcache_block_size: int | None = None
    kvcache_num_blocks: int | None = None
    memory: int | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        _choice("weights", self.weights, WEIGHT_KINDS)
        _choice("head_weights", self.head_weights, WEIGHT_KINDS)
        _choice("group_size", self.group_size, GROUP_SIZES)
        _choice("kv_cache", self.kv_cache, KV_CACHE_DTYPES)
        _choice("target", self.target, TARGETS)
        for name in ("max_seq_len", "batch_size", "prefill_chunk_size", "kvcache_num_blocks", "memory"):
            _positive(name, getattr(self, name))
        _positive("kvcache_block_size", self.kvcache_block_size)
        if self.kvcache_block_size is not None and self.kvcache_block_size % BLOCK_MULTIPLE:
            raise ConfigError(
                f"kvcache_block_size is {self.kvcache_block_size}; it must be a multiple of {BLOCK_MULTIPLE}"
            )

    def resolve(self, spec: ModelSpec) -> QwenchConfig:
        """A copy with every default filled in for this model, except `kvcache_num_blocks` and `memory`,
        which are decided where the model is loaded. Raises ConfigError for options that can't go together."""
        weights = self.weights or "bf16"
        max_seq_len = self.max_seq_len or spec.max_position_embeddings
        block_size = self.kvcache_block_size or 32
        if self.kvcache_num_blocks is not None and self.kvcache_num_blocks * block_size < max_seq_len:
            raise ConfigError(
                f"kvcache_num_blocks is {self.kvcache_num_blocks}: {self.kvcache_num_blocks * block_size} positions of "
                f"{block_size} each block can't hold one sequence of max_seq_len {max_seq_len}; give at least "
                f"{-(-max_seq_len // block_size)} blocks or a smaller max_seq_len"
            )
        return dataclasses.replace(
            self,
            weights=weights,
            head_weights=self.head_weights or ("int8" if weights == "int4" else weights),
            group_size=self.group_size or 128,
            kv_cache=self.kv_cache or ("fp32" if weights == "bf16" else "bf16"),
            max_seq_len=max_seq_len,
            batch_size=self.batch_size or 32,
            prefill_chunk_size=self.prefill_chunk_size or 512,
            kvcache_block_size=block_size,
            target=self.target or "cpu",
        )

    def format_of(self, weight: Weight) -> Format:
        """The format of one matrix; call it on a resolved config."""
        is_head = weight.name in ("model.embed_tokens.weight", "lm_head.weight")
        kind = self.head_weights if is_head else self.weights
        assert kind in WEIGHT_KINDS and self.group_size, "resolve() first"
        return Format(kind, 0 if kind == "bf16" else self.group_size)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QwenchConfig:
        """Raises ConfigError for keys that aren't options."""
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(f"unknown option {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
        return cls(**data)


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value is not None and (isinstance(value, bool) or value not in allowed):
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def _positive(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{name} is {value!r}; it must be a positive integer")
