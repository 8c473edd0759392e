"""The cuda target on a real GPU: near the reference, transformers' tokens, bits that don't depend on the batch, a
crowded engine, and the server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwench.formats import BF16, Format
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.targets.target import CacheConfig

FORMATS = [BF16, Format("int8", 128), Format("int8", 32), Format("int4", 128), Format("int4", 32)]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("cache", ["fp32", "bf16", "int8"])
def test_near_the_reference(fmt: Format, cache: str) -> None:
    """Whole models of odd shapes: a mixed batch of prompts, then a recorded step of one token each."""
    from programs import MODELS, batch, load, model_program, num_groups, random_spec, random_tensors

    for seed in range(2 * len(MODELS)):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng, model_type=MODELS[seed % len(MODELS)])
        program, groups = model_program(spec, fmt), num_groups(spec)
        tensors, tables = random_tensors(program, rng, std=0.1), rng.permutation(24).reshape(4, 6).tolist()[:3]
        counts = [int(rng.integers(1, 60)), 1, int(rng.integers(1, 30))]
        tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in counts]
        more = [rng.integers(0, spec.vocab_size, 1).astype(np.int32) for _ in counts]
        steps = [batch(tokens, counts, tables, groups), batch(more, [n + 1 for n in counts], tables, groups)]
        reference, gpu = (load(name, program, tensors, CacheConfig(24, 16, cache)) for name in ("reference", "cuda"))
        for step in steps:
            expected, got = reference.step(step).copy(), gpu.step(step).copy()
            bound = 1e-4 if fmt == BF16 and cache == "fp32" else 0.02 if fmt == BF16 else 0.5
            assert np.abs(got - expected).max() / expected.std() < bound, (seed, spec)
            assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


MIXTURE = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 40}


@pytest.mark.parametrize("model_type", ["qwen2", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("activations", ["fp32", "bf16"])
def test_tokens_are_those_of_transformers(activations: str, model_type: str, tmp_path: Path) -> None:
    """fp32 activations give transformers' tokens in fp32; bf16 ones the greater part of them."""
    import torch
    from transformers_parity import load_truth, write_checkpoint

    from qwench import LLM

    more = MIXTURE if model_type.endswith("moe") else {}
    folder = write_checkpoint(tmp_path / "model", model_type=model_type, head_dim=16, **more)
    truth = load_truth(folder)
    prompts = [torch.randint(1, 300, (1, n), generator=torch.Generator().manual_seed(n)) for n in (3, 17, 40)]
    expected = [truth.generate(p, max_new_tokens=32, do_sample=False)[0, p.shape[1] :].tolist() for p in prompts]
    with LLM(folder, target="cuda", activations=activations) as llm:
        params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
        outputs = llm.generate([p[0].tolist() for p in prompts], params)
    same = sum(a == b for e, o in zip(expected, outputs) for a, b in zip(e, o.outputs[0].token_ids))
    assert same == 96 if activations == "fp32" else same > 48


def answer(
    crowd: int = 0, adapter: str | None = None, loaded: tuple[str, ...] = (), target: str = "cuda", **options: Any
) -> list[Any]:
    """adapter: the answer's, one of `loaded`; the crowd has these and none in turns."""
    from engine_models import load_model, run_all
    from test_lora_products import random_adapter

    engine = load_model(target=target, batch_size=32, max_seq_len=640, **options)
    try:
        for name in loaded:
            random = np.random.default_rng(int(name))
            engine.adapters.load(name, random_adapter(engine.executor.program, random, max_rank=1 + 20 * int(name)))
        for i in range(crowd):
            params, turn = SamplingParams(max_tokens=40, seed=i), (*loaded, None)[i % (len(loaded) + 1)]
            engine.add_request([i + 1] * (3 * i + 1), params, adapter=turn)
        prompt = [(13 * i + i // 50) % 300 for i in range(600)]
        params = SamplingParams(max_tokens=24, seed=11, temperature=0.8, logprobs=3)
        name = engine.add_request(prompt, params, adapter=adapter)
        return run_all(engine, {name})[name, 0]
    finally:
        engine.close()


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize(("shape", "kv_cache"), [("dense", "bf16"), ("dense", "int8"), ("mixture", "bf16")])
def test_bits_do_not_depend_on_the_batch(weights: str, kv_cache: str, shape: str) -> None:
    """Alone, in a crowd, in chunks of any size, with too few cache blocks: the log-probabilities are the same bits.
    Here instructions for 16 to 128 tokens meet the same columns."""
    from engine_models import TINY_CONFIG, TINY_MIXTURE

    config = {"dense": TINY_CONFIG, "mixture": TINY_MIXTURE}[shape]
    options: dict[str, Any] = {"weights": weights, "kv_cache": kv_cache, "shape": config}
    alone = answer(**options)
    assert answer(crowd=31, **options) == alone
    for chunk in (7, 16, 100, 600):
        assert answer(prefill_chunk_size=chunk, enable_prefix_caching=False, **options) == alone
    assert answer(crowd=31, prefill_chunk_size=48, kvcache_num_blocks=42, **options) == alone


@pytest.mark.parametrize("weights", ["bf16", "int4"])
def test_bits_do_not_depend_on_the_adapters_of_others(weights: str) -> None:
    """An answer with an adapter, and one without, alone and among four adapters of several ranks."""
    plain, adapted = answer(weights=weights), answer(adapter="2", loaded=("2",), weights=weights)
    assert adapted != plain
    four: dict[str, Any] = {"crowd": 31, "loaded": ("1", "2", "3", "4"), "weights": weights}
    assert answer(**four) == plain
    for chunk in (100, 600):
        assert answer(adapter="2", prefill_chunk_size=chunk, enable_prefix_caching=False, **four) == adapted


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_adapters_are_near_the_reference(fmt: Format) -> None:
    """A mixed batch of prompts, then steps of one token each that are recorded once, with adapters in turns."""
    from programs import batch, load, model_program, random_spec, random_tensors
    from test_lora_products import random_adapter, with_adapters

    rng = np.random.default_rng(3)
    spec = random_spec(rng, model_type="qwen2", sliding_windows=(None, None), num_layers=2)
    program = model_program(spec, fmt)
    tensors, tables = random_tensors(program, rng, std=0.1), rng.permutation(24).reshape(4, 6).tolist()
    executors = [load(name, program, tensors, CacheConfig(24, 16, "fp32")) for name in ("reference", "cuda")]
    for number in range(3):
        adapter = random_adapter(program, rng, max_rank=80, std=0.1)
        for executor in executors:
            executor.set_adapter(number, adapter)
    for more, numbers in enumerate(([2, -1, 0, 1], [2, -1, 0, 1], [0, 0, -1, 2])):
        counts = [1] * 4 if more else [40, 1, 17, 90]
        tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in counts]
        lengths = [n + more for n in (40, 1, 17, 90)]
        step = with_adapters(batch(tokens, lengths, tables), numbers)
        expected, got = (executor.step(step).copy() for executor in executors)
        assert np.abs(got - expected).max() / expected.std() < (1e-4 if fmt == BF16 else 0.5)
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


def test_products_of_every_width_round_alike() -> None:
    """One row among 1 to 500, at real widths, where instructions are those of one token and of a prompt."""
    from programs import batch, linear_program, load, random_tensors

    rng = np.random.default_rng(0)
    for fmt, activations in ((BF16, "bf16"), (BF16, "fp32"), (Format("int4", 128), "int8")):
        program = linear_program(4608, 3584, fmt, activations)
        executor = load("cuda", program, random_tensors(program, rng), CacheConfig(40, 16, "bf16"), tokens=512)
        ids = rng.integers(0, 4608, 500).astype(np.int32)
        rows = [executor.step(batch([ids[:n]], [n], [list(range(32))]))[0].copy() for n in (1, 17, 33, 65, 129, 500)]
        for row in rows[1:]:
            np.testing.assert_array_equal(row, rows[0])


def test_two_gpus_have_the_bits_of_one(tmp_path: Path) -> None:
    from engine_models import write_checkpoint

    from qwench import LLM
    from qwench.targets.cuda.devices.gpu import open_gpu

    if open_gpu().count < 2:
        pytest.skip("needs a GPU: two of them")
    prompts = [[(7 * i + n) % 300 for i in range(n)] for n in (1, 5, 70)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=3)
    found = []
    for size in (1, 2):
        with LLM(write_checkpoint(tmp_path), target="cuda", max_seq_len=256, tensor_parallel_size=size) as llm:
            outputs = llm.generate(prompts, params)
            found.append([(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs])
    assert found[0] == found[1]


def test_the_server_answers(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx", reason="needs a GPU and httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "qwench.cli.main", "serve", "models/qwench-tiny", "--target", "cuda"]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    try:
        body = {"model": "qwench-tiny", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}
        for _ in range(120):
            try:
                reply = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
                break
            except httpx.ConnectError:
                time.sleep(1)
        assert reply.status_code == 200
        assert len(reply.json()["choices"][0]["text"]) > 20
    finally:
        server.terminate()
        server.wait(30)
