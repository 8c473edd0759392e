"""Runs steps of a Program on a device: uploads the batch, launches what the lowering made, downloads results.

Steps in which each sequence has one token, which is most of them, are recorded once for each number of sequences and
then launched as one (CUDA graphs). Knows nothing of requests. Made by the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qwench.lora.adapter import LoraAdapter
from qwench.program.local import local_program
from qwench.program.memory import MemoryPlan
from qwench.program.ops import Program
from qwench.program.rope import cos_sin, inverse_frequencies
from qwench.targets.cuda.devices.device import Communicator, Device, Replay, new_array
from qwench.targets.cuda.launches.likeliest import has_one_largest, launch_likeliest, put_best
from qwench.targets.cuda.lowering import Lowering, Step
from qwench.targets.cuda.memory.kv_cache import KvCache
from qwench.targets.cuda.memory.weights import DeviceWeights, load_weights
from qwench.targets.cuda.ranks.local_weights import load_local_weights
from qwench.targets.cuda.step_arrays import Shape, StepUploader, host_arrays
from qwench.targets.target import LOGIT_GROUP, Array, Bytes, CacheConfig, Float32, Int32, StepBatch

ROPE_POSITIONS = 4096  # by which the RoPE table grows
SEQUENCE_BUCKETS = (1, 2, 4, 8, *range(16, 257, 8))  # numbers of sequences that steps are recorded for


class CudaExecutor:
    """Keeps no packed tensors: what kernels read is in the device's memory once this is made.

    communicator: with the other ranks, if the Program is a rank's (program/shard.py)."""

    def __init__(
        self, device: Device, program: Program, plan: MemoryPlan, tensors: Mapping[str, Array], cache: CacheConfig,
        communicator: Communicator | None = None,
    ) -> None:  # fmt: skip
        self.program, self._device, self._config = program, device, cache
        spec, self._max_tokens = program.spec, plan.max_step_tokens
        local, weights = _own_part(device, program, tensors, communicator)
        self._cache = KvCache(device, local, cache)
        self._lowering = Lowering(device, local, weights, self._cache, plan.max_step_tokens, communicator)
        self._tokens_per_tile = self._lowering.tokens_per_tile
        self._num_groups = self._lowering.num_groups
        self._uploader = StepUploader(device)
        self._inv_freq, self._rope_factor = inverse_frequencies(spec.rope, spec.head_dim)
        self._rope = device.zeros("fp32", 0, spec.head_dim)
        self._logits = device.zeros("fp32", 0, spec.num_outputs)
        self._maxima = device.zeros("fp32", 0, -(-spec.num_outputs // LOGIT_GROUP))
        self._best = device.zeros("fp32", 0, LOGIT_GROUP)
        self._nothing = device.zeros("fp32", 0, 0, 0)
        self._recorded: dict[Shape, Replay] = {}

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        if batch.adapters is not None:
            self._lowering.adapters.check(batch.adapters)
        assert len(batch.token_ids) <= self._max_tokens, "buffers were made for fewer"
        num_logits = len(batch.logit_rows)
        if logits is None:
            logits = np.empty((num_logits, self.program.spec.num_outputs), np.float32)
        is_decode = len(batch.token_ids) == len(batch.seq_lens) == num_logits and batch.hidden_rows is None
        is_recorded = is_decode and batch.embeddings is None and num_logits <= SEQUENCE_BUCKETS[-1]
        num_seqs = len(batch.seq_lens)
        if is_recorded:
            num_seqs = next(size for size in SEQUENCE_BUCKETS if num_seqs <= size)
        shape, arrays = host_arrays(batch, self._config.block_size, self._num_groups, self._tokens_per_tile, num_seqs)
        self._grow(shape, arrays)
        states = 0 if hidden is None or batch.hidden_rows is None else len(hidden)
        step = self._step_of(batch, shape, arrays, states)
        if is_recorded:
            self._replay(step)
        else:
            self._launch(step)
        is_greedy = batch.top_groups is not None and bool((batch.top_groups == 1).all())
        self._download(step, logits[:num_logits], maxima, hidden, is_greedy)
        return logits[:num_logits]

    def _step_of(self, batch: StepBatch, shape: Shape, arrays: list[Int32], num_states: int) -> Step:
        hidden = self._nothing
        if num_states and shape.num_hidden:
            hidden = self._device.zeros("fp32", num_states, shape.num_hidden, self.program.spec.hidden_size)
        given = self._nothing if batch.embeddings is None else new_array(self._device, batch.embeddings, "fp32")
        return Step(self._uploader.upload(shape, arrays), given, self._rope, self._logits, hidden)

    def _launch(self, step: Step) -> None:
        for launch in self._lowering.launches:
            launch(step)
        self._launch_likeliest(step)

    def _replay(self, step: Step) -> None:
        shape = step.arrays.shape
        if shape not in self._recorded:
            self._recorded[shape] = self._device.record(lambda: self._launch(step))
        self._recorded[shape]()

    def _launch_likeliest(self, step: Step) -> None:
        num_logits = step.arrays.shape.num_logits
        if num_logits and self.program.logits is not None:
            launch_likeliest(self._device, self._logits, self._logits.shape[1], num_logits, self._maxima, self._best)

    def _download(
        self, step: Step, logits: Float32, maxima: Float32 | None, hidden: Float32 | None, is_greedy: bool
    ) -> None:
        if len(logits) and self.program.logits is not None:
            if maxima is not None:
                self._device.download(self._maxima, maxima[: len(logits)])
            if maxima is None or not is_greedy or not self._download_best(logits, maxima[: len(logits)]):
                self._device.download(self._logits, logits)
        self._download_hidden(step, hidden)

    def _download_hidden(self, step: Step, hidden: Float32 | None) -> None:
        count, width = step.arrays.shape.num_hidden, self.program.spec.hidden_size
        for i in range(step.num_states):
            assert hidden is not None
            self._device.download(step.hidden.part(i * count * width, count, width), hidden[i, :count])

    def _download_best(self, logits: Float32, maxima: Float32) -> bool:
        """The group with the largest logit of each row; false where NaN, or equals, make that a question."""
        if not has_one_largest(maxima):
            return False
        best = np.empty((len(logits), LOGIT_GROUP), np.float32)
        self._device.download(self._best, best)
        put_best(logits, maxima, best)
        return True

    def _grow(self, shape: Shape, arrays: list[Int32]) -> None:
        """Makes room for a step; what was recorded with the old places is forgotten."""
        spec = self.program.spec
        if shape.longest > self._rope.shape[0]:
            size = -(-shape.longest // ROPE_POSITIONS) * ROPE_POSITIONS
            table = cos_sin(self._inv_freq, self._rope_factor, 0, size)
            self._rope = new_array(self._device, table, "fp32")
            self._recorded.clear()
        if shape.num_logits > self._logits.shape[0]:
            rows = 2 * shape.num_logits
            self._logits = self._device.zeros("fp32", rows, spec.num_outputs)
            self._maxima = self._device.zeros("fp32", rows, self._maxima.shape[1])
            self._best = self._device.zeros("fp32", rows, LOGIT_GROUP)
            self._recorded.clear()
        if self._uploader.reserve(arrays):
            self._recorded.clear()

    def embed(self, token_ids: Int32) -> Float32:
        rows = np.empty((len(token_ids), self.program.spec.hidden_size), np.float32)
        if len(token_ids):
            out = self._device.zeros("fp32", *rows.shape)
            self._lowering.embed(
                self._lowering.matrices[next(op for op in self.program.ops if op.kind == "embed").weights[0]],
                new_array(self._device, token_ids, "i32"), len(token_ids), self._nothing, out,
            )  # fmt: skip
            self._device.download(out, rows)
        return rows

    def copy_blocks(self, source: Sequence[int], destination: Sequence[int]) -> None:
        for old, new in zip(source, destination, strict=True):
            self._device.copy(self._cache.block(int(old)), self._cache.block(int(new)))

    def read_block(self, block: int) -> Bytes:
        return self._cache.read_block(block)

    def write_block(self, block: int, data: Bytes) -> None:
        self._cache.write_block(block, data)

    def set_adapter(self, number: int, adapter: LoraAdapter | None) -> None:
        self._lowering.adapters.set(number, adapter, before_moving=self._recorded.clear)

    def kernels(self) -> dict[str, str]:
        return dict(self._lowering.kernels)

    def close(self) -> None:
        if hasattr(self, "_lowering"):
            self._recorded.clear()
            self._lowering.launches.clear()  # which hold arrays, and the lowering itself
            del self._lowering, self._cache, self._logits
            self._device.close()


def _own_part(
    device: Device, program: Program, tensors: Mapping[str, Array], communicator: Communicator | None
) -> tuple[Program, DeviceWeights]:
    """What this process computes of a Program, and the weights for it."""
    if communicator is None:
        return program, load_weights(device, program, tensors)
    local = local_program(program)
    return local.program, load_local_weights(device, local, program.weights, tensors)
