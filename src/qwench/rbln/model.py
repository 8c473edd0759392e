"""RBLNQwen2ForCausalLM and RBLNQwen2Model: Qwench's classes under Optimum RBLN's names, signatures and rules.

Adds no way of computing: options are translated, folders get an rbln_config.json, everything else is what
QwenchForCausalLM and QwenchModel do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from transformers import AutoModel, AutoModelForCausalLM

from qwench.artifact.artifact import Artifact, is_artifact
from qwench.checkpoint.hub import find_checkpoint
from qwench.compiler.compiler import compile_checkpoint
from qwench.errors import ArtifactError, ConfigError
from qwench.load import resolve_model
from qwench.lora import peft_folder
from qwench.modeling import QwenchForCausalLM, QwenchModel, loading
from qwench.modeling.base import QwenchPreTrained
from qwench.program.models import adaptable_shapes
from qwench.rbln.config import RBLNDecoderOnlyModelForCausalLMConfig
from qwench.rbln.lora import BASE
from qwench.rbln.memory import with_cache_blocks

if TYPE_CHECKING:
    from typing_extensions import Self

PREFIX = "rbln_"
CONFIG_FILE = "rbln_config.json"
ConfigLike: TypeAlias = "RBLNDecoderOnlyModelForCausalLMConfig | Mapping[str, Any] | None"


class RBLNPreTrained(QwenchPreTrained):
    """Made by `from_pretrained` or `from_model`. rbln_config: its options, complete. original: transformers' class."""

    original: ClassVar[Any]

    def __init__(
        self,
        artifact: Artifact,
        rbln_config: RBLNDecoderOnlyModelForCausalLMConfig,
        workspace: TemporaryDirectory[str] | None = None,
    ) -> None:
        self.rbln_config = rbln_config
        super().__init__(
            with_cache_blocks(artifact, rbln_config) if rbln_config.create_runtimes else artifact, workspace
        )
        self._load_adapters()

    def _load_adapters(self) -> None:
        """Checks those of lora_config, and loads them beside the weights if the model is to run."""
        if (lora := self.rbln_config.lora_config) is None:
            return
        shapes = adaptable_shapes(self.artifact.program.spec)
        for config in lora.adapters:
            adapter = config.read(shapes)
            if lora.max_lora_rank is not None and adapter.max_rank > lora.max_lora_rank:
                raise ConfigError(
                    f"{config.lora_name} has rank {adapter.max_rank}, but max_lora_rank is {lora.max_lora_rank}"
                )
            if self.rbln_config.create_runtimes:
                self.engine.adapters.load(config.lora_name, adapter)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, model_id: str | Path, export: bool = False, rbln_config: ConfigLike = None, **kwargs: Any
    ) -> Self:
        """export: True compiles a checkpoint (hub id or folder); False loads a folder that `save_pretrained` wrote.

        `rbln_*` keywords are options and win over `rbln_config`. Others go to transformers' from_pretrained, which then
        loads the checkpoint; without any, it's compiled from its files, tensor by tensor. Raises ConfigError, which is
        a ValueError, for options that break a rule, and what compiling and opening raise.
        """
        options = _take_options(rbln_config, kwargs)
        if export:
            return cls._export(model_id, options, kwargs)
        loading.check_other_keywords(kwargs, PREFIX)
        compiled = _read_config(Path(model_id))
        options.check_agreement(compiled, model_id)
        config = compiled.merged(compiled, options.to_dict())
        artifact = resolve_model(model_id, config.to_qwench())
        config = dataclasses.replace(config, quantization=compiled.quantization, lora_config=compiled.lora_config)
        return cls(artifact, config.resolve(_model_config(artifact.path)))

    @classmethod
    def _export(
        cls, model_id: str | Path, options: RBLNDecoderOnlyModelForCausalLMConfig, keywords: dict[str, Any]
    ) -> Self:
        if is_artifact(Path(model_id)):
            raise ArtifactError(f"{model_id} is compiled already; leave export=True out to load it")
        if any(
            name not in loading.TOLERATED or value not in loading.TOLERATED[name] for name, value in keywords.items()
        ):
            return cls._compile_live(cls.original.from_pretrained(model_id, **keywords), options)
        folder, name = find_checkpoint(model_id, None)
        config = options.resolve(_model_config(folder))
        workspace = loading.make_workspace()
        out = Path(workspace.name) / "artifact"
        return cls(compile_checkpoint(folder, out, config.to_qwench(), source_name=name), config, workspace)

    @classmethod
    def from_model(  # type: ignore[override]
        cls, model: Any, rbln_config: ConfigLike = None, **kwargs: Any
    ) -> Self:
        """Compiles a live model of transformers. Options as for `from_pretrained`."""
        options = _take_options(rbln_config, kwargs)
        loading.check_other_keywords(kwargs, PREFIX)
        return cls._compile_live(model, options)

    @classmethod
    def _compile_live(cls, model: Any, options: RBLNDecoderOnlyModelForCausalLMConfig) -> Self:
        config = options.resolve(model.config.to_dict())
        workspace = loading.make_workspace()
        return cls(loading.compile_model(model, config.to_qwench(), workspace.name), config, workspace)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes the compiled folder, which `from_pretrained` loads, whole or not at all. Options of a run stay out."""
        loading.check_save_keywords(kwargs)
        config, adapters = _with_own_adapters(self.rbln_config)
        text = json.dumps(config.to_saved(), indent=2) + "\n"
        loading.copy_artifact(self.artifact, Path(save_directory), {CONFIG_FILE: text, **adapters})

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """As Qwench's; "base" is the model itself. Raises ConfigError for an unknown name."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._activate([None if name == BASE else name for name in names])

    def set_lora_int_ids(self, lora_int_ids: torch.Tensor | Sequence[int]) -> None:
        """By the ids of lora_config, one for each row of a batch; 0 is the model itself. Raises ConfigError."""
        names = self.rbln_config.lora_config.adapter_names if self.rbln_config.lora_config else [BASE]
        ids = [int(i) for i in lora_int_ids]
        if not all(0 <= i < len(names) for i in ids):
            raise ConfigError(f"lora_int_ids are {ids}; this model has the ids 0 to {len(names) - 1}")
        self._activate([None if i == 0 else names[i] for i in ids])

    @contextlib.contextmanager
    def _with_ids(self, lora_int_ids: torch.Tensor | Sequence[int] | None) -> Iterator[None]:
        """For one call."""
        before = self._active, self._are_disabled
        try:
            if lora_int_ids is not None:
                self.set_lora_int_ids(lora_int_ids)
            yield
        finally:
            self._active, self._are_disabled = before

    def forward(self, *args: Any, lora_int_ids: torch.Tensor | Sequence[int] | None = None, **kwargs: Any) -> Any:
        """As Qwench's. lora_int_ids: [batch], as in `set_lora_int_ids`, for this call."""
        with self._with_ids(lora_int_ids):
            return super().forward(*args, **kwargs)


class RBLNDecoderOnlyModelForCausalLM(RBLNPreTrained, QwenchForCausalLM):
    """A language model."""

    original = AutoModelForCausalLM

    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        max_length: int | None = None,
        lora_int_ids: torch.Tensor | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, every mode of it. input_ids: [batch, length] int64; more rows than batch_size wait
        for their turn. lora_int_ids: [batch], as in `set_lora_int_ids`, for this call. Raises RequestError, a
        ValueError, before the first step for what can't be finished."""
        given = {"attention_mask": attention_mask, "max_length": max_length}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        with self._with_ids(lora_int_ids):
            return super().generate(**kwargs) if input_ids is None else super().generate(input_ids, **kwargs)


class RBLNQwen2ForCausalLM(RBLNDecoderOnlyModelForCausalLM):
    """The class of Optimum RBLN's Qwen2 page."""


class RBLNDecoderOnlyModel(RBLNPreTrained, QwenchModel):
    """A model's hidden states, for embeddings: `forward` gives last_hidden_state."""

    original = AutoModel


class RBLNQwen2Model(RBLNDecoderOnlyModel):
    """The other class of that page."""


def _take_options(given: ConfigLike, keywords: dict[str, Any]) -> RBLNDecoderOnlyModelForCausalLMConfig:
    """The options of a call; `rbln_*` are taken out of `keywords`."""
    names = [name for name in keywords if name.startswith(PREFIX)]
    asked = {name.removeprefix(PREFIX): keywords.pop(name) for name in names}
    return RBLNDecoderOnlyModelForCausalLMConfig.merged(given, asked)


def _model_config(folder: Path) -> Mapping[str, Any]:
    """config.json as it is; what is wrong with it is said by those who need more of it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _read_config(folder: Path) -> RBLNDecoderOnlyModelForCausalLMConfig:
    """The options that a compiled folder was made with."""
    if not is_artifact(folder):
        raise ArtifactError(f"{folder} is not a compiled folder; say export=True to compile a checkpoint")
    try:
        data = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config = RBLNDecoderOnlyModelForCausalLMConfig(**data)
        if (lora := config.lora_config) is None:
            return config
        return dataclasses.replace(config, lora_config=lora.with_paths([folder / a.lora_path for a in lora.adapters]))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {CONFIG_FILE}: it was not compiled by this class. QwenchForCausalLM loads it; or compile "
            "the checkpoint with export=True"
        ) from None
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise ArtifactError(f"{folder}: {CONFIG_FILE} can't be used: {error}; compile the checkpoint again") from None


def _with_own_adapters(
    config: RBLNDecoderOnlyModelForCausalLMConfig,
) -> tuple[RBLNDecoderOnlyModelForCausalLMConfig, dict[str, Path]]:
    """The options of a folder that has copies of its adapters' files in it, and what these are copies of."""
    if (lora := config.lora_config) is None:
        return config, {}
    folders = [f"lora/{adapter.lora_int_id}" for adapter in lora.adapters]
    files = {
        f"{folder}/{name}": Path(adapter.lora_path) / name
        for folder, adapter in zip(folders, lora.adapters, strict=True)
        for name in (peft_folder.CONFIG, peft_folder.WEIGHTS)
    }
    return dataclasses.replace(config, lora_config=lora.with_paths(folders)), files
