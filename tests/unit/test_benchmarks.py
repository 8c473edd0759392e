"""The benchmarks' own arithmetic and bookkeeping, with made-up samples; and a run of qwench alone with a tiny model."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import plan as plans
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.contender import Compiled
from benchmarks.cost import Shape, decode_cost, prefill_cost
from benchmarks.machine import Ceiling, LoadWatch
from benchmarks.measure import Measured, Run, Sample
from benchmarks.plan import ANSWER, OURS, Plan, Work
from benchmarks.process import Worker, WorkerError
from benchmarks.report import make_report
from benchmarks.safetensors_folder import read_tensors
from benchmarks.synthetic import write_checkpoint
from benchmarks.table import render
from qwench.checkpoint.spec import ModelSpec
from qwench.program.qwen2 import build_qwen2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_checkpoint("tiny", folder)
    return folder


# ---- the plan


def test_prompts_depend_on_seed_and_work_alone() -> None:
    work = Work("w", 2, 5, 3)
    assert work.prompts(100, 1) == work.prompts(100, 1)
    assert work.prompts(100, 1) != work.prompts(100, 2) != replace(work, name="v").prompts(100, 2)
    assert [len(ids) for ids in work.prompts(100, 1)] == [5, 5]
    assert all(0 <= token < 7 for ids in work.prompts(7, 1) for token in ids)


def test_slow_works_are_for_the_last_format_unless_named() -> None:
    plan = Plan(("qwench",), ("bf16", "int4"))
    assert "long" not in [w.name for w in plan.answers("bf16")]
    assert [w.name for w in plan.answers("int4")][-1] == "long"
    assert "long" in [w.name for w in replace(plan, is_explicit=True).answers("bf16")]


def test_unknown_names_are_refused() -> None:
    parse = plans.names(("a", "b"))
    assert parse("b, a,b") == ("b", "a")
    for text in ("a,c", "", ","):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


# ---- the cost


@pytest.mark.parametrize("is_tied", [True, False])
def test_weights_are_those_of_the_program(checkpoint: Path, tmp_path: Path, is_tied: bool) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | {"tie_word_embeddings": is_tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = build_qwen2(ModelSpec.from_folder(tmp_path))
    matrices = [math.prod(w.shape) for w in program.weights.values() if not w.is_vector]
    assert Shape.from_folder(tmp_path).num_weights == sum(matrices)


def test_a_prompt_costs_what_its_steps_cost(checkpoint: Path) -> None:
    """Reading 24 tokens at once does what the first and 23 single steps do, but for the logits in between."""
    shape = Shape.from_folder(checkpoint)
    first, at_once = (prefill_cost(shape, Work("p", 1, n, 1), 10**6, 512) for n in (1, 24))
    steps = [decode_cost(shape, Work("d", 1, context - 1, 2), 10**6) for context in range(2, 25)]
    assert at_once.attention_ops == first.attention_ops + sum(step.attention_ops for step in steps)
    assert at_once.matrix_ops == first.matrix_ops + sum(step.matrix_ops - 2 * shape.head_weights for step in steps)
    assert at_once.read_bytes == 10**6  # a tied embedding is the head: everything is read, once
    assert prefill_cost(shape, Work("p", 1, 1025, 1), 10**6, 512).read_bytes == 3 * 10**6


def test_ceilings_are_arithmetic_or_memory() -> None:
    shape = Shape(1000, 64, 128, 1, 2, 1, True)
    cost = decode_cost(shape, Work("d", 1, 10, 2), 1000)
    memory = Ceiling(1e-6, {"bf16": 1e9, "int8": 1e9})
    assert memory.seconds(cost, "int8") == pytest.approx(cost.read_bytes / 1e3)
    slow = Ceiling(1e9, {"bf16": 1.0, "int8": 2.0})
    assert slow.seconds(cost, "int4") == pytest.approx((cost.matrix_ops / 2 + cost.attention_ops) / 1e9)
    assert slow.seconds(cost, "bf16") == pytest.approx((cost.matrix_ops + cost.attention_ops) / 1e9)


# ---- the report


def measured(samples: list[Sample]) -> Measured:
    plan = Plan(("qwench", "llama.cpp"), ("int8",), ("compile", "start", "answer"), rounds=3)
    machine = {"cpu": "x", "threads": 1, "cpus": 1, "memory_bytes": 2**30, "instructions": []}
    found = Measured(machine, Shape(1000, 64, 128, 1, 2, 1, True), plan)
    found.versions = {"qwench": "qwench 1", "llama.cpp": "llama 2"}
    found.models["int8"] = {name: Compiled("", 10**6, "note") for name in plan.contenders}
    found.samples = samples
    return found


def answered(contender: str, number: int, prefill_s: float, tokens: list[int]) -> Sample:
    values = {"prefill_s": prefill_s, "decode_s": 1.0, "decode_tokens": 63, "tokens": tokens, "others_cpus": 0.0}
    memory = {"rss_bytes": 4 * 10**6, "pss_bytes": 1, "peak_rss_bytes": 1, "cache_bytes": 10**6} if number == 0 else {}
    return Sample("int8", "answer", number, contender, values | memory, Ceiling(1.0, {"bf16": 1.0, "int8": 1.0}))


def test_ratios_are_taken_within_rounds() -> None:
    """The medians of both sides would say 3; the rounds themselves say 1.5, 4 and 1.5."""
    ours, theirs = (1.0, 2.0, 4.0), (1.5, 8.0, 6.0)
    samples = [answered("qwench", n, s, [1, 2, 3]) for n, s in enumerate(ours)]
    samples += [answered("llama.cpp", n, s, [1, 2, 4]) for n, s in enumerate(theirs)]
    report = make_report(measured(samples))
    figures = {(f["row"], f["contender"]): f for f in report["figures"]}
    assert figures["prompt", "llama.cpp"]["qwench_ahead"] == pytest.approx(1.5)
    assert figures["prompt", "qwench"]["median"] == ANSWER.num_prompt / 2.0
    assert figures["prompt", "qwench"]["qwench_ahead"] is None
    assert figures["memory", "qwench"]["num_rounds"] == 1
    assert report["agreement"] == [
        {"format": "int8", "contender": "llama.cpp", "num_tokens": 3, "num_agreeing": 2}
    ]  # fmt: skip
    assert json.loads(json.dumps(report))["figures"] == report["figures"]


def test_disturbed_rounds_count_only_alone() -> None:
    samples = [Sample("int8", "start", n, "qwench", {"seconds": 1.0, "others_cpus": 0.0}) for n in (0, 1)]
    theirs = ((0, 9.0, 1.0), (1, 2.0, 0.1), (2, 8.0, 1.0))
    samples += [Sample("int8", "start", n, "llama.cpp", {"seconds": s, "others_cpus": o}) for n, s, o in theirs]
    figure = make_report(measured(samples))["figures"][-1]
    assert (figure["contender"], figure["median"], figure["qwench_ahead"]) == ("llama.cpp", 2.0, 2.0)
    assert not figure["is_disturbed"]
    alone = make_report(measured([*samples[:2], samples[-1]]))["figures"][-1]  # round 2: qwench has none to compare
    assert alone["is_disturbed"] and alone["qwench_ahead"] == 8.0


def test_fewer_seconds_are_ahead_too() -> None:
    both = [("qwench", 2.0), ("llama.cpp", 5.0)]
    samples = [Sample("int8", "start", 0, name, {"seconds": s, "others_cpus": 0.9}) for name, s in both]
    report = make_report(measured(samples))
    (theirs,) = [f for f in report["figures"] if f["contender"] == "llama.cpp"]
    assert theirs["qwench_ahead"] == 2.5
    text = render(report)
    assert "2.50x" in text and "5.00?" in text and "disturbed: during 2 of 2" in text


# ---- files


def test_tensors_are_read_as_safetensors_reads_them(checkpoint: Path) -> None:
    truth: dict[str, Any] = {}
    for path in checkpoint.glob("*.safetensors"):
        truth |= load_file(path)
    tensors = {tensor.name: tensor for tensor in read_tensors(checkpoint)}
    assert tensors.keys() == truth.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == truth[name].shape
        assert bytes(tensor.raw) == truth[name].tobytes()


def test_gguf_holds_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf isn't installed")
    from benchmarks.contenders.gguf_file import write_gguf

    num_bytes = write_gguf(checkpoint, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: t for t in reader.tensors}
    assert sum(int(t.n_bytes) for t in reader.tensors) == num_bytes
    source = {tensor.name: tensor for tensor in read_tensors(checkpoint)}
    assert bytes(tensors["blk.1.ffn_down.weight"].data) == bytes(source["model.layers.1.mlp.down_proj.weight"].raw)
    bias = source["model.layers.0.self_attn.q_proj.bias"].raw.view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(tensors["blk.0.attn_q.bias"].data, bias.view(np.float32))


# ---- processes


def test_a_paused_worker_is_stopped_and_comes_back(tmp_path: Path) -> None:
    with Worker("qwench", sys.executable, tmp_path / "log") as worker:
        assert worker.ask("describe")["version"].startswith("qwench ")
        worker.pause()
        status = Path(f"/proc/{worker.pid}/stat")
        if status.exists():
            time.sleep(0.05)
            assert status.read_text().rpartition(")")[2].split()[0] == "T"
        assert "int4" in worker.ask("describe")["formats"]


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="can't be started"):
        Worker("qwench", str(tmp_path / "no-python"), tmp_path / "log")
    with (
        Worker("qwench", sys.executable, tmp_path / "log") as worker,
        pytest.raises(WorkerError, match="ArtifactError"),
    ):
        worker.ask("load", path=str(tmp_path / "nothing"), threads=1, positions=8, users=1)


def test_a_worker_that_never_answers_is_ended(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    with (
        Worker("qwench", str(silent), tmp_path / "log") as worker,
        pytest.raises(WorkerError, match="took more than 0 s"),
    ):
        worker.ask("describe", timeout_s=0.2)


def test_others_are_noticed() -> None:
    """This very process is another one for a watch over process 1."""
    if not Path("/proc/1/stat").exists():
        pytest.skip("there is no /proc here")
    watch, end = LoadWatch(1), time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    assert watch.others_cpus() > 0.4


def test_a_run_from_checkpoint_to_report(checkpoint: Path, tmp_path: Path) -> None:
    """qwench alone: every kind of figure is there; a contender whose library is absent is skipped with a word."""
    plan = Plan(("qwench", "openvino"), ("int8",), (plans.COMPILE, plans.START, "answer", plans.PROFILE), rounds=1)
    python = tmp_path / "python"  # an interpreter without any library
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    pythons = {"qwench": sys.executable, "openvino": str(python)}
    report = make_report(Run(plan, checkpoint, tmp_path / "run", pythons, keep=False, say=lambda text: None).measure())
    assert {f["row"] for f in report["figures"]} == {"prompt", "generate", "start", "compile", "memory"}
    assert all(f["median"] > 0 for f in report["figures"])
    assert [s.partition(":")[0] for s in report["skipped"]] == ["openvino"]
    assert "not installed" in report["skipped"][0]
    assert report["profiles"]["int8"]["decode"]["ops"]
    assert "prompt of 512" in render(report)
    assert not list((tmp_path / "run").glob("*-int8"))


@pytest.mark.slow
@pytest.mark.parametrize("peer", [name for name in CONTENDERS if name != OURS])
def test_peers_run_the_same_model(peer: str, checkpoint: Path, tmp_path: Path) -> None:
    """Beside bf16 weights greedy answers begin alike: what each contender made of the checkpoint is that model."""
    with Worker(peer, sys.executable, tmp_path / "log") as worker:
        try:
            worker.ask("describe")
        except WorkerError as error:
            pytest.skip(f"needs a peer: {peer} isn't installed: {error}")
    plan = Plan((OURS, peer), ("bf16",), ("answer",), rounds=1)
    pythons = dict.fromkeys(plan.contenders, sys.executable)
    report = make_report(Run(plan, checkpoint, tmp_path / "run", pythons, keep=False, say=lambda text: None).measure())
    assert not report["skipped"]
    (agreement,) = report["agreement"]
    assert agreement["contender"] == peer and agreement["num_agreeing"] >= 8
