"""How many cache blocks a loaded model gets, and what is said when memory doesn't do."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from engine_models import PackedModel, packed_model

from qwench.errors import CapacityError, ConfigError
from qwench.runtime import loading
from qwench.runtime.loading import GIB, choose_num_blocks, load_engine
from qwench.runtime.scheduler import MAX_EXTRA_ROWS

BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 4  # k and v, layers, kv heads, positions, head_dim, fp32


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return packed_model(max_seq_len=256, batch_size=4)


def fixed_bytes(model: PackedModel) -> int:
    logits, rope_table = (4 + MAX_EXTRA_ROWS) * 300 * 4, 256 * 16 * 4
    return sum(t.nbytes for t in model.tensors.values()) + model.plan.num_bytes + logits + rope_table


def with_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: num_bytes)


def test_enough_for_every_sequence_is_enough(model: PackedModel) -> None:
    assert choose_num_blocks(model, memory=GIB) == 4 * 16


def test_a_budget_is_used_to_the_last_block(model: PackedModel) -> None:
    fixed = fixed_bytes(model)
    assert choose_num_blocks(model, memory=fixed + 20 * BLOCK_BYTES) == 20
    assert choose_num_blocks(model, memory=fixed + 21 * BLOCK_BYTES - 1) == 20
    with pytest.raises(CapacityError, match="one sequence of 256 tokens") as caught:
        choose_num_blocks(model, memory=fixed + 16 * BLOCK_BYTES - 1)
    assert "Lower max_seq_len" in str(caught.value)


def test_half_of_what_is_free_by_default(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = fixed_bytes(model)
    with_free(monkeypatch, fixed + 100 * BLOCK_BYTES)
    assert choose_num_blocks(model) == 50
    with_free(monkeypatch, fixed + 20 * BLOCK_BYTES)
    assert choose_num_blocks(model) == 16  # one full sequence, though it is more than half
    with_free(monkeypatch, fixed + 15 * BLOCK_BYTES)
    with pytest.raises(CapacityError, match="available"):
        choose_num_blocks(model)


def test_no_more_than_four_gib_by_default(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 100 * GIB)
    crowd = dataclasses.replace(model, config=dataclasses.replace(model.config, batch_size=100_000))
    assert choose_num_blocks(crowd) == 4 * GIB // BLOCK_BYTES
    assert choose_num_blocks(crowd, memory=20 * GIB) > 4 * GIB // BLOCK_BYTES


def test_as_many_as_asked_for(model: PackedModel) -> None:
    assert choose_num_blocks(model, 500, GIB) == 500
    with pytest.raises(ConfigError, match="at least 16"):
        choose_num_blocks(model, 15, GIB)
    with pytest.raises(CapacityError, match="as asked for"):
        choose_num_blocks(model, 10**9, GIB)


def test_the_estimate_is_logged(model: PackedModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "qwench"):
        engine = load_engine(model, memory=GIB)
    assert "1.00 GiB allowed" in caplog.text and "64 blocks, 1024 tokens" in caplog.text and "left" in caplog.text
    assert engine.cache.num_blocks == 64
    assert engine.max_seq_len == 256


def test_options_of_the_config(model: PackedModel) -> None:
    config = dataclasses.replace(model.config, kvcache_num_blocks=17, memory=GIB)
    engine = load_engine(dataclasses.replace(model, config=config), eos_token_ids=[3])
    assert engine.cache.num_blocks == 17
    assert engine.eos_token_ids == {3}
    with pytest.raises(ConfigError, match="num_threads"):
        load_engine(model, num_threads=0)


def test_batch_sizes_to_prepare_are_not_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load_engine(packed_model(max_seq_len=256, batch_size=4), memory=GIB)
    assert "decoder_batch_sizes" not in caplog.text
    load_engine(packed_model(max_seq_len=256, batch_size=4, decoder_batch_sizes=[1, 4]), memory=GIB)
    assert "decoder_batch_sizes (4, 1): this target runs any number of sequences up to 4" in caplog.text


def test_memory_is_for_the_model_and_its_draft(model: PackedModel) -> None:
    """A block is one of each; the draft's are as long as the model's, whatever its own artifact says."""
    draft = packed_model(max_seq_len=128, batch_size=2, weights="int8", kv_cache="bf16", kvcache_block_size=32)
    beside = sum(t.nbytes for t in draft.tensors.values()) + draft.plan.num_bytes
    beside += (2 + MAX_EXTRA_ROWS) * 300 * 4 + 128 * 16 * 4
    fixed, block = fixed_bytes(model) + beside, BLOCK_BYTES + BLOCK_BYTES // 2
    assert choose_num_blocks(model, memory=fixed + 20 * block, draft=draft) == 20
    assert choose_num_blocks(model, memory=fixed + 20 * block - 1, draft=draft) == 19
    with pytest.raises(CapacityError, match="the model with its draft needs"):
        choose_num_blocks(model, memory=fixed + 16 * block - 1, draft=draft)
    engine = load_engine(model, memory=fixed + 20 * block, draft=draft, num_threads=1)
    cache = engine.speculation.draft.cache
    assert (cache.num_blocks, cache.block_size, cache.dtype) == (20, 16, "bf16")


def test_no_draft_beside_ranks(model: PackedModel) -> None:
    ranks = dataclasses.replace(model, config=dataclasses.replace(model.config, tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="leave out tensor_parallel_size or the draft"):
        load_engine(ranks, memory=GIB, draft=model)
