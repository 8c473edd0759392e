"""What a checkpoint's sentence-transformers files say of its embeddings: pooling, normalising, prompts.

modules.json lists what follows the model, `N_Pooling/config.json` says how hidden states become one,
config_sentence_transformers.json has the texts that go before a query or a document, and sentence_bert_config.json says
whether a text is read through the chat template, as sentence-transformers 6 has it. The compiler writes what was read
into an artifact as `embedding.json`; `LLM` and the server read that.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwench.checkpoint.fields import Fields
from qwench.checkpoint.json_file import read_json, read_object
from qwench.errors import CheckpointError

SETTINGS = "embedding.json"
MODULES, PROMPTS, READING = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING_CONFIG = re.compile(r"\d+_Pooling/config\.json")
POOLINGS: Mapping[str, Literal["last", "mean", "first"]] = {"lasttoken": "last", "mean": "mean", "cls": "first"}
# One flag a mode, as files before sentence-transformers 6 have them.
MODE_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


@dataclass(frozen=True)
class EmbeddingSettings:
    """prompts: name -> text that goes before an input. default_prompt: the name of the one that does unless another is
    asked for; None: none does. through_chat: a text is a user's message, its prompt the system's."""

    pooling: Literal["last", "mean", "first"] = "last"
    normalize: bool = True
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    through_chat: bool = False

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n").encode()

    @classmethod
    def from_folder(cls, folder: Path) -> EmbeddingSettings:
        """Of a compiled model; the defaults if its checkpoint said nothing."""
        return cls(**read_object(folder / SETTINGS))


def is_embedding_file(name: str) -> bool:
    """Whether a file of a checkpoint, by its path within, is one of those that are read here."""
    return name in (MODULES, PROMPTS, READING) or POOLING_CONFIG.fullmatch(name) is not None


def embedding_files(folder: Path) -> list[Path]:
    """Those that a folder has."""
    found = [folder / MODULES, folder / PROMPTS, folder / READING, *sorted(folder.glob("*_Pooling/config.json"))]
    return [path for path in found if path.is_file()]


def read_embedding_settings(folder: Path) -> EmbeddingSettings | None:
    """What the files of a checkpoint say; None where there is no modules.json. Raises CheckpointError for modules that
    aren't read."""
    path = folder / MODULES
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} isn't a list of modules")
    kinds = [_kind(module, path) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{path} lists {', '.join(kinds) or 'nothing'}; qwench reads Transformer, Pooling and perhaps Normalize"
        )
    if POOLING_CONFIG.fullmatch(config := f"{modules[1].get('path')}/config.json") is None:
        raise CheckpointError(f"{path} has its pooling in {modules[1].get('path')!r}; that is no name like '1_Pooling'")
    pooling = _read_pooling(folder / config)
    return dataclasses.replace(
        _read_prompts(folder / PROMPTS), pooling=pooling, normalize=len(kinds) == 3,
        through_chat=_reads_through_chat(folder / READING),
    )  # fmt: skip


def _kind(module: Mapping[str, Any], path: Path) -> str:
    """The last part of a module's type; code of the checkpoint's own is none that runs here."""
    kind = module.get("type")
    if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
        raise CheckpointError(f"{path} has a module of type {kind!r}, which isn't one of sentence-transformers' own")
    return kind.rpartition(".")[2]


def _read_pooling(path: Path) -> Literal["last", "mean", "first"]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but {MODULES} names it")
    config = Fields(read_object(path), str(path))
    asked = config.get("pooling_mode") or [name for flag, name in MODE_FLAGS.items() if config.flag(flag)] or "mean"
    modes = [asked] if isinstance(asked, str) else list(asked)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise config.error(f"the pooling is {' and '.join(map(str, modes))}; qwench reads one of {', '.join(POOLINGS)}")
    if not config.flag("include_prompt", True) and modes[0] != "lasttoken":
        raise config.error("include_prompt is false; qwench pools over all tokens")
    return POOLINGS[modes[0]]


def _read_prompts(path: Path) -> EmbeddingSettings:
    config = Fields(read_object(path), str(path))
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise config.error(f"prompts must map names to texts, but is {prompts!r}")
    if default is not None and default not in prompts:
        raise config.error(f"default_prompt_name is {default!r}, which prompts doesn't have")
    return EmbeddingSettings(prompts=prompts, default_prompt=default)


def _reads_through_chat(path: Path) -> bool:
    config = Fields(read_object(path), str(path))
    kinds = config.get("modality_config") or {}
    if not isinstance(kinds, dict) or not all(isinstance(kind, dict) for kind in kinds.values()):
        raise config.error(f"modality_config must be an object of objects, but is {kinds!r}")
    if config.flag("do_lower_case"):
        raise config.error("do_lower_case is true; qwench reads texts as they are")
    if "message" in kinds and (form := kinds["message"].get("format", "flat")) != "flat":
        raise config.error(f"the format of messages is {form!r}; qwench reads 'flat'")
    return "message" in kinds
