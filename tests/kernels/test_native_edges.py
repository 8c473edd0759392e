"""The native library's borders: wrong input is a Python error, checksums catch every flipped bit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from programs import VARIANTS, batch, load, model_program, random_spec, random_tensors

from qwench.errors import TargetError
from qwench.formats import BF16
from qwench.targets.cpu import _native, variants
from qwench.targets.registry import get_target
from qwench.targets.target import CacheConfig, StepBatch


@pytest.fixture(scope="module")
def executor():  # type: ignore[no-untyped-def]
    spec = random_spec(np.random.default_rng(0), vocab_size=50, num_layers=2, sliding_windows=(None, None))
    program = model_program(spec, BF16)
    return load(
        VARIANTS[0], program, random_tensors(program, np.random.default_rng(1)), CacheConfig(4, 16, "fp32"), tokens=32
    )


GOOD = batch([np.arange(5, dtype=np.int32)], [5], [[0]])


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": np.array([0, 1, 2, 3, 50], np.int32)},
        {"token_ids": np.array([0, 1, -2, 3, 4], np.int32)},
        {"token_ids": np.zeros(0, np.int32), "query_start": np.zeros(2, np.int32)},
        {
            "token_ids": np.zeros(33, np.int32),
            "query_start": np.array([0, 33], np.int32),
            "seq_lens": np.array([33], np.int32),
        },
        {"query_start": np.array([0, 4], np.int32)},
        {"query_start": np.array([1, 5], np.int32)},
        {"seq_lens": np.array([4], np.int32)},
        {"seq_lens": np.array([17], np.int32)},
        {"block_tables": np.array([[4]], np.int32)},
        {"block_tables": np.array([[-1]], np.int32)},
        {"logit_rows": np.array([5], np.int32)},
        {"top_groups": np.array([1, 1], np.int32)},
        {"top_groups": np.array([1, 1, -1, 1, 1], np.int32)},
        {"query_start": np.array([0, 5, 5], np.int32)},
    ],
    ids=lambda change: "+".join(change),
)
def test_a_batch_out_of_bounds_is_an_error(executor, change) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        executor.step(dataclasses.replace(GOOD, **change))
    assert executor.step(GOOD).shape == (5, 50)


def test_no_logits_wanted_is_fine(executor) -> None:  # type: ignore[no-untyped-def]
    step = StepBatch(GOOD.token_ids, GOOD.query_start, GOOD.seq_lens, GOOD.block_tables, np.zeros(0, np.int32))
    assert executor.step(step).shape == (0, 50)


@pytest.mark.parametrize("vocab_size", [50, 64, 300])
@pytest.mark.parametrize("target", VARIANTS)
def test_maxima_are_those_of_64_neighbours(target: str, vocab_size: int) -> None:
    spec = random_spec(np.random.default_rng(0), vocab_size=vocab_size, num_layers=2, sliding_windows=(None, None))
    program = model_program(spec, BF16)
    tensors = random_tensors(program, np.random.default_rng(1))
    runs = [load(name, program, tensors, CacheConfig(4, 16, "fp32"), tokens=32) for name in (target, "reference")]
    for run in runs:
        maxima = np.full((7, -(-vocab_size // 64)), 9e9, np.float32)
        logits = run.step(GOOD, maxima=maxima)
        padded = np.pad(logits, ((0, 0), (0, -vocab_size % 64)), constant_values=-np.inf)
        np.testing.assert_array_equal(maxima[:5], padded.reshape(5, -1, 64).max(axis=2))
        assert (maxima[5:] == 9e9).all()


def test_copied_blocks_answer_alike(executor) -> None:  # type: ignore[no-untyped-def]
    executor.step(GOOD)
    more = np.array([7], np.int32)
    expected = executor.step(batch([more], [6], [[0]])).copy()
    executor.copy_blocks([0], [3])
    np.testing.assert_array_equal(executor.step(batch([more], [6], [[3]])), expected)
    with pytest.raises(ValueError):
        executor.copy_blocks([0], [4])


def test_blocks_that_were_read_and_written_answer_alike(executor) -> None:  # type: ignore[no-untyped-def]
    executor.step(GOOD)
    more = np.array([7], np.int32)
    expected = executor.step(batch([more], [6], [[0]])).copy()
    content = executor.read_block(0)
    executor.write_block(2, content)
    np.testing.assert_array_equal(executor.step(batch([more], [6], [[2]])), expected)
    for block, data in ((4, content), (-1, content), (1, content[:-1])):
        with pytest.raises(ValueError):
            executor.write_block(block, data)
    with pytest.raises(ValueError):
        executor.read_block(4)


def test_a_variant_that_the_processor_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        @staticmethod
        def supported_variants() -> list[str]:
            return ["generic"]

    monkeypatch.setattr(variants, "_native", Older)
    assert variants.variants_of("cpu") == ("generic",)
    with pytest.raises(TargetError, match=r"can't run target 'cpu-avx512'.*cpu-generic"):
        get_target("cpu-avx512")
    with pytest.raises(TargetError, match="unknown target"):
        get_target("cpu-sse9")


def test_crc32c_is_castagnoli_over_chunks() -> None:
    def chunk(data: bytes) -> int:
        return int(_native.crc32c(np.frombuffer(data, np.uint8), 1))

    inner = (0xE3069283).to_bytes(4, "little")  # the published check value of "123456789"
    crc = 0xFFFFFFFF
    for byte in inner:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert chunk(b"123456789") == crc ^ 0xFFFFFFFF


def test_every_flipped_bit_changes_the_checksum() -> None:
    data = np.random.default_rng(0).integers(0, 256, (1 << 20) + 77, dtype=np.uint8)
    expected = _native.crc32c(data, 2)
    assert _native.crc32c(data, 1) == expected
    for at in (0, 1000, (1 << 20) - 1, 1 << 20, len(data) - 1):
        for bit in (0, 7):
            data[at] ^= 1 << bit
            assert _native.crc32c(data, 2) != expected
            data[at] ^= 1 << bit
    assert _native.crc32c(data, 2) == expected


@pytest.mark.parametrize(("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("fp16", np.float16), ("fp32", np.float32)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(name: str, dtype: type, bad: float) -> None:
    values = np.zeros(300_001, dtype)
    assert _native.all_finite(values.view(np.uint8), name, 2)
    values[-1] = bad
    assert not _native.all_finite(values.view(np.uint8), name, 2)


def test_logits_of_another_dtype_are_refused_not_copied(executor) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        executor.step(GOOD, np.empty((5, 50), np.float64))
    with pytest.raises(TypeError):
        executor.step(GOOD, np.empty((5, 80), np.float32)[:, :50])
    with pytest.raises(ValueError, match="maxima"):
        executor.step(GOOD, maxima=np.empty((4, 1), np.float32))


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs all the address space")
def test_more_threads_than_the_system_gives_is_an_error() -> None:
    """In a process of its own, whose address space has no room for the threads' stacks."""
    script = """
import resource
from qwench.targets.cpu import _native
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
data = bytearray(4 << 20)
import numpy as np
print(_native.crc32c(np.frombuffer(data, np.uint8), 900))
try:
    _native.measure_peak_gops("generic", "fp32", 900)
except RuntimeError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_an_error_and_no_hang(executor) -> None:  # type: ignore[no-untyped-def]
    executor.step(GOOD)
    child = os.fork()
    if child == 0:
        try:
            executor.step(GOOD)
        except RuntimeError as error:
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_two_threads_in_one_executor_take_turns_or_get_an_error(executor) -> None:  # type: ignore[no-untyped-def]
    expected = executor.step(GOOD).copy()
    refused = []

    def work() -> None:
        out = np.empty((5, 50), np.float32)
        for _ in range(200):
            try:
                np.testing.assert_array_equal(executor.step(GOOD, out), expected)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("take turns" in message for message in refused)
    np.testing.assert_array_equal(executor.step(GOOD), expected)


def test_seconds_are_counted_per_phase(executor) -> None:  # type: ignore[no-untyped-def]
    before = executor.native.phase_seconds()
    everything = dataclasses.replace(GOOD, hidden_rows=np.array([2], np.int32))
    spec = executor.program.spec
    executor.step(everything, hidden=np.empty((spec.num_layers + 1, 1, spec.hidden_size), np.float32))
    after = executor.native.phase_seconds()
    assert [kind for kind, _ in after] == [kind for kind, _ in before]
    assert {"embed", "norm", "linear", "rope_write", "attention", "take_rows"} <= {kind for kind, _ in after}
    assert all(now > then for (_, now), (_, then) in zip(after, before, strict=True))
