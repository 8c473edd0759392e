"""A folder as PEFT saves an adapter, adapter_config.json and adapter_model.safetensors -> LoraAdapter.

What the config says is honoured, or refused by its name: an adapter that is half understood answers wrongly and tells
nobody. Called by the compiler, which merges, by `LLM` and by the server.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwench.checkpoint.fields import Fields
from qwench.checkpoint.lfs_pointer import why_unreadable
from qwench.checkpoint.spec import EMBEDDING
from qwench.errors import CheckpointError
from qwench.lora.adapter import LoraAdapter, LoraPair
from qwench.safetensors_file import ContainerError, SafetensorsFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 256
MAX_CONFIG_BYTES = 1 << 20
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

HONOURED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}
# About training, or told by the tensors themselves.
NEEDLESS = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type", "velora_config",
}  # fmt: skip
NEUTRAL: tuple[Any, ...] = (None, False, "none", "", [], {})  # of whatever else a config may have
# Beginnings of training that leave the base model's weights alone; others (PiSSA, OLoRA, ...) change them.
PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
_PREFIX = "base_model.model."
# What PEFT saves of the base model beside an adapter of the embedding or a vocabulary that grew.
WHOLE = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")
# module, A or B; an adapter that was saved by hand has its name in between.
_TENSOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.[^.]+)?(\.weight)?")


_IDENTITY = re.compile(r".* sha256:[0-9a-f]{64}", re.DOTALL)


def adapter_identity(folder: str) -> str:
    """What an artifact records of a merged adapter: the folder's name and the sha256 of its files. Such a record is
    returned as it is. Raises CheckpointError if they can't be read."""
    if _IDENTITY.fullmatch(folder):
        return folder
    path, digest = Path(folder).expanduser(), hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        try:
            digest.update((path / name).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} is no LoRA adapter: {name} can't be read: {error.strerror}") from None
    return f"{path.absolute().name} sha256:{digest.hexdigest()}"


def read_adapter(
    folder: str | Path, shapes: Mapping[str, tuple[int, ...]], instead: Mapping[str, Any] | None = None
) -> LoraAdapter:
    """The adapter in `folder`, for a model whose tensors have these shapes. Values are views of the file.

    instead: fields in place of those of its config, such as lora_alpha.
    Raises CheckpointError when it isn't a LoRA that is read here, is damaged, or belongs to another model.
    """
    folder = Path(folder).expanduser()
    config = _config(folder, instead or {})
    halves = _halves(folder, shapes)
    alphas, ranks = _pattern(config, "alpha_pattern"), _pattern(config, "rank_pattern")
    pairs = {}
    for name, (a, b) in halves.items():
        module = name.removesuffix(".weight")
        rank = _matching(ranks, module, config.positive("r", 8))
        if len(a) != rank:
            raise config.error(f"{name} has rank {len(a)}, but r and rank_pattern say {rank}")
        alpha = _matching(alphas, module, config.number("lora_alpha", 8.0))
        pairs[name] = LoraPair(a, b, alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank))
    return LoraAdapter(pairs)


def _config(folder: Path, instead: Mapping[str, Any]) -> Fields:
    """adapter_config.json, all of whose fields are understood."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_CONFIG_BYTES} bytes; it isn't an adapter's config")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no LoRA adapter: it has no {CONFIG}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    values |= instead
    config = Fields(values, str(path))
    if values.get("peft_type") != "LORA":
        raise config.error(f"peft_type is {values.get('peft_type')!r}; LORA is what is read")
    if (beginning := values.get("init_lora_weights", True)) not in PLAIN_BEGINNINGS:
        raise config.error(
            f"init_lora_weights is {beginning!r}, which changes the base model too; convert the adapter when saving "
            "it (PEFT: path_initial_model_for_weight_conversion)"
        )
    for key in sorted(set(values) - HONOURED - NEEDLESS):
        if values[key] not in NEUTRAL:
            raise config.error(
                f"{key} is {values[key]!r}, which isn't read here; merge the adapter with PEFT (merge_and_unload) and "
                "compile what that saves"
            )
    return config


def _pattern(config: Fields, key: str) -> dict[str, float]:
    """rank_pattern or alpha_pattern: ends of module names, which PEFT takes as regular expressions -> number."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise config.error(f"{key} is {found!r}; it must be an object")
    numbers = Fields(found, f"{config.where}: {key}")
    for name in found:
        if not re.fullmatch(r"[\w.]+", name):
            raise config.error(f"{key} has {name!r}; names of modules or their ends are read, no other patterns")
    return {name: numbers.number(name) for name in found}


def _matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The number of the first key that the module's name ends with."""
    return next((n for end, n in pattern.items() if module == end or module.endswith(f".{end}")), default)


def _halves(
    folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Matrix -> its A and B, checked."""
    file = _open(folder)
    found: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for tensor in file.entries:
        match = _TENSOR.fullmatch(tensor.removeprefix(_PREFIX))
        name = f"{match[1]}.weight" if match else ""
        if tensor.endswith(WHOLE):
            raise CheckpointError(
                f"{file.path} holds {tensor!r}, a whole matrix, which isn't read; where it is the base model's own, "
                "save the adapter again with PEFT's save_pretrained(folder, save_embedding_layers=False)"
            )
        if match is None or name not in shapes:
            raise CheckpointError(
                f"{file.path} holds {tensor!r}, which is no part of a LoRA for a matrix of this model; is it another "
                "model's adapter?"
            )
        if bool(match[2]) != (name == EMBEDDING):
            raise CheckpointError(f"{file.path}: {tensor!r} is of the kind for another module")
        found.setdefault(name, {})[match[3]] = _read(file, tensor)
    if not found:
        raise CheckpointError(f"{file.path} holds no tensors")
    return {name: _checked(file.path, name, halves, shapes[name]) for name, halves in found.items()}


def _open(folder: Path) -> SafetensorsFile:
    path = folder / WEIGHTS
    try:
        return SafetensorsFile(path)
    except FileNotFoundError:
        pickled = " (pickled weights can run code and are refused: save it again with PEFT)"
        has_pickle = (folder / "adapter_model.bin").exists()
        raise CheckpointError(f"{folder} has no {WEIGHTS}{pickled if has_pickle else ''}") from None
    except ContainerError as error:
        raise CheckpointError(f"{path} is damaged: {why_unreadable(path, error)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None


def _read(file: SafetensorsFile, name: str) -> npt.NDArray[Any]:
    entry = file.entries[name]
    if entry.dtype not in DTYPES or len(entry.shape) != 2 or 0 in entry.shape:
        raise CheckpointError(
            f"{file.path}: {name!r} is {entry.dtype} of shape {list(entry.shape)}; matrices of {', '.join(DTYPES)} are "
            "read"
        )
    import ml_dtypes  # noqa: F401  # gives NumPy bfloat16; whoever has no adapter needn't wait for it

    raw, dtype = file.raw(name), np.dtype(DTYPES[entry.dtype])
    values = (raw.copy() if entry.start % dtype.itemsize else raw).view(dtype).reshape(entry.shape)
    if not np.isfinite(values.astype(np.float32)).all():
        raise CheckpointError(f"{file.path}: {name!r} holds NaN or infinite values")
    return values


def _checked(
    path: Path, name: str, halves: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if set(halves) != {"A", "B"}:
        raise CheckpointError(f"{path} has only half of the LoRA of {name}: {next(iter(halves))}")
    a, b = halves["A"], halves["B"]
    if name == EMBEDDING:  # of the transposed matrix, which is looked up by token: A [rank, vocab], B [hidden, rank]
        a, b = b.T, a.T
    if a.shape[1] != shape[1] or b.shape[0] != shape[0]:
        raise CheckpointError(
            f"{path}: the LoRA of {name} is for a matrix of shape {[b.shape[0], a.shape[1]]}, but this model's is "
            f"{list(shape)}; it is another model's adapter"
        )
    if a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{path}: A of {name} has rank {a.shape[0]}, but B {b.shape[1]}")
    if a.shape[0] > MAX_RANK:
        raise CheckpointError(f"{path}: the LoRA of {name} has rank {a.shape[0]}; up to {MAX_RANK} are read")
    return a, b
