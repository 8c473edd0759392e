"""Small models for the engine's tests: a random Qwen2 packed in memory, and an executor whose logits are a hash of
the history that it finds in its own paged cache."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from qwench.checkpoint.spec import ModelSpec
from qwench.config import QwenchConfig
from qwench.llm import LLM
from qwench.program.cache_groups import first_position
from qwench.program.memory import MemoryPlan, plan_memory
from qwench.program.models import build_program
from qwench.program.ops import Program
from qwench.program.passes import fuse, set_formats
from qwench.runtime.engine import Engine
from qwench.runtime.loading import load_engine
from qwench.runtime.spec_decode.draft_model import DraftModel
from qwench.runtime.spec_decode.step_costs import StepCosts
from qwench.targets.registry import get_target
from qwench.targets.target import LOGIT_GROUP, Array, Bytes, CacheConfig, Float32, StepBatch
from qwench.text.tokenizer import Tokenizer

GRAMMAR_VOCAB_SIZE = 400  # more than the tokenizer of conftest.py has
TINY_CONFIG = {
    "model_type": "qwen2", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
TINY_MIXTURE = TINY_CONFIG | {
    "model_type": "qwen2_moe", "num_hidden_layers": 1, "num_experts": 5, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """What `load_engine` needs of an artifact."""

    program: Program
    plan: MemoryPlan
    config: QwenchConfig
    tensors: Mapping[str, Array]


def random_tensors(config: Mapping[str, Any] = TINY_CONFIG) -> dict[str, Array]:
    """Checkpoint tensors, bf16, of a model of that config.json; large enough weights for answers that vary."""
    rng, tensors = np.random.default_rng(0), {}
    for name, weight in build_program(ModelSpec.from_config(config)).weights.items():
        values = rng.standard_normal(weight.shape) * (0.3 if len(weight.shape) == 2 else 0.1)
        tensors[name] = (values + name.endswith("norm.weight")).astype(ml_dtypes.bfloat16)
    return tensors


def write_checkpoint(folder: Path) -> Path:
    """`random_tensors` as a checkpoint on disk."""
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    save_file(random_tensors(), folder / "model.safetensors")
    return folder


def packed_model(target: str = "reference", shape: Mapping[str, Any] = TINY_CONFIG, **options: object) -> PackedModel:
    """The model of `random_tensors`, packed in memory for `target`; options as of QwenchConfig."""
    spec = ModelSpec.from_config(shape)
    config = QwenchConfig.from_dict({"target": target, "batch_size": 4, "kvcache_block_size": 16} | options)
    config = config.resolve(spec)
    program = set_formats(fuse(build_program(spec)), config.format_of, str(config.activations))
    plan = plan_memory(program, config.prefill_chunk_size or 0)
    sources, tensors, packer = random_tensors(shape), {}, get_target(target)
    for weight in program.weights.values():
        out = {t.name: np.zeros(t.shape, t.dtype) for t in packer.packed_tensors(weight)}
        packer.pack(weight, [sources[s] for s in weight.sources], out)
        tensors |= out
    return PackedModel(program, plan, config, tensors)


class HistoryExecutor:
    """Its cache holds a token and a running hash per slot; logits are random numbers seeded by the hash of the
    history as read through the block table. A wrong block, a stale one or a wrong position gives other tokens.

    logits_of: another function of (history, vocab_size), such as `circling_logits`. windows: of each cache group; the
    history is then what all groups together still see, in whole tiles.
    """

    def __init__(
        self, vocab_size: int, cache: CacheConfig, max_step_tokens: int = 10**9,
        logits_of: Callable[[np.ndarray, int], Float32] | None = None, windows: Sequence[int | None] = (None,),
    ) -> None:  # fmt: skip
        self.windows = windows
        self.vocab_size, self.cache, self.max_step_tokens = vocab_size, cache, max_step_tokens
        self.logits_of = logits_of or history_logits
        self.tokens = np.full(cache.num_blocks * cache.block_size, -1, np.int32)
        self.steps: list[StepBatch] = []
        self.fail_with: Exception | None = None

    def step(
        self, batch: StepBatch, logits: Float32 | None = None, hidden: Float32 | None = None,
        maxima: Float32 | None = None,
    ) -> Float32:  # fmt: skip
        assert 0 < len(batch.token_ids) <= self.max_step_tokens and logits is not None
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error
        size, wanted, row = self.cache.block_size, set(batch.logit_rows.tolist()), 0
        assert sorted(wanted) == batch.logit_rows.tolist()
        for s, length in enumerate(batch.seq_lens.tolist()):
            start, stop = batch.query_start[s : s + 2].tolist()
            assert 0 < stop - start <= length
            at = np.arange(length)
            slots = batch.block_tables[s].reshape(len(self.windows), -1)[:, at // size] * size + at % size
            for i in range(start, stop):
                seen = length - (stop - 1 - i)
                self.tokens[slots[:, seen - 1]] = batch.token_ids[i]
                if i in wanted:
                    views = [each[first_position(w, seen - 1) : seen] for w, each in zip(self.windows, slots)]
                    logits[row] = self.logits_of(self.tokens[np.concatenate(views)], self.vocab_size)
                    if maxima is not None:
                        maxima[row] = largest_of_groups(logits[row])
                    row += 1
        self.steps.append(dataclasses.replace(batch, token_ids=batch.token_ids.copy(), seq_lens=batch.seq_lens.copy()))
        return logits[:row]

    def copy_blocks(self, source: Sequence[int], destination: Sequence[int]) -> None:
        raise AssertionError("the engine shares blocks, it doesn't copy them")

    def read_block(self, block: int) -> Bytes:
        return self._block(block).view(np.uint8).copy()

    def write_block(self, block: int, data: Bytes) -> None:
        self._block(block)[:] = data.view(np.int32)

    def _block(self, block: int) -> np.ndarray:
        return self.tokens[block * self.cache.block_size : (block + 1) * self.cache.block_size]

    def kernels(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


def largest_of_groups(row: Float32) -> Float32:
    largest = [row[i : i + LOGIT_GROUP].max() for i in range(0, len(row), LOGIT_GROUP)]
    return np.where(np.isfinite(largest), largest, np.nan).astype(np.float32)


def history_logits(tokens: np.ndarray, vocab_size: int) -> Float32:
    """[vocab_size] fp32: a pure function of the token history."""
    seed = zlib.crc32(np.ascontiguousarray(tokens, np.int32).tobytes())
    return np.random.Generator(np.random.Philox(key=seed)).standard_normal(vocab_size, np.float32) * 3


def circling_logits(tokens: np.ndarray, vocab_size: int) -> Float32:
    """Logits that the last two tokens decide, so that answers go in circles, and that the whole history moves a little,
    so that log-probabilities still tell of any difference in it."""
    return 3 * history_logits(tokens[-2:], vocab_size) + 0.01 * history_logits(tokens, vocab_size)


class FixedCosts(StepCosts):
    """Of a machine where a further token costs a twentieth of a step, and a step of the draft a tenth."""

    def __init__(self, base: float, slope: float = 0.05) -> None:
        super().__init__()
        self._base, self._slope, self._num_seen = base, slope, 100

    def observe(self, num_tokens: int, seconds: float) -> None:
        pass


def with_draft(
    engine: Engine, logits_of: Callable[[np.ndarray, int], Float32], *, vocab_size: int | None = None,
    windows: Sequence[int | None] = (None,), max_seq_len: int | None = None, max_step_tokens: int = 32,
) -> Engine:  # fmt: skip
    """The engine over a HistoryExecutor, with a draft of the same kind."""
    vocab_size = vocab_size or engine.vocab_size
    cache = dataclasses.replace(engine.cache, num_blocks=len(windows) * engine.cache.num_blocks)
    engine.speculation.draft = draft = DraftModel(
        HistoryExecutor(vocab_size, cache, max_step_tokens, logits_of, windows), vocab_size, cache,
        target_vocab_size=engine.vocab_size, max_seq_len=max_seq_len or engine.max_seq_len,
        max_rows=engine.max_num_seqs, max_step_tokens=max_step_tokens,
        max_blocks=-(-engine.max_seq_len // cache.block_size), windows=windows,
        target_windows=engine.scheduler.windows,
    )  # fmt: skip
    engine.speculation.costs, draft.costs = FixedCosts(1.0), FixedCosts(0.1, 0.005)
    return engine


def history_engine(
    num_blocks: int = 64, *, vocab_size: int = 50, block_size: int = 16, max_seq_len: int = 256, max_num_seqs: int = 8,
    max_step_tokens: int = 32, enable_prefix_caching: bool = True, eos_token_ids: tuple[int, ...] = (),
    logits_of: Callable[[np.ndarray, int], Float32] | None = None, windows: Sequence[int | None] = (None,),
) -> Engine:  # fmt: skip
    cache = CacheConfig(num_blocks, block_size, "fp32")
    return Engine(
        HistoryExecutor(vocab_size, cache, max_step_tokens, logits_of, windows), vocab_size, cache,
        max_seq_len=max_seq_len, max_num_seqs=max_num_seqs, max_step_tokens=max_step_tokens,
        enable_prefix_caching=enable_prefix_caching, eos_token_ids=eos_token_ids, windows=windows,
    )  # fmt: skip


def grammar_llm(tokenizer: Tokenizer | None, **options: Any) -> LLM:
    """An LLM over a `history_engine`; options are the engine's."""
    eos = () if tokenizer is None else (tokenizer.eos_token_id,)
    return LLM.from_engine(history_engine(vocab_size=GRAMMAR_VOCAB_SIZE, eos_token_ids=eos, **options), tokenizer)


def load_model(
    *, enable_prefix_caching: bool = True, target: str = "reference", num_threads: int = 1,
    draft: PackedModel | None = None, shape: Mapping[str, Any] = TINY_CONFIG, **options: object,
) -> Engine:  # fmt: skip
    """An engine over `packed_model`."""
    return load_engine(
        packed_model(target, shape, **options), num_threads=num_threads, memory=1 << 30,
        enable_prefix_caching=enable_prefix_caching, draft=draft,
    )  # fmt: skip


def run_all(engine: Engine, names: set[str] | None = None) -> dict[tuple[str, int], list[tuple[Any, Any, Any]]]:
    """Steps until nothing is left: (request, index) -> (token, logprobs, finish reason) per output."""
    answers: dict[tuple[str, int], list[tuple[Any, Any, Any]]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault((output.request_id, output.index), []).append(
                (output.token_id, output.logprobs, output.finish_reason)
            )
        engine.check_integrity()
    return {key: answer for key, answer in answers.items() if names is None or key[0] in names}
