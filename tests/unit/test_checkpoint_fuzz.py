"""Checkpoints and adapters with some bytes or fields changed: each is read, or refused by a typed error.

Each in a second of this processor, and with no memory for what a header only claims: the limit is set to little more
than what the process has.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_folders import DEFAULT_MODEL, Parts, awq_parts, gptq_config, gptq_parts, write
from safetensors.torch import save_file
from tiny_checkpoint import write_checkpoint

from qwench.checkpoint.checkpoint import as_floats
from qwench.checkpoint.open_checkpoint import open_checkpoint
from qwench.errors import QwenchError
from qwench.lora.peft_folder import read_adapter
from qwench.program.models import source_shapes

pytestmark = pytest.mark.hypothesis  # so that `make fuzz` draws anew
SHORT, LONG = 60, 1500  # of each kind; the long ones are 10,500 in all
SPARE_BYTES = 512 << 20  # of address space: for what reading takes, and a library that is loaded late
MOST_SECONDS = 1.0
HUGE = "9" * 5000
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 7, 32, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, -(2**70), 0.5, -0.0, 1e308,
    1e-320, float("nan"), float("inf"), "", "x", "int8", "F8_E4M3", "I32", "\ud800", HUGE, [], {}, [0], [[]], {"a": 1},
    [1] * 2000,
)  # fmt: skip
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, or a number put over them, or a piece taken out, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(out) + 1), rng.randint(1, 16)
        kind = rng.randrange(8)
        if kind < 3:
            out[at : at + 1] = bytes([rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])])
        elif kind < 5:
            width = rng.choice([4, 8])
            out[at : at + width] = (rng.choice(NUMBERS) & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind == 5:
            del out[at : at + length]
        elif kind == 6:
            out[at:at] = out[at : at + length]
        else:
            del out[at:]
    return bytes(out)


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """An object with some of its values, at any depth, replaced, taken out, or put under another's name."""
    changed = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 2)):
        places = list(_places(changed))
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        else:
            holder[key] = rng.choice(STRANGE)
    return json.dumps(changed).replace(f'"{HUGE}"', HUGE).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list below `value` with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@pytest.fixture
def little_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    wanted = source_shapes(checkpoint.spec)
    checkpoint.check(wanted)
    for name in wanted:
        checkpoint.stored(name)
        as_floats(checkpoint.read(name))
    checkpoint.texts()


def ends_well(work: Callable[[], None]) -> None:
    start = time.thread_time()
    with contextlib.suppress(QwenchError):
        work()
    assert time.thread_time() - start < MOST_SECONDS


def small_tokenizer(folder: Path) -> None:
    """The first tokens of the default model's, and one that ends an answer."""
    model = json.loads((DEFAULT_MODEL / "tokenizer.json").read_text())["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < 290}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    known = [merge for merge in merges if {*merge.split(" "), merge.replace(" ", "")} <= vocab.keys()]
    added = [{"id": 290, "content": "<|im_end|>", "special": True}]
    described = {"model": {"vocab": vocab, "merges": known}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')


def gguf_file(folder: Path) -> Callable[[random.Random], None]:
    """Bytes of the header: before the vocabulary, behind it, or anywhere."""
    original, path = folder / "original.gguf", folder / "mutated.gguf"
    tiny = write_checkpoint(folder / "tiny")
    small_tokenizer(tiny)
    write_gguf(tiny, original, lambda name: "Q8_0")
    data = original.read_bytes()
    vocabulary, tensors = data.index(b"tokenizer.ggml.tokens"), data.index(b"token_embd.weight")
    end = tensors + data[tensors:].rindex(b"blk.") + 80

    def mutate(rng: random.Random) -> None:
        first, last = rng.choice([(0, vocabulary), (tensors - 40, end), (0, end)])
        path.write_bytes(data[:first] + mutated_bytes(data[first:last], rng) + data[last:])
        read_all(path)

    return mutate


def w8a8(weight: torch.Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale.bfloat16()}


def fp8(weight: torch.Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


W8A8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
METHODS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Parts]]] = {
    "gptq": (gptq_config(4, 32, False), lambda weight: gptq_parts(weight, 4, 32, False, 1, None)),
    "gptq desc_act": (
        gptq_config(8, 32, True, desc_act=True),
        lambda weight: gptq_parts(weight, 8, 32, True, 1, torch.randperm(weight.shape[1])),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        lambda weight: awq_parts(weight, 32, "gemm"),
    ),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": W8A8}},
            "ignore": ["lm_head"],
        },
        w8a8,
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8),
}


def folder_of(method: str) -> Callable[[Path], Callable[[random.Random], None]]:
    """config.json with its quantization_config, or the header of the tensors, or bytes of it, or of all the file."""

    def prepare(folder: Path) -> Callable[[random.Random], None]:
        config, quantize = METHODS[method]
        write(folder / "mutated", config, quantize, model=write_checkpoint(folder / "tiny"))
        return mutator(folder / "mutated", "config.json", "model.safetensors", lambda: read_all(folder / "mutated"))

    return prepare


def adapter_folder(folder: Path) -> Callable[[random.Random], None]:
    """adapter_config.json, or the header of its tensors, or bytes of it."""
    shapes = {"model.layers.0.self_attn.q_proj.weight": (24, 16), "model.layers.0.mlp.down_proj.weight": (16, 40)}
    tensors = {}
    for name, (n, k) in shapes.items():
        at = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{at}.lora_A.weight": torch.randn(4, k), f"{at}.lora_B.weight": torch.randn(n, 4)}
    path = folder / "adapter"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none",
        "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 16}, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))

    def read() -> None:
        adapter = read_adapter(path, shapes)
        assert adapter.num_bytes > 0

    return mutator(path, "adapter_config.json", "adapter_model.safetensors", read)


def mutator(folder: Path, config: str, weights: str, read: Callable[[], None]) -> Callable[[random.Random], None]:
    described, data = json.loads((folder / config).read_text()), (folder / weights).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])

    def mutate(rng: random.Random) -> None:
        kind = rng.randrange(6)
        (folder / config).write_bytes(mutated_json(described, rng) if kind < 3 else json.dumps(described).encode())
        if kind == 3:
            changed = mutated_json(header, rng)
            (folder / weights).write_bytes(len(changed).to_bytes(8, "little") + changed + data[end:])
        elif kind > 3:
            last = end if kind == 4 else len(data)
            (folder / weights).write_bytes(mutated_bytes(data[:last], rng) + data[last:])
        else:
            (folder / weights).write_bytes(data)
        read()

    return mutate


KINDS = {"gguf": gguf_file, **{method: folder_of(method) for method in METHODS}, "adapter": adapter_folder}


@pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("little_memory")
def test_mutated(tmp_path: Path, kind: str, count: int) -> None:
    mutate = KINDS[kind](tmp_path)

    @settings(max_examples=count, deadline=None, database=None)
    @given(st.integers(0, 2**64 - 1))
    def one(seed: int) -> None:
        ends_well(lambda: mutate(random.Random(seed)))

    one()
