"""Prefixes kept in files: the same bits when they come back, and never believed when they are of something else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import history_engine, load_model, run_all, write_checkpoint

from qwench import LLM, SamplingParams
from qwench.errors import CapacityError, PrefixError, RequestError
from qwench.runtime.prefix_file import SavedPrefix

PREFIX = np.random.default_rng(0).integers(0, 300, 75).tolist()
PROMPTS = [[*PREFIX, 1, 2, 3], PREFIX[:64], PREFIX[:40] + [9] * 20, [7] * 30]
PARAMS = SamplingParams(max_tokens=8, temperature=0.0, logprobs=3, ignore_eos=True)
OPTIONS = {"kvcache_block_size": 16, "max_seq_len": 256, "batch_size": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compiled models go there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def open_llm(checkpoint: Path, **options: Any) -> LLM:
    return LLM(checkpoint, num_threads=1, **{**OPTIONS, **options})


def answers(llm: LLM) -> list[Any]:
    return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in llm.generate(PROMPTS, PARAMS)]


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefixes") / "one.prefix"
    with open_llm(checkpoint) as llm:
        assert llm.save_prefix(PREFIX, path) == 64
    return path


@pytest.mark.parametrize(
    "options", [{}, {"kv_cache": "int8"}, {"weights": "int8"}, {"activations": "bf16"}, {"kvcache_block_size": 32}],
    ids=str,
)  # fmt: skip
def test_the_same_bits_without_computing_them(checkpoint: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "one.prefix"
    with open_llm(checkpoint, **options) as first:
        expected = answers(first)
        assert first.save_prefix(PREFIX, path) == 64
    with open_llm(checkpoint, **options) as second:
        assert second.load_prefix(path) == 64
        second.engine.check_integrity()
        cached = [o.outputs[0].timings.num_cached_tokens for o in second.generate(PROMPTS, PARAMS)]
        size = options.get("kvcache_block_size", 16)
        assert cached == [64, 64 - size, 32, 0]
        assert answers(second) == expected
        assert second.engine.scheduler.pool.num_free == second.engine.cache.num_blocks


def test_what_is_known_already_is_not_written_again(checkpoint: Path, saved: Path) -> None:
    with open_llm(checkpoint) as llm:
        llm.generate(PREFIX[:40], PARAMS)
        written = []
        write = llm.engine.executor.write_block
        llm.engine.executor.write_block = lambda block, data: (written.append(block), write(block, data))[1]  # type: ignore[method-assign]
        for expected in (2, 2):  # the second time nothing more
            assert llm.load_prefix(saved) == 64 and len(written) == expected
            llm.engine.check_integrity()


@pytest.mark.parametrize(
    "options",
    [{"kv_cache": "int8"}, {"weights": "int8"}, {"kvcache_block_size": 32}, {"target": "reference"},
     {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}],
    ids=str,
)  # fmt: skip
def test_of_something_else(checkpoint: Path, saved: Path, options: dict[str, Any]) -> None:
    with open_llm(checkpoint, **options) as llm:
        with pytest.raises(PrefixError, match="another model, other options"):
            llm.load_prefix(saved)
        assert llm.generate(PROMPTS[0], PARAMS)[0].outputs[0].timings.num_cached_tokens == 0


def test_other_kernels_take_it_for_the_same_answers(
    checkpoint: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_llm(checkpoint) as llm:
        expected = answers(llm)
    monkeypatch.setenv("QWENCH_KERNELS", "generic")
    with open_llm(checkpoint) as llm:
        assert all(kernel.startswith("generic.") for kernel in llm.engine.executor.kernels().values())
        assert llm.load_prefix(saved) == 64
        assert answers(llm) == expected


def test_of_other_weights(tmp_path: Path, saved: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = write_checkpoint(tmp_path)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, other / "model.safetensors")
    with open_llm(other) as llm, pytest.raises(PrefixError, match="another model"):
        llm.load_prefix(saved)


def test_damage_is_noticed(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "bad.prefix"
    rng = np.random.default_rng(0)
    places = [0, 7, 8, 39, 40, 47, 48, 60, 200, len(data) - 1, *rng.integers(0, len(data), 30).tolist()]
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(PrefixError, match=r"damaged|not a prefix"):
            SavedPrefix.read(path)
    for other in (b"", data[:5], data[:45], data[:-1], data + b"\0"):
        path.write_bytes(other)
        with pytest.raises(PrefixError, match=r"damaged|not a prefix"):
            SavedPrefix.read(path)
    with pytest.raises(PrefixError, match="can't be read"):
        SavedPrefix.read(tmp_path / "absent.prefix")


def test_a_full_disk_leaves_what_was_there(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.prefix"
    path.write_bytes(b"old")
    prefix = SavedPrefix.read(saved)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CapacityError, match="disk is full"):
            prefix.write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["one.prefix"] and path.read_bytes() == b"old"
    with pytest.raises(PrefixError, match="can't be written"):
        prefix.write(path / "no" / "folder.prefix")
    for place in (path, tmp_path / "new" / "folders" / "two.prefix"):
        assert prefix.write(place) == place.stat().st_size and place.read_bytes() == saved.read_bytes()


def test_what_can_not_be_kept(checkpoint: Path, tmp_path: Path) -> None:
    with open_llm(checkpoint) as llm, pytest.raises(RequestError, match="15 tokens"):
        llm.save_prefix(PREFIX[:15], tmp_path / "short.prefix")
    with (
        LLM(checkpoint, num_threads=1, enable_prefix_caching=False, **OPTIONS) as llm,
        pytest.raises(RequestError, match="without prefix caching"),
    ):
        llm.save_prefix(PREFIX, tmp_path / "none.prefix")
    with pytest.raises(PrefixError, match="over an engine"):
        LLM.from_engine(load_model(target="cpu")).save_prefix(PREFIX, tmp_path / "none.prefix")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("windows", [(None,), (40,), (None, 24), (16, 56)])
def test_with_sliding_windows(windows: tuple[int | None, ...]) -> None:
    """Groups with a window keep what the window reaches; whoever begins like it gets the answer of a cold engine."""
    tokens = np.random.default_rng(1).integers(0, 50, 96).astype(np.int32)
    params = SamplingParams(max_tokens=5, temperature=0.0, logprobs=2)
    first, second, cold = (history_engine(64, windows=windows) for _ in range(3))
    first.add_request(tokens.tolist(), params)
    run_all(first)
    found = first.prefixes.copy(tokens)
    assert found is not None
    second.prefixes.restore(tokens, *found)
    second.check_integrity()
    prompt = [*tokens.tolist(), 3, 4]
    for engine in (second, cold):
        engine.add_request(prompt, params, "a")
    assert run_all(second) == run_all(cold)
    assert second.metrics.cached_prompt_tokens == 96
    assert first.prefixes.copy(np.arange(32, dtype=np.int32)) is None


def test_a_cache_that_is_too_small() -> None:
    tokens = np.random.default_rng(1).integers(0, 50, 96).astype(np.int32)
    big, small = history_engine(64), history_engine(5, max_seq_len=80)
    big.add_request(tokens.tolist(), SamplingParams(max_tokens=1))
    run_all(big)
    found = big.prefixes.copy(tokens)
    assert found is not None
    with pytest.raises(CapacityError, match="6 cache blocks and 5"):
        small.prefixes.restore(tokens, *found)
    small.check_integrity()
