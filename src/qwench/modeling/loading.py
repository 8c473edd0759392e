"""From what a user names to a compiled model: options merged, artifact found or made, Hugging Face configs read.

Knows nothing of generating. Called by `QwenchForCausalLM`'s constructors and `save_pretrained`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from qwench.artifact.artifact import MANIFEST, Artifact, is_artifact
from qwench.artifact.artifact_folder import check_destination, new_artifact_folder
from qwench.checkpoint.hub import find_checkpoint
from qwench.checkpoint.tokenizer_files import has_tokenizer
from qwench.compiler.compiler import compile_checkpoint
from qwench.config import QwenchConfig
from qwench.errors import ArtifactError, CheckpointError, ConfigError
from qwench.host import cache_dir
from qwench.load import resolve_model
from qwench.text.generation import chat_end_ids
from qwench.text.tokenizer import Tokenizer

PREFIX = "qwench_"
# Keywords of transformers' from_pretrained that may stay when the class is changed, and what they may say.
TOLERATED: dict[str, tuple[Any, ...]] = {
    "device_map": (None, "auto", "cpu"),
    "dtype": (None, "auto"),
    "torch_dtype": (None, "auto"),
    "trust_remote_code": (None, False),
}


def merge_config(given: QwenchConfig | dict[str, Any] | None, keywords: dict[str, Any]) -> QwenchConfig:
    """Options of this call: `qwench_*` keywords, which are taken out of `keywords`, over `given`, over defaults.

    Raises ConfigError for unknown options. Neither `given` nor anything in it changes.
    """
    if given is not None and not isinstance(given, (QwenchConfig, dict)):
        raise ConfigError(f"qwench_config is a {type(given).__name__}; give a QwenchConfig or a dict of its fields")
    names = [name for name in keywords if name.startswith(PREFIX)]
    return QwenchConfig.merged(given, {name.removeprefix(PREFIX): keywords.pop(name) for name in names})


def check_other_keywords(keywords: dict[str, Any], prefix: str = PREFIX) -> None:
    """Raises ConfigError for keywords that are not harmless ones of transformers; options begin with `prefix`."""
    for name, value in keywords.items():
        if name not in TOLERATED:
            allowed = ", ".join(TOLERATED)
            raise ConfigError(f"unknown keyword {name!r}; options begin with {prefix!r}, and {allowed} are understood")
        if value not in TOLERATED[name]:
            raise ConfigError(
                f"{name} is {value!r}; a compiled model takes {', '.join(map(repr, TOLERATED[name]))} "
                "(its formats are qwench_weights and qwench_kv_cache, its device is the CPU)"
            )


def make_workspace() -> TemporaryDirectory[str]:
    """A folder for one model object, beside the cache of compiled ones: the system's /tmp may be memory, or small."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    return TemporaryDirectory(prefix="live-", dir=cache_dir())


def find_artifact(model: str | Path, export: bool | None, config: QwenchConfig, workspace: str | None) -> Artifact:
    """The compiled model: see `QwenchForCausalLM.from_pretrained`. workspace: a folder to compile to if `export`."""
    if export:
        assert workspace is not None
        checkpoint, name = find_checkpoint(model, None)
        return compile_checkpoint(checkpoint, Path(workspace) / "artifact", config, source_name=name)
    if export is False and not is_artifact(Path(model)):
        raise ArtifactError(f"{model} is not a compiled folder; leave export=False out to compile it")
    return resolve_model(model, config)


def compile_model(model: Any, config: QwenchConfig, workspace: str) -> Artifact:
    """Compiles a live model of transformers by way of a checkpoint that is deleted again."""
    checkpoint = Path(workspace) / "checkpoint"
    model.save_pretrained(checkpoint)
    name = getattr(model, "name_or_path", "") or type(model).__name__
    artifact = compile_checkpoint(checkpoint, Path(workspace) / "artifact", config, source_name=name)
    shutil.rmtree(checkpoint)
    return artifact


def hugging_face_configs(folder: Path) -> tuple[PretrainedConfig, GenerationConfig]:
    """The model's config, and how it generates by default: generation_config.json, else what config.json says.

    A chat model also ends where another turn begins: see `chat_ends`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        generation = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
    if ends := chat_ends(folder, generation.eos_token_id):
        generation.eos_token_id = ends
    return config, generation


def chat_ends(folder: Path, eos: int | list[int] | None) -> list[int]:
    """`eos` and, behind it, the tokens that no answer in chat goes beyond; empty where there's nothing to add.

    generation_config.json of Qwen2 doesn't list <|im_start|>, so that an answer sometimes runs on with the user's next
    turn. A model without a chat template or without ends is left as it is.
    """
    if eos is None or not has_tokenizer(folder):
        return []
    try:
        tokenizer = Tokenizer(folder)
    except CheckpointError:
        return []  # token ids need no tokenizer; whoever loads it will be told
    known = eos if isinstance(eos, list) else [eos]
    more = chat_end_ids(tokenizer, known) if tokenizer.chat_template else []
    return [*known, *more] if more else []


def copy_artifact(artifact: Artifact, destination: Path, others: Mapping[str, str | Path] | None = None) -> None:
    """Copies the files of the artifact, and puts `others` beside them, by name texts or files to copy; `destination`
    appears whole or stays as it was.

    Raises ArtifactError if it holds anything but an older artifact or can't be written.
    """
    if destination.exists() and destination.samefile(artifact.path):
        return
    check_destination(destination, overwrite=True, source=artifact.path)
    with new_artifact_folder(destination, overwrite=True) as folder:
        for name in (MANIFEST, *artifact.manifest.files):
            shutil.copyfile(artifact.path / name, folder / name)
        for name, other in (others or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(other, Path):
                shutil.copyfile(other, folder / name)
            else:
                (folder / name).write_text(other, encoding="utf-8")


def check_save_keywords(keywords: dict[str, Any]) -> None:
    """Raises ConfigError for what save_pretrained of transformers does and a copy of an artifact doesn't."""
    for name, value in keywords.items():
        if value and name != "safe_serialization":
            raise ConfigError(f"save_pretrained({name}={value!r}) is not available: an artifact is copied as it is")
