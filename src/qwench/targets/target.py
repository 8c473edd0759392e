"""The two protocols that a kind of machine implements.

A Target packs weights at compile time and makes an Executor at load time; an Executor runs one step of a Program
for a batch. Nothing above this line of the house knows how either does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from qwench.lora.adapter import LoraAdapter
from qwench.program.cache_groups import cache_groups
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program, Weight
from qwench.quantized_matrix import QuantizedMatrix

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]

LOGIT_GROUP = 64  # neighbouring logits whose largest a step can give


@dataclass(frozen=True)
class StepBatch:
    """One step's work for `num_seqs` sequences; the tokens of sequence s are rows query_start[s]:query_start[s+1].

    token_ids: [num_tokens] int32; ~i stands for row i of `embeddings`, to be read in place of a token's own.
    query_start: [num_seqs + 1] int32.
    seq_lens: [num_seqs] int32, tokens in the cache once this step is done (those of the step included), so that the
        first token of sequence s has position seq_lens[s] - (query_start[s + 1] - query_start[s]).
    block_tables: [num_seqs, num_groups * max_blocks] int32, for each cache group in turn (program/cache_groups.py) the
        block of positions [i * block_size, (i + 1) * block_size). Blocks behind a group's window aren't read.
    logit_rows: [num_logits] int32, increasing token rows whose logits are wanted; may be empty.
    embeddings: [num_embeddings, hidden_size] fp32, or None where all tokens have ids.
    hidden_rows: [num_hidden] int32, increasing token rows whose hidden states are wanted, or None.
    adapters: [num_seqs] int32, of each sequence the number of its LoRA adapter or -1, or None where all have none.
    top_groups: [num_logits] int32, how many groups of LOGIT_GROUP neighbours are looked at of each row of logits: those
        with the largest maxima, and all that equal the last of them; 0, or None for all rows: any. A target may leave
        the values of other groups as they were; of a row with NaN among its maxima it computes them, or writes -inf.
    """

    token_ids: Int32
    query_start: Int32
    seq_lens: Int32
    block_tables: Int32
    logit_rows: Int32
    embeddings: Float32 | None = None
    hidden_rows: Int32 | None = None
    adapters: Int32 | None = None
    top_groups: Int32 | None = None


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of the artifact: name, NumPy dtype name and shape. Its size in bytes is a multiple of 64."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


KV_CACHE_DTYPES = ("int16", "bf16", "fp32", "int8")


@dataclass(frozen=True)
class CacheConfig:
    """The paged KV cache: `num_blocks` blocks of `block_size` positions, each for the layers of one cache group, which
    are all layers unless some slide.

    dtype: fp32, bf16, int16: codes with one fp32 scale per position and head, or int8: the same with keys less their
        layer's bias, which is added again where they are read.
    partition_len: positions, a multiple of 64, whose attention a target may compute apart from that of others.
    rounds_queries: whether attention rounds queries and probabilities to bf16 before it multiplies them; bf16 alone.
    """

    num_blocks: int
    block_size: int
    dtype: str
    partition_len: int = 512
    rounds_queries: bool = False

    @property
    def attends_in(self) -> str:
        """What queries and probabilities become before they are multiplied: fp32, bf16 or int16."""
        return "int16" if self.dtype in ("int16", "int8") else "bf16" if self.rounds_queries else "fp32"

    def block_bytes(self, program: Program) -> int:
        """Bytes of one block over the layers of a group, as this configuration stores it (head_dim padded to 16)."""
        spec = program.spec
        padded = -(-spec.head_dim // 16) * 16
        vector_bytes = {"fp32": 4 * padded, "bf16": 2 * padded, "int16": 2 * padded + 4, "int8": padded + 4}[self.dtype]
        return 2 * len(cache_groups(spec)[0].layers) * spec.num_kv_heads * self.block_size * vector_bytes


@dataclass(frozen=True)
class Team:
    """The ranks of one host that run each step together; program/shard.py says who computes what.

    memory: [num_bytes] uint8, zeros at first, mapped by all of them. mail_bytes: of it for the mailbox, by which the
    first rank tells the others what to do. rank: among them. threads: of each rank. host: this one. link: to the other
    hosts, if there are any, of the first rank.
    """

    memory: Bytes
    mail_bytes: int
    rank: int
    threads: tuple[int, ...]
    host: int = 0
    link: Link | None = None


@dataclass(frozen=True)
class Link:
    """This host among those that compute each step together. mpi: addresses of MPI_Isend, MPI_Irecv and MPI_Test, and
    the handles of the communicator and of MPI_BYTE."""

    mpi: tuple[int, int, int, int, int]
    host: int
    num_hosts: int


class Executor(Protocol):
    """Runs steps. Not thread-safe: one step at a time."""

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        """Computes one step: [num_logits, vocab_size] fp32, in `logits` if given.

        The step holds at most `max_step_tokens` tokens. Without `logits` the result is valid until the next step.
        hidden: [num_states, at least num_hidden, hidden_size] fp32, which takes the last `num_states` hidden states of
        `batch.hidden_rows`: of the num_layers + 1 that transformers calls so, the residual stream before each layer
        and, the last, after the final norm. Rows must be contiguous, states needn't lie next to each other.
        maxima: [at least num_logits, ceil(vocab_size / LOGIT_GROUP)] fp32, for the largest of every LOGIT_GROUP
        neighbouring logits, NaN where one of them is NaN or infinite. Found while the logits are in the processor's
        cache, they spare the sampler a search through all of them.
        """
        ...

    def embed(self, token_ids: Int32) -> Float32:
        """The embeddings of tokens [n] int32: [n, hidden_size] fp32, a new array."""
        ...

    def copy_blocks(self, source: Sequence[int], destination: Sequence[int]) -> None:
        """Copies whole cache blocks."""
        ...

    def read_block(self, block: int) -> Bytes:
        """The content of a cache block: a new array [num_bytes] uint8, in the target's own layout."""
        ...

    def write_block(self, block: int, data: Bytes) -> None:
        """Puts into a block what `read_block` gave, of this executor or one of the same Program, target and cache."""
        ...

    def set_adapter(self, number: int, adapter: LoraAdapter | None) -> None:
        """Gives an adapter its number, for `StepBatch.adapters`, or takes the number's adapter away. A, B and what they
        add are computed from bf16 values in fp32; rows of other sequences keep their bits.

        Raises TargetError when it changes a matrix that can't be adapted here.
        """
        ...

    def kernels(self) -> dict[str, str]:
        """Op name -> the kernel that serves it on this machine."""
        ...

    def close(self) -> None:
        """Stops threads and frees the cache. Idempotent."""
        ...


class Channel(Protocol):
    """What the ranks of one host tell each other. Native code has it (`team.h`), `parallel/messages.py` is the
    language."""

    def mail(self) -> Bytes:
        """The mailbox, of which `send` makes a message."""
        ...

    def send(self, kind: int, num_bytes: int) -> None:
        """Of the first rank, to all others."""
        ...

    def serve(self) -> int:
        """Of the others: waits for a message, and returns its kind; 0 once a rank was lost."""
        ...

    def acknowledge(self, error: str) -> None:
        """Of the others: they have done what they were told to, or why they couldn't."""
        ...

    def wait_for_others(self) -> str:
        """Of the first rank: returns the first error, or "". Raises RuntimeError when a rank was lost."""
        ...

    def lose(self, rank: int) -> None:
        """A rank can't go on: all that wait for it stop."""
        ...

    def lost_rank(self) -> int:
        """-1: none."""
        ...


@runtime_checkable
class RankExecutor(Executor, Protocol):
    """An Executor of one rank's Program, whose steps all ranks of its team take at once."""

    program: Program

    @property
    def channel(self) -> Channel: ...


@runtime_checkable
class JoiningExecutor(RankExecutor, Protocol):
    """One whose steps need a connection to those of the other ranks."""

    def invitation(self) -> bytes:
        """Of the first rank, for all: what `join` needs."""
        ...

    def join(self, invitation: bytes) -> None:
        """Of all ranks at once. Raises TargetError."""
        ...


@runtime_checkable
class TimedExecutor(Executor, Protocol):
    """An Executor that also knows how long each op takes; not every target's does."""

    def op_seconds(self) -> dict[str, dict[str, float]]:
        """Op name -> phase -> seconds spent in it so far, for every op and every phase it was lowered to, in order.

        An op that was merged into another's phases has none of its own.
        """
        ...


@runtime_checkable
class SharedExecutor(Executor, Protocol):
    """An Executor whose steps several processes compute together."""

    def waited_seconds(self) -> float:
        """So far, for the others, of the first thread of the first."""
        ...


@dataclass(frozen=True)
class ChainRule:
    """How far a chain of guesses goes: up to `most`, as long as all are right with a probability of `least`, `product`
    being that of those before.

    margins: [n] float64, increasing, how far the largest logit stands above the second one, in temperatures, where a
        guess has the next confidence. odds: [n + 1] float64, of a guess, by its confidence. In the place of the second
        logit stands the largest outside the LOGIT_GROUP of the first, unless there are few groups.
    least_confidence: a likelier token than that of others must be, to be chosen without the caller.
    vocab_size: tokens from here on are padding, and end the chain.
    """

    most: int
    margins: Float64
    odds: Float64
    product: float
    least: float
    temperature: float
    least_confidence: int
    vocab_size: int


class Chain(NamedTuple):
    """tokens, confidences: of the guesses. num_steps: that it took. has_ended: by the rule; else the last step's row
    of logits is the caller's to choose from."""

    tokens: list[int]
    confidences: list[int]
    num_steps: int
    has_ended: bool


@runtime_checkable
class ChainingExecutor(Executor, Protocol):
    """An Executor that takes many steps of one sequence at once, each for the likeliest token behind the one before."""

    def chain(
        self, token: int, length: int, block_table: Int32, rule: ChainRule, logits: Float32, maxima: Float32
    ) -> Chain:
        """Computes `token`, the last of `length` tokens, and then its guesses of what follows.

        block_table: [1, num_groups * max_blocks], with blocks for all of them. logits, maxima: as of `step`, one row.
        """
        ...


@runtime_checkable
class ThreadedExecutor(Executor, Protocol):
    """An Executor with threads of its own."""

    def share_threads(self, other: Executor) -> None:
        """Computes with the threads of `other`, which has as many and never steps at the same time."""
        ...


class Target(Protocol):
    """A kind of machine."""

    name: str
    layout: str  # name and version of the packed layout; an artifact loads only where its layout is known

    def packed_tensors(self, weight: Weight) -> list[PackedTensor]:
        """The tensors that `pack` fills for this weight."""
        ...

    def pack(self, weight: Weight, sources: Sequence[Array | QuantizedMatrix], out: Mapping[str, Array]) -> None:
        """Packs the sources, whose rows are stacked in order: all of them quantised in the weight's format, or all
        bf16, fp16 or fp32, to be rounded to it. A pure function of the sources."""
        ...

    def kernel_choice(self, program: Program) -> str:
        """Which kernels `load` takes for a Program on this machine, and what made them the ones: a line for people."""
        ...

    def load(
        self, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig, num_threads: int,
        team: Team | None = None,
    ) -> Executor:  # fmt: skip
        """An executor over packed tensors, which it keeps alive and never writes. team: where the Program is one
        rank's. Raises TargetError for a target that has no ranks."""
        ...


@runtime_checkable
class DeviceTarget(Target, Protocol):
    """A Target whose models lie in the memory of a device, not in the host's."""

    def available_bytes(self) -> int:
        """Of that memory, what a model may take. Raises TargetError where there is no device."""
        ...
