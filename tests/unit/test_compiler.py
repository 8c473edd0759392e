"""Compiling: the right bytes, all checks before the first one, and nothing that looks finished unless it is."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_checkpoint import CONFIG as CONFIG_JSON
from tiny_checkpoint import tiny_tensors, write_checkpoint

import qwench.compiler.compiler
from qwench.artifact.artifact import WEIGHTS, open_artifact
from qwench.checkpoint.spec import ModelSpec
from qwench.compiler.compiler import compile_checkpoint, source_shapes
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError, CapacityError, CheckpointError, ConfigError, QwenchError
from qwench.progress import Progress
from qwench.safetensors_file import SafetensorsWriter

CONFIG = QwenchConfig(target="reference")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def left_behind(folder: Path) -> list[str]:
    """Everything in the folder but the checkpoint, hidden files too."""
    return sorted(p.name for p in folder.iterdir() if p.name != "checkpoint")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("num_shards", [1, 4])
def test_packed_values_are_the_checkpoints(tmp_path: Path, dtype: Any, num_shards: int) -> None:
    tensors = tiny_tensors(dtype=dtype, tied=False)
    source = write_checkpoint(tmp_path / "checkpoint", tensors, num_shards, tie_word_embeddings=False)
    artifact = compile_checkpoint(source, tmp_path / "out", CONFIG)
    packed = load_file(tmp_path / "out" / WEIGHTS)
    read: set[str] = set()
    for name, weight in artifact.program.weights.items():
        stacked = np.concatenate([tensors[s].astype(np.float32) for s in weight.sources])
        expected = stacked if weight.is_vector else stacked.astype(ml_dtypes.bfloat16)
        raw = expected.view(np.uint8).reshape(-1)
        np.testing.assert_array_equal(packed[name][: raw.size], raw)
        read |= set(weight.sources)
    assert read == set(tensors)


def test_same_source_same_artifact(source: Path, tmp_path: Path) -> None:
    first = compile_checkpoint(source, tmp_path / "a", CONFIG)
    second = compile_checkpoint(source, tmp_path / "b", CONFIG)
    assert first.manifest.files == second.manifest.files
    assert first.manifest.source_digest == second.manifest.source_digest
    assert first.manifest.source_name == "checkpoint"
    assert open_artifact(tmp_path / "a", verify="full").program == first.program


def test_progress(source: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    artifact = compile_checkpoint(source, tmp_path / "out", CONFIG, progress=seen.append)
    assert [s.stage for s in seen] == ["check"] + ["pack"] * len(artifact.program.weights) + ["finish"]
    packing = [s for s in seen if s.stage == "pack"]
    assert packing[-1].bytes_done == packing[-1].bytes_total == artifact.weights_bytes
    assert all(a.bytes_done < b.bytes_done and a.elapsed_s <= b.elapsed_s for a, b in itertools.pairwise(packing))
    assert packing[0].left_s is not None and packing[0].left_s > 0 and packing[-1].left_s == 0


def test_mixed_formats(source: Path, tmp_path: Path) -> None:
    config = QwenchConfig(target="reference", weights="int4", head_weights="bf16", group_size=64)
    artifact = compile_checkpoint(source, tmp_path / "out", config)
    formats = {name: str(w.format) for name, w in artifact.program.weights.items() if not w.is_vector}
    assert formats.pop("model.embed_tokens.weight") == "bf16"
    assert set(formats.values()) == {"int4/g64"}


# -- what stops it before the first byte ------------------------------------------------------------------------------


def test_a_wrong_tensor_leaves_nothing(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    del tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.norm\.weight'"):
        compile_checkpoint(write_checkpoint(tmp_path / "checkpoint", tensors), tmp_path / "deep" / "out", CONFIG)
    assert left_behind(tmp_path) == []


def test_a_nan_in_the_last_tensor_leaves_nothing(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["model.norm.weight"][5] = np.nan
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight'.*NaN"):
        compile_checkpoint(write_checkpoint(tmp_path / "checkpoint", tensors), tmp_path / "out", CONFIG)
    assert left_behind(tmp_path) == []


def test_more_memory_than_allowed(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"needs .* of weights.*of cache.*memory allows 97\.7 KiB; lower"):
        compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", memory=100_000))
    assert left_behind(tmp_path) == []


def test_more_memory_than_there_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwench.compiler.compiler, "available_memory_bytes", lambda: 1 << 20)
    config = QwenchConfig(target="reference", max_seq_len=1 << 20)
    with pytest.raises(CapacityError, match=r"this machine has free 1\.00 MiB; lower max_seq_len .*now 1048576"):
        compile_checkpoint(source, tmp_path / "out", config)
    assert left_behind(tmp_path) == []


def test_a_model_that_is_not_to_run_here_needs_no_memory(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwench.compiler.compiler, "available_memory_bytes", lambda: 1 << 20)
    config = QwenchConfig(target="reference", max_seq_len=1 << 40, create_runtimes=False)
    assert compile_checkpoint(source, tmp_path / "out", config).config.max_seq_len == 1 << 40
    with pytest.raises(CapacityError, match="memory allows"):
        compile_checkpoint(source, tmp_path / "other", dataclasses.replace(config, memory=1 << 20))


def test_more_disk_than_there_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1 << 16

    monkeypatch.setattr(qwench.compiler.compiler.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(CapacityError, match="of disk, but"):
        compile_checkpoint(source, tmp_path / "deep" / "out", CONFIG)
    assert left_behind(tmp_path) == []


def test_unknown_sources(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder or file 'nothing here'"):
        compile_checkpoint("nothing here", tmp_path / "out", CONFIG)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="it is truncated"):
        compile_checkpoint(tmp_path / "model.gguf", tmp_path / "out", CONFIG)


# -- where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_one_step", [True, False])
def test_an_artifact_is_replaced_only_when_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr("qwench.artifact.artifact_folder._exchange", lambda one, other: False)
    out = tmp_path / "out"
    compile_checkpoint(source, out, CONFIG)
    with pytest.raises(ArtifactError, match="--overwrite"):
        compile_checkpoint(source, out, CONFIG)
    compile_checkpoint(source, out, QwenchConfig(target="reference", weights="int8"), overwrite=True)
    assert open_artifact(out).config.weights == "int8"
    assert left_behind(tmp_path) == ["out"]


def test_a_damaged_artifact_can_be_replaced(source: Path, tmp_path: Path) -> None:
    compile_checkpoint(source, tmp_path / "out", CONFIG)
    (tmp_path / "out" / "manifest.json").write_text("{")
    compile_checkpoint(source, tmp_path / "out", CONFIG, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_folders_and_files_are_left_alone(source: Path, tmp_path: Path, overwrite: bool) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("irreplaceable")
    for out in (mine, mine / "thesis.txt", source):
        with pytest.raises(ArtifactError, match="folder"):
            compile_checkpoint(source, out, CONFIG, overwrite=overwrite)
    assert (mine / "thesis.txt").read_text() == "irreplaceable"


def test_an_artifact_that_holds_the_checkpoint_is_left_alone(source: Path, tmp_path: Path) -> None:
    compile_checkpoint(source, tmp_path / "out", CONFIG)
    inner = write_checkpoint(tmp_path / "out" / "checkpoint")
    with pytest.raises(ArtifactError, match="holds the checkpoint itself"):
        compile_checkpoint(inner, tmp_path / "out", CONFIG, overwrite=True)


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    compile_checkpoint(source, tmp_path / "out", CONFIG)


def test_a_file_in_place_of_a_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"can't be written: .*; give another output folder"):
        compile_checkpoint(source, tmp_path / "file" / "out", CONFIG)


def test_a_folder_that_can_not_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root, who may run the tests, is refused nothing
    with pytest.raises(ArtifactError, match="can't be written: Permission denied; give another output folder"):
        compile_checkpoint(source, tmp_path / "out", CONFIG)


# -- what stops it in the middle --------------------------------------------------------------------------------------


def fail_after(monkeypatch: pytest.MonkeyPatch, num_chunks: int, error: BaseException) -> None:
    """Lets the writing thread fail at its chunk number `num_chunks`."""
    original, count = SafetensorsWriter._write_all, [0]

    def write(self: SafetensorsWriter, chunk: memoryview) -> None:
        count[0] += 1
        if count[0] > num_chunks:
            raise error
        original(self, chunk)

    monkeypatch.setattr(SafetensorsWriter, "_write_all", write)


@pytest.mark.parametrize("num_chunks", [0, 5, 15])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_chunks: int, code: int) -> None:
    fail_after(monkeypatch, num_chunks, OSError(code, os.strerror(code)))
    with pytest.raises(CapacityError, match=r"the disk is full .*nothing was left behind"):
        compile_checkpoint(source, tmp_path / "out", CONFIG)
    assert left_behind(tmp_path) == []


def test_a_full_disk_while_replacing_keeps_the_old_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_checkpoint(source, tmp_path / "out", CONFIG)
    fail_after(monkeypatch, 5, OSError(errno.ENOSPC, "full"))
    with pytest.raises(CapacityError):
        compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", weights="int8"), overwrite=True)
    assert open_artifact(tmp_path / "out", verify="full").config.weights == "bf16"
    assert left_behind(tmp_path) == ["out"]


def test_an_io_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_after(monkeypatch, 3, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(ArtifactError, match="Input/output error"):
        compile_checkpoint(source, tmp_path / "out", CONFIG)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("stage", ["pack", "finish"])
def test_an_interrupt(source: Path, tmp_path: Path, stage: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_checkpoint(source, tmp_path / "out", CONFIG, progress=interrupt)
    assert left_behind(tmp_path) == []


def test_a_disk_that_is_really_full(source: Path, tmp_path: Path) -> None:
    """A limit on file size makes the kernel itself refuse, in the middle of a write."""
    code = (
        "import resource, sys\n"
        "from qwench.compiler.compiler import compile_checkpoint\n"
        "from qwench.config import QwenchConfig\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "compile_checkpoint(sys.argv[1], sys.argv[2], QwenchConfig(target='reference'))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], capture_output=True, text=True)
    assert "CapacityError: the disk is full (File too large)" in run.stderr
    assert left_behind(tmp_path) == []


SLOW_COMPILER = """
import sys, time
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
def wait(progress):
    if progress.stage == sys.argv[3]:
        print("there", flush=True)
        time.sleep(60)
compile_checkpoint(sys.argv[1], sys.argv[2], QwenchConfig(target="reference"), overwrite=True, progress=wait)
"""


@pytest.mark.parametrize("stage", ["pack", "finish"])
def test_a_killed_compiler_leaves_nothing_that_looks_finished(source: Path, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW_COMPILER, source, out, stage]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    partial = left_behind(tmp_path)
    assert len(partial) == 1 and partial[0].startswith(".out.partial-")

    compile_checkpoint(source, out, CONFIG)  # another compiler doesn't touch the folder of a living one
    assert left_behind(tmp_path) == [partial[0], "out"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        open_artifact(tmp_path / partial[0])
    compile_checkpoint(source, out, CONFIG, overwrite=True)  # and removes that of a dead one
    assert left_behind(tmp_path) == ["out"]
    open_artifact(out, verify="full")


def test_two_compilers_of_one_output(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_COMPILER, source, tmp_path / "out", "never"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    open_artifact(tmp_path / "out", verify="full")
    assert left_behind(tmp_path) == ["out"], errors


def test_errors_are_typed_whatever_the_config_says(tmp_path: Path) -> None:
    """Random damage to config.json: never anything but a QwenchError, never a folder."""
    source = write_checkpoint(tmp_path / "checkpoint")
    config = json.loads((source / "config.json").read_text())
    for key in config:
        for value in (None, 0, -1, 3, 7.5, "x", [], {}, True, 10**12):
            (source / "config.json").write_text(json.dumps(config | {key: value}))
            try:
                compile_checkpoint(source, tmp_path / "out", CONFIG, overwrite=True)
            except (CheckpointError, ConfigError, CapacityError):
                assert left_behind(tmp_path) in ([], ["out"])
            except QwenchError as error:
                pytest.fail(f"{key}={value!r}: {error!r}")


MEASURED_COMPILER = """
import sys
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig

def peak_kib():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

def show(progress):
    if progress.stage in ("check", "finish"):
        print(peak_kib())

compile_checkpoint(sys.argv[1], sys.argv[2], QwenchConfig(target="cpu", weights="int8"), progress=show)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_few_tensors_are_held_at_a_time(tmp_path: Path) -> None:
    """A checkpoint of 27 MB in tensors of up to 0.5 MB goes through a few megabytes of memory."""
    shapes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 16, "head_dim": 16}
    spec = ModelSpec.from_config(CONFIG_JSON | shapes)
    tensors = {name: np.full(shape, 0.5, ml_dtypes.bfloat16) for name, shape in source_shapes(spec).items()}
    source = write_checkpoint(tmp_path / "checkpoint", tensors, num_shards=2, **shapes)
    source_kib = sum(tensor.nbytes for tensor in tensors.values()) // 1024
    command = [sys.executable, "-c", MEASURED_COMPILER, source, tmp_path / "out"]
    before, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    print(f"{source_kib} KiB of tensors, peak grew by {after - before} KiB")
    assert source_kib > 25_000 and after - before < source_kib / 2


def test_code_beside_a_checkpoint_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """gte-Qwen2 goes by the name of a causal model, and its own code, which doesn't run, has tokens see all."""
    folder = write_checkpoint(tmp_path / "a", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    compile_checkpoint(folder, tmp_path / "b", QwenchConfig(bidirectional=True))
    assert not caplog.records
    compile_checkpoint(folder, tmp_path / "c")
    assert "code of its own (modeling_qwen.Qwen2Model), which doesn't run here" in caplog.text
