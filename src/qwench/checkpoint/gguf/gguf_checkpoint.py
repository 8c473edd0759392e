"""A GGUF file, or the several that it was split into, as a `Checkpoint`: nothing else is needed beside it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.checkpoint.checkpoint import StoredTensor, digest_of
from qwench.checkpoint.gguf.block_types import EXACT, EXACT_HEAD, ROUNDED
from qwench.checkpoint.gguf.blocks import decode
from qwench.checkpoint.gguf.container import GgufFile, GgufTensor
from qwench.checkpoint.gguf.metadata import Metadata
from qwench.checkpoint.spec import EMBEDDING, HEAD, ModelSpec
from qwench.errors import CheckpointError
from qwench.formats import FP32
from qwench.quantized_matrix import QuantizedMatrix
from qwench.targets.cpu._native import all_finite, crc32c

FLOATS: Mapping[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
NATIVE_NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MOST_SPLITS = 1000
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OF_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
OF_EXPERTS = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}  # stacks of matrices
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)")


class GgufCheckpoint:
    """A `Checkpoint` of a GGUF model. path: the file, or any of its parts. Raises CheckpointError."""

    is_quantized = True

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        self.path, self.num_threads = path, num_threads
        self._files = _open_parts(path)
        self._home: dict[str, tuple[GgufFile, GgufTensor]] = {}
        for file in self._files:
            for tensor in file.tensors.values():
                named = transformers_tensors(tensor)
                if not named:
                    raise CheckpointError(f"{file.path} holds tensor {tensor.name!r}, which no model here has")
                if named.keys() & self._home.keys():
                    raise CheckpointError(f"{file.path} holds tensor {tensor.name!r}, which another part has too")
                self._home |= {name: (file, part) for name, part in named.items()}
        self._metadata = Metadata(self._files[0].metadata, self._files[0].path)
        embedding = self._home.get(EMBEDDING)
        if embedding is None:
            raise CheckpointError(f"{path} lacks tensor 'token_embd.weight'")
        self._config = self._metadata.config(embedding[1].shape[0], HEAD not in self._home)
        self.spec = ModelSpec.from_config(self._config, str(path))

    @functools.cached_property
    def _texts(self) -> dict[str, bytes]:
        return self._metadata.texts(self._config)

    def texts(self) -> dict[str, bytes]:
        return self._texts

    def files(self) -> list[Path]:
        return [file.path for file in self._files]

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in wanted.items():
            if name not in self._home:
                raise CheckpointError(f"{self.path} lacks the tensor of {name!r}, of shape {list(shape)}")
            file, tensor = self._home[name]
            if tensor.shape != shape:
                raise CheckpointError(
                    f"tensor {tensor.name!r} in {file.path} has shape {list(tensor.shape)}, but its metadata asks for "
                    f"{list(shape)}"
                )
            if len(shape) == 1 and tensor.type not in FLOATS:
                raise CheckpointError(f"tensor {tensor.name!r} in {file.path} is {tensor.type}, but it is a vector")
        if extra := sorted(set(self._home) - set(wanted)):
            file, tensor = self._home[extra[0]]
            raise CheckpointError(
                f"{file.path} holds tensor {tensor.name!r}, which a model of this metadata doesn't have"
            )

    def stored(self, name: str) -> StoredTensor:
        _, tensor = self._home[name]
        if len(tensor.shape) == 1:
            return StoredTensor(tensor.type, FP32, is_exact=True)
        exact = EXACT_HEAD if name in (EMBEDDING, HEAD) else EXACT
        if tensor.type in exact:
            return StoredTensor(tensor.type, exact[tensor.type], is_exact=True)
        return StoredTensor(tensor.type, ROUNDED[tensor.type], is_exact=False)

    def read(self, name: str) -> npt.NDArray[Any] | QuantizedMatrix:
        file, tensor = self._home[name]
        raw = file.raw(tensor)
        if tensor.type in FLOATS:
            if not all_finite(raw, NATIVE_NAMES[tensor.type], self.num_threads):
                raise self._not_finite(file, tensor)
            return raw.view(FLOATS[tensor.type]).reshape(tensor.shape)
        matrix = decode(tensor.type, raw, (tensor.shape[0], tensor.shape[1]), self.num_threads)
        for part in (matrix.scales, matrix.minima, matrix.block_scales, matrix.block_minima):
            if part is not None and not all_finite(part.reshape(-1).view(np.uint8), "fp32", self.num_threads):
                raise self._not_finite(file, tensor)
        return matrix if self.stored(name).is_exact else matrix.dequantize(self.num_threads)

    def crcs(self, name: str) -> dict[str, int]:
        file, tensor = self._home[name]
        return {name: int(crc32c(file.raw(tensor), self.num_threads))}

    def release(self, name: str) -> None:
        file, tensor = self._home[name]
        file.release(tensor)

    def content_digest(
        self, crcs: Mapping[str, int] | None = None, report: Callable[[int, int], None] | None = None
    ) -> str:
        def read_crc(name: str) -> int:
            crc = self.crcs(name)[name]
            self.release(name)
            return crc

        tensors = {name: (f"{t.type} {list(t.shape)}", t.num_bytes) for name, (_, t) in self._home.items()}
        return digest_of(self.texts(), tensors, read_crc, crcs, report)

    def _not_finite(self, file: GgufFile, tensor: GgufTensor) -> CheckpointError:
        return CheckpointError(f"tensor {tensor.name!r} in {file.path} holds NaN or infinite values or scales")


def transformers_tensors(tensor: GgufTensor) -> dict[str, GgufTensor]:
    """A tensor by the name that transformers has for it, the matrices of a stack by theirs; none if it has none."""
    found = _LAYER_TENSOR.fullmatch(tensor.name)
    if found is not None and found[2] in OF_EXPERTS and len(tensor.shape) == 3:
        experts, part = f"model.layers.{int(found[1])}.mlp.experts", f"{OF_EXPERTS[found[2]]}.{found[3]}"
        return {f"{experts}.{i}.{part}": matrix for i, matrix in enumerate(tensor.matrices())}
    name = transformers_name(tensor.name)
    if name is None:
        return {}
    if name.endswith("shared_expert_gate.weight") and len(tensor.shape) == 1:  # the matrix of one row
        tensor = dataclasses.replace(tensor, shape=(1, *tensor.shape))
    return {name: tensor}


def transformers_name(name: str) -> str | None:
    """The name that transformers has for a tensor of a GGUF, or None for one that it hasn't."""
    stem, _, part = name.rpartition(".")
    if stem in WHOLE and part == "weight":
        return f"{WHOLE[stem]}.weight"
    found = _LAYER_TENSOR.fullmatch(name)
    if found is None or found[2] not in OF_LAYER:
        return None
    return f"model.layers.{int(found[1])}.{OF_LAYER[found[2]]}.{found[3]}"


def part_paths(path: Path) -> list[Path]:
    """All the files that a GGUF was split into, by their names; a single one if it wasn't."""
    found = SPLIT.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count <= MOST_SPLITS:
        raise CheckpointError(f"{path}: there is no part {found['number']} of {found['count']}")
    return [path.with_name(f"{found['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def _open_parts(path: Path) -> list[GgufFile]:
    paths = part_paths(path)
    if absent := [part for part in paths if not part.is_file()]:
        raise CheckpointError(f"{absent[0]} is missing, a part of {path.name}; download it too")
    files = [GgufFile(part) for part in paths]
    for i, file in enumerate(files):
        count, number = (file.metadata.get(key, default) for key, default in (("split.count", 1), ("split.no", 0)))
        if type(count) is not int or type(number) is not int or max(count, 1) != len(files) or number != i:
            raise CheckpointError(
                f"{file.path} says that it is part {number!r} of {count!r}, but its name says {i + 1} of {len(files)}"
                if len(files) > 1
                else f"{file.path} is one of {count!r} parts; give it the name that it had, NAME-00001-of-0000N.gguf"
            )
    held = sum(len(file.tensors) for file in files)
    total = files[0].metadata.get("split.tensors.count", held)
    if type(total) is not int or total != held:
        raise CheckpointError(f"{files[0].path} says that there are {total!r} tensors, but its parts hold {held}")
    return files
