"""MODEL -> Artifact: which kind it is, what is cached, when it is compiled again, and which options go together."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import running_hub
from tiny_checkpoint import tiny_tensors, write_checkpoint

import qwench.compiler.compile_cache
from qwench.artifact.artifact import WEIGHTS
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.checkpoint.weights import SafetensorsCheckpoint
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import CheckpointError, ConfigError
from qwench.load import resolve_model

CONFIG = QwenchConfig(target="reference")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were compiled."""
    folders: list[Path] = []

    def count(*args: Any, **kwargs: Any) -> Any:
        folders.append(args[1])
        return compile_checkpoint(*args, **kwargs)

    monkeypatch.setattr(qwench.compiler.compile_cache, "compile_checkpoint", count)
    return folders


def test_a_checkpoint_is_compiled_once(source: Path, cache: Path, compilations: list[Path]) -> None:
    first, second = resolve_model(source, CONFIG), resolve_model(str(source), CONFIG)
    assert compilations == [first.path] and first.path == second.path
    assert first.path.parent == cache / "compiled"
    assert first.manifest == second.manifest and first.manifest.source_name == "checkpoint"


def test_other_options_are_compiled_apart(source: Path, compilations: list[Path]) -> None:
    for options in ({}, {"weights": "int8"}, {"max_seq_len": 64}, {"prefill_chunk_size": 32}):
        resolve_model(source, QwenchConfig(target="reference", **options))
        resolve_model(source, QwenchConfig(target="reference", **options))
    assert len(compilations) == len(set(compilations)) == 4


def test_what_is_decided_at_load_is_not_compiled_in(source: Path, compilations: list[Path]) -> None:
    small = resolve_model(source, QwenchConfig(target="reference", kvcache_num_blocks=9, memory=1 << 30))
    plain = resolve_model(source, CONFIG)
    assert len(compilations) == 1
    assert (small.config.kvcache_num_blocks, small.config.memory) == (9, 1 << 30)
    assert (plain.config.kvcache_num_blocks, plain.config.memory) == (None, None)
    assert plain.manifest.config["memory"] is None


def test_a_changed_checkpoint_is_compiled_again(source: Path, compilations: list[Path]) -> None:
    tensors = tiny_tensors()
    before = resolve_model(source, CONFIG).path
    tensors["model.norm.weight"][0] += 1
    write_checkpoint(source, tensors)
    assert resolve_model(source, CONFIG).path != before
    (source / "tokenizer.json").write_text("{}")
    assert len({*compilations, resolve_model(source, CONFIG).path}) == 3


def test_the_digest_is_read_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = qwench.compiler.compile_cache.source_digest(open_checkpoint(source))
    assert digest == SafetensorsCheckpoint(source).content_digest()
    monkeypatch.setattr(SafetensorsCheckpoint, "content_digest", lambda self, report=None: "read again")
    assert qwench.compiler.compile_cache.source_digest(open_checkpoint(source)) == digest
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert qwench.compiler.compile_cache.source_digest(open_checkpoint(source)) == "read again"


def test_a_damaged_memo_is_only_a_memo(source: Path, cache: Path) -> None:
    digest = qwench.compiler.compile_cache.source_digest(open_checkpoint(source))
    (memo,) = (cache / "digests").iterdir()
    for content in ("", "[]", "{}", '{"files": 1}', json.dumps({"files": [], "digest": digest})):
        memo.write_text(content)
        assert qwench.compiler.compile_cache.source_digest(open_checkpoint(source)) == digest


@pytest.mark.parametrize("name", [WEIGHTS, "manifest.json", "program.json", "everything"])
def test_a_damaged_cache_is_compiled_again_and_says_so(
    source: Path, compilations: list[Path], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = resolve_model(source, CONFIG).path
    for file in [path / name] if name != "everything" else list(path.iterdir()):
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
    caplog.set_level(logging.WARNING)
    artifact = resolve_model(source, CONFIG)
    assert artifact.path == path and len(compilations) == 2
    assert "can't be used and is compiled again" in caplog.text


def test_an_artifact_is_opened_as_it_is(source: Path, tmp_path: Path, compilations: list[Path], cache: Path) -> None:
    compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", weights="int8"))
    assert resolve_model(tmp_path / "out").config.weights == "int8"
    agreeing = QwenchConfig(weights="int8", target="reference", kvcache_num_blocks=50, memory=1 << 28)
    assert resolve_model(str(tmp_path / "out"), agreeing).config.kvcache_num_blocks == 50
    assert not cache.exists() and compilations == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "int4"}, "weights is 'int4', but .* compiled with 'int8'"),
        ({"max_seq_len": 64}, "max_seq_len is 64, but .* compiled with 128"),
        ({"group_size": 64}, "group_size is 64, but .* compiled with 128"),
        ({"target": "cpu-generic"}, "target is 'cpu-generic', but .* compiled with 'reference'"),
        ({"attn_impl": "eager"}, "attn_impl is 'eager', but .* compiled with 'flash_attn'"),
        ({"kvcache_partition_len": 1024}, "kvcache_partition_len is 1024, but .* compiled with 512"),
        ({"use_inputs_embeds": False}, "use_inputs_embeds is False, but .* compiled with True"),
        ({"kvcache_num_blocks": 1}, "can't hold one sequence of max_seq_len 128"),
    ],
)
def test_options_that_contradict_the_artifact(
    source: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", weights="int8"))
    with pytest.raises(ConfigError, match=words):
        resolve_model(tmp_path / "out", QwenchConfig(**options))


def test_options_of_a_run_contradict_nothing(source: Path, tmp_path: Path) -> None:
    compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="reference", timeout=1, create_runtimes=False))
    assert resolve_model(tmp_path / "out").config.timeout is None
    config = resolve_model(tmp_path / "out", QwenchConfig(timeout=7, activate_profiler=True)).config
    assert (config.timeout, config.activate_profiler, config.create_runtimes) == (7, True, True)


def test_a_cached_model_serves_every_option_of_a_run(source: Path, compilations: list[Path]) -> None:
    configs = [resolve_model(source, QwenchConfig(target="reference", timeout=t)).config for t in (1, 2, None)]
    assert [config.timeout for config in configs] == [1, 2, None] and len(compilations) == 1


def test_targets_of_one_layout_share_an_artifact(source: Path, tmp_path: Path, compilations: list[Path]) -> None:
    compile_checkpoint(source, tmp_path / "out", QwenchConfig(target="cpu"))
    generic = QwenchConfig(target="cpu-generic")
    assert resolve_model(tmp_path / "out", generic).config.target == "cpu-generic"
    assert resolve_model(source).config.target == "cpu"
    assert resolve_model(source, generic).config.target == "cpu-generic"
    assert len(compilations) == 1


def test_a_hub_id(source: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[Path]) -> None:
    with running_hub({"Qwen/tiny": {path.name: path.read_bytes() for path in source.iterdir()}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        pulled, again, local = resolve_model("Qwen/tiny", CONFIG), resolve_model("Qwen/tiny", CONFIG), None
        local = resolve_model(source, CONFIG)
    assert len(compilations) == 2  # the name of the source is part of what is cached
    assert pulled.path == again.path and pulled.manifest.source_name == "Qwen/tiny"
    assert pulled.manifest.source_digest == local.manifest.source_digest


@pytest.mark.parametrize("model", ["./missing", "/missing", "missing", "a/b/c", ""])
def test_models_that_are_nothing(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"is not a hub id|neither|no config.json"):
        resolve_model(model)


def test_two_processes_compile_once(source: Path, cache: Path) -> None:
    code = (
        "import sys; from qwench.load import resolve_model; from qwench.config import QwenchConfig\n"
        "a = resolve_model(sys.argv[1], QwenchConfig(target='reference'), progress=lambda p: print(p.stage))\n"
    )
    command = [sys.executable, "-c", code, str(source)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted("pack" in output for output in outputs) == [False, False, True]
    assert len([p for p in (cache / "compiled").iterdir() if p.is_dir()]) == 1
