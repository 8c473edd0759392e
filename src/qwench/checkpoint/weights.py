"""A Hugging Face checkpoint: a folder with one or many safetensors files, memory-mapped, read tensor by tensor.

Never unpickles, never runs code of the checkpoint. Opened by `open_checkpoint.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qwench.checkpoint.checkpoint import StoredTensor, digest_of
from qwench.checkpoint.fields import Fields
from qwench.checkpoint.heads import HeadSpec
from qwench.checkpoint.json_file import read_json, read_object
from qwench.checkpoint.lfs_pointer import why_unreadable
from qwench.checkpoint.quantization.method import Method
from qwench.checkpoint.quantization.methods import find_method
from qwench.checkpoint.sentence_transformers import MODULES, SETTINGS, embedding_files, read_embedding_settings
from qwench.checkpoint.spec import EMBEDDING, HEAD, ModelSpec
from qwench.errors import CheckpointError
from qwench.formats import BF16, FP32
from qwench.quantized_matrix import QuantizedMatrix
from qwench.safetensors_file import ContainerError, SafetensorsFile, TensorEntry
from qwench.targets.cpu._native import all_finite, crc32c

FLOAT_DTYPES: dict[str, npt.DTypeLike] = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
# Of the parts of quantised matrices. FP8 has bytes, which its reader understands.
PART_DTYPES: dict[str, npt.DTypeLike] = {
    **FLOAT_DTYPES, "I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64, "F8_E4M3": np.uint8,
}  # fmt: skip
# What inputs and caches were to be quantised with elsewhere.
UNUSED_PARTS = ("input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale", "output_scale")
NATIVE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OLDER_GPTQ = "quantize_config.json"  # where AutoGPTQ wrote what config.json says since
SCORE_BIAS = "score.bias"
BODY_PARTS = ("embed_tokens.", "layers.", "norm.")  # how names begin in a body that was saved by itself

# Copied into the artifact unchanged, where the checkpoint has them.
COMPANION_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "chat_template.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", OLDER_GPTQ,
)  # fmt: skip


class SafetensorsCheckpoint:
    """A `Checkpoint` that is a folder with config.json and safetensors weights.

    Raises CheckpointError when a file is missing, truncated, malformed, or not safetensors.
    """

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        self.path, self.spec, self.num_threads = folder, ModelSpec.from_folder(folder), num_threads
        self._home: dict[str, SafetensorsFile] = {}
        for shard, listed in self._shards().items():
            file = _open(folder / shard)
            for name in file.entries:
                if listed is not None and name not in listed:
                    raise CheckpointError(f"{folder / shard} holds tensor {name!r}, which {INDEX} doesn't list there")
                self._home[name] = file
            if listed is not None and (absent := sorted(listed - set(file.entries))):
                raise CheckpointError(f"{INDEX} says that {folder / shard} holds {absent[0]!r}, but it doesn't")
        self.spec = dataclasses.replace(self.spec, head=self._head())
        self._method = self._find_method()
        self._shapes: dict[str, tuple[int, ...]] = {}  # what `check` was given

    def _head(self) -> HeadSpec:
        """What the tensors say of the head beside config.json: whether it has a bias, and that a body has none though
        it goes by the name of its language model, as sentence-transformers saves it."""
        head, ties = self.spec.head, self.spec.tie_word_embeddings
        if head.is_deep:
            return head
        if head.is_classifier:
            return dataclasses.replace(head, has_bias=SCORE_BIAS in self._home)
        is_body = HEAD not in self._home and not ties and (self.path / MODULES).is_file()
        return HeadSpec("none") if is_body else head

    def _find_method(self) -> Method | None:
        """How the matrices are quantised; None too if a merge left quantization_config behind in a float checkpoint."""
        whole, entries = read_object(self.path / "config.json"), self.entries
        config = whole.get("quantization_config") or whole.get("quantization")  # the latter is MLX's
        if not config and (older := read_object(self.path / OLDER_GPTQ)):
            config = {"quant_method": "gptq", **older}
        if not config or all(entry.dtype in FLOAT_DTYPES for entry in entries.values()):
            return None
        where = f"{self.path / 'config.json'}: quantization_config"
        if not isinstance(config, dict):
            raise CheckpointError(f"{where} is a {type(config).__name__}, not an object")
        return find_method(Fields(config, where), entries, self._part)

    @functools.cached_property
    def entries(self) -> dict[str, TensorEntry]:
        return {name: file.entries[name] for name, file in self._home.items()}

    @property
    def is_quantized(self) -> bool:
        return self._method is not None

    def files(self) -> list[Path]:
        shards = sorted({file.path for file in self._home.values()})
        index = [self.path / INDEX] if not (self.path / SINGLE).exists() else []
        return [*self._companions(), *embedding_files(self.path), *index, *shards]

    def texts(self) -> dict[str, bytes]:
        texts = {path.name: path.read_bytes() for path in self._companions()}
        settings = read_embedding_settings(self.path)
        return texts if settings is None else texts | {SETTINGS: settings.to_json()}

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Compares names, shapes and dtypes with what the model needs, and parses the JSON files beside the weights;
        reads no tensor but a duplicate head.

        Harmless extras are old rotary tables, and a head beside tied embeddings when it equals them.
        """
        for companion in self._companions():
            if companion.suffix == ".json":
                read_json(companion)
        self._shapes = dict(wanted)
        used: set[str] = set()
        for name, shape in wanted.items():
            if parts := self._parts(name):
                assert self._method is not None
                self._method.check(_module(name), (shape[0], shape[1]))
                if name in self._home and name not in parts:
                    raise CheckpointError(f"{self._home[name].path} holds {name!r} and {parts[0]!r}; one is too many")
                used |= set(parts)
                continue
            if name not in self._home:
                raise self._lacks(name, shape, wanted)
            self._check_entry(name, shape)
        for name in sorted(set(self._home) - set(wanted) - used):
            if name == HEAD and EMBEDDING in wanted:
                self._check_tied_head(wanted[EMBEDDING])
            elif not self._is_harmless(name):
                raise CheckpointError(
                    f"{self._home[name].path} holds tensor {name!r}, which a model of this config.json doesn't have"
                )

    def _lacks(self, name: str, shape: tuple[int, ...], wanted: Mapping[str, tuple[int, ...]]) -> CheckpointError:
        """What is missing, and what is there that no such model has: often the same by another name."""
        others = sorted(self._home.keys() - wanted.keys()) if self._method is None else []
        told = f"; it holds {others[0]!r}, which a model of this config.json doesn't have" if others else ""
        return CheckpointError(f"{self.path} lacks tensor {name!r} of shape {list(shape)}{told}")

    def stored(self, name: str) -> StoredTensor:
        if self._parts(name):
            assert self._method is not None
            return self._method.stored(_module(name), self._matrix_shape(name))
        entry = self.entries[name]
        if len(entry.shape) == 1:
            return StoredTensor(entry.dtype, FP32, is_exact=True)
        return StoredTensor(entry.dtype, BF16, is_exact=entry.dtype == "BF16")

    def read(self, name: str) -> npt.NDArray[Any] | QuantizedMatrix:
        """A float tensor as a read-only view of the file where it can be: bfloat16, float16 or float32."""
        if self._parts(name):
            assert self._method is not None
            return self._method.read(_module(name), self._matrix_shape(name))
        values = self._part(name)
        if values.dtype == np.float64:
            with np.errstate(over="ignore"):  # becomes infinite, and is refused
                values = values.astype(np.float32)
        raw = values.reshape(-1).view(np.uint8)
        if not all_finite(raw, NATIVE_NAMES[values.dtype.name], self.num_threads):
            raise CheckpointError(f"tensor {name!r} in {self._home[name].path} holds NaN or infinite values")
        return values

    def crcs(self, name: str) -> dict[str, int]:
        return {part: self._crc(part) for part in self._parts(name) or [name]}

    def release(self, name: str) -> None:
        for part in self._parts(name) or [name]:
            self._home[part].release(part)

    def _parts(self, name: str) -> list[str]:
        """The tensors that make up a quantised matrix; none if it isn't."""
        if self._method is None or not name.endswith(".weight"):
            return []
        return self._method.parts(_module(name))

    def _matrix_shape(self, name: str) -> tuple[int, int]:
        shape = self._shapes[name]  # known since `check`
        return shape[0], shape[1]

    def _part(self, name: str) -> npt.NDArray[Any]:
        """A tensor of the files as it lies there."""
        entry, raw = self._home[name].entries[name], self._home[name].raw(name)
        dtype = np.dtype(PART_DTYPES[entry.dtype])
        if entry.start % dtype.itemsize:
            raw = raw.copy()  # the format allows odd offsets; vector loads of the native code don't
        return raw.view(dtype).reshape(entry.shape)

    def _crc(self, name: str) -> int:
        return int(crc32c(self._home[name].raw(name), self.num_threads))

    def _is_harmless(self, name: str) -> bool:
        """Whether a tensor that no Qwen2 has changes nothing: old rotary tables, and in a quantised checkpoint what its
        inputs were to be quantised with, and biases of zeros that the tool gave to all modules."""
        if name.endswith("rotary_emb.inv_freq"):
            return True
        if self._method is None:
            return False
        is_bias = name.endswith(".bias") and self.entries[name].dtype in FLOAT_DTYPES
        return name.rpartition(".")[2] in UNUSED_PARTS or (is_bias and not self._part(name).any())

    def content_digest(
        self, crcs: Mapping[str, int] | None = None, report: Callable[[int, int], None] | None = None
    ) -> str:
        def read_crc(name: str) -> int:
            crc = self._crc(name)
            self._home[name].release(name)
            return crc

        tensors = {name: (f"{e.dtype} {list(e.shape)}", e.num_bytes) for name, e in self.entries.items()}
        return digest_of(self.texts(), tensors, read_crc, crcs, report)

    def _companions(self) -> list[Path]:
        return [path for name in COMPANION_FILES if (path := self.path / name).is_file()]

    def _check_entry(self, name: str, shape: tuple[int, ...]) -> None:
        entry, path = self._home[name].entries[name], self._home[name].path
        if entry.shape != shape:
            raise CheckpointError(
                f"tensor {name!r} in {path} has shape {list(entry.shape)}, but config.json asks for {list(shape)}"
            )
        if entry.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor {name!r} in {path} is {entry.dtype}; supported are {', '.join(FLOAT_DTYPES)}, and what a "
                "quantization_config in config.json explains"
            )

    def _check_tied_head(self, shape: tuple[int, ...]) -> None:
        self._check_entry(HEAD, shape)
        head, embedding = self._part(HEAD), self._part(EMBEDDING)
        alike = head.dtype == embedding.dtype and self._crc(HEAD) == self._crc(EMBEDDING)
        if not alike and not np.array_equal(head.astype(np.float64), embedding.astype(np.float64)):
            raise CheckpointError(
                f"config.json ties the head to the embedding, but {HEAD!r} in {self._home[HEAD].path} differs from "
                f"{EMBEDDING!r}; set tie_word_embeddings to false in config.json to use it"
            )

    def _shards(self) -> dict[str, set[str] | None]:
        """File name -> the tensors it should hold, or None for whatever it holds."""
        if (self.path / SINGLE).is_file():
            return {SINGLE: None}
        if (self.path / INDEX).is_file():
            return {shard: set(map(_full_name, names)) for shard, names in read_index(self.path / INDEX).items()}
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        if pickles := [name for name in names if name.endswith(PICKLES)]:
            raise CheckpointError(
                f"{self.path} has {pickles[0]} but no safetensors; pickled weights can run code and are refused: "
                "convert with transformers, model.save_pretrained(folder, safe_serialization=True)"
            )
        if (found := [name for name in names if name.endswith(".safetensors")]) == [ADAPTER]:
            raise CheckpointError(
                f"{self.path} is an adapter; give its base model, and the adapter as --lora {self.path}"
            )
        if len(found) == 1:
            return {found[0]: None}  # older AutoGPTQ names it after bits and group size
        told = f"; it has {', '.join(found)}: download the index too" if found else ""
        raise CheckpointError(f"{self.path} has neither {SINGLE} nor {INDEX}{told}")


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _full_name(name: str) -> str:
    """The name that a tensor of a body has in the whole model."""
    return f"model.{name}" if name.startswith(BODY_PARTS) else name


def _open(path: Path) -> SafetensorsFile:
    """A file whose tensors go by their full names."""
    try:
        file = SafetensorsFile(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, but {INDEX} names it; download the checkpoint again") from None
    except ContainerError as error:
        raise CheckpointError(f"{path} is damaged: {why_unreadable(path, f'{error}; download it again')}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    entries = {_full_name(name): entry for name, entry in file.entries.items()}
    if len(entries) < len(file.entries):
        raise CheckpointError(f"{path} holds tensors of one layer with 'model.' before their names and without")
    file.entries = entries
    return file


def read_index(path: Path) -> dict[str, set[str]]:
    """Shard -> tensor names, from the `weight_map`. Shards lie beside the index, nowhere else."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        items = list(weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors index: {error!r}") from None
    shards: dict[str, set[str]] = {}
    for tensor, shard in items:
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and not set(shard) & set("/\\\0")
        if not plain:
            raise CheckpointError(f"{path} places tensor {tensor!r} in {shard!r}; that is not a .safetensors file name")
        shards.setdefault(shard, set()).add(tensor)
    return shards
