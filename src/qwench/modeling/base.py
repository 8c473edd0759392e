"""QwenchPreTrained: what all compiled models have in common for those who know transformers'.

Loading and saving, the engine beneath, and what transformers asks of a model. What `forward` takes and gives is in
`model.py` and `heads.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import Qwen2Config

from qwench.artifact.artifact import Artifact
from qwench.checkpoint.heads import HeadKind
from qwench.config import QwenchConfig
from qwench.errors import ConfigError, RequestError
from qwench.modeling import loading
from qwench.modeling.adapters import AdapterMethods
from qwench.modeling.cache import Pages
from qwench.modeling.deadline import Deadline
from qwench.modeling.embeddings import TokenEmbeddings
from qwench.modeling.forward import ModelShape
from qwench.runtime.engine import Engine
from qwench.runtime.loading import load_engine
from qwench.runtime.profiler import Profiler

if TYPE_CHECKING:
    from typing_extensions import Self

IGNORED = ("token_type_ids",)  # of which transformers' Qwen2 takes no notice either
CLASSES: dict[HeadKind, str] = {
    "causal_lm": "QwenchForCausalLM", "none": "QwenchModel",
    "sequence_classification": "QwenchForSequenceClassification",
    "token_classification": "QwenchForTokenClassification",
}  # fmt: skip


class QwenchPreTrained(torch.nn.Module, AdapterMethods):  # type: ignore[misc]
    """Made by `from_pretrained` or `from_model`. Runs on the CPU; results are torch fp32.

    A torch module without parameters: the weights stay packed in the artifact. heads: of the models that it runs.
    """

    heads: ClassVar[tuple[HeadKind, ...]]
    main_input_name = "input_ids"
    base_model_prefix = ""
    input_modalities = output_modalities = ("text",)
    config_class = Qwen2Config

    def __init__(self, artifact: Artifact, workspace: TemporaryDirectory[str] | None = None) -> None:
        """artifact: the compiled model. workspace: the temporary folder it lies in, kept as long as the model."""
        super().__init__()
        if (kind := artifact.program.spec.head.kind) not in self.heads:
            wanted = " or ".join(map(repr, self.heads))
            raise ConfigError(
                f"{type(self).__name__} runs models whose head is {wanted}, and this one's is {kind!r}; load it with "
                f"{CLASSES[kind]}"
            )
        self.artifact, self.qwench_config = artifact, artifact.config
        self.config, self.generation_config = loading.hugging_face_configs(artifact.path)
        assert artifact.config.max_seq_len is not None
        self.max_seq_len: int = artifact.config.max_seq_len
        self._deadline = Deadline(artifact.config.timeout)
        self._runtime = self._make_runtime() if artifact.config.create_runtimes else None
        spec = artifact.program.spec
        self._shape = ModelShape(
            spec.vocab_size, spec.hidden_size, spec.num_layers, artifact.plan.max_step_tokens, spec.num_outputs,
            spec.is_causal,
        )  # fmt: skip
        self._workspace = workspace

    def _make_runtime(self) -> tuple[Engine, Pages]:
        engine = load_engine(self.artifact)
        return engine, Pages(
            engine.scheduler.pool, engine.executor, engine.cache.block_size, self.max_seq_len, engine.scheduler.windows,
            self.artifact.plan.max_step_tokens, self._deadline,
        )  # fmt: skip

    @property
    def engine(self) -> Engine:
        """Raises ConfigError if the model was made without a runtime."""
        if self._runtime is None:
            raise ConfigError(
                "this model was made with create_runtimes=False: it can be saved, not run; save it with "
                "save_pretrained and load it with from_pretrained"
            )
        return self._runtime[0]

    @property
    def _pages(self) -> Pages:
        assert self.engine and self._runtime
        return self._runtime[1]

    @property
    def profiler(self) -> Profiler:
        """Where the time of all steps went. Raises ConfigError unless the model has `activate_profiler`."""
        if self.engine.profiler is None:
            raise ConfigError("this model keeps no profile; load it with activate_profiler=True")
        return self.engine.profiler

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        export: bool | None = None,
        qwench_config: QwenchConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads an artifact, or compiles a checkpoint (folder or hub id) first.

        export: None loads `model_id` if it's an artifact, else compiles it, cached by content; True always compiles;
        False demands an artifact. `qwench_*` keywords are fields of QwenchConfig and win over `qwench_config`.
        Raises ConfigError for other keywords, contradictions and unknown options, and what compiling raises.
        """
        config = loading.merge_config(qwench_config, kwargs)
        loading.check_other_keywords(kwargs)
        workspace = loading.make_workspace() if export else None
        artifact = loading.find_artifact(model_id, export, config, workspace.name if workspace else None)
        return cls(artifact, workspace)

    @classmethod
    def from_model(cls, model: Any, qwench_config: QwenchConfig | dict[str, Any] | None = None, **kwargs: Any) -> Self:
        """Compiles a live transformers Qwen2ForCausalLM, into a folder that goes with the object: `save_pretrained`."""
        config = loading.merge_config(qwench_config, kwargs)
        loading.check_other_keywords(kwargs)
        workspace = loading.make_workspace()
        return cls(loading.compile_model(model, config, workspace.name), workspace)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Copies the artifact, tokenizer files included, to a folder that `from_pretrained` and AutoTokenizer load.

        Files of an artifact are verified by hash, so don't save a tokenizer over them. Raises ArtifactError when the
        folder holds something else, ConfigError for keywords of transformers that a copy has no use for.
        """
        loading.check_save_keywords(kwargs)
        loading.copy_artifact(self.artifact, Path(save_directory))

    # --- what transformers asks of a model -------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits; the weights' format is `qwench_config.weights`."""
        return torch.float32

    @property
    def name_or_path(self) -> str:
        return str(self.artifact.path)

    def is_remote_code(self) -> bool:
        return False

    def get_input_embeddings(self) -> TokenEmbeddings:
        """Token ids -> embeddings, to build `inputs_embeds` with."""
        return TokenEmbeddings(self.engine.executor, self._shape.vocab_size, self._shape.hidden_size)

    def get_output_embeddings(self) -> None:
        """None: the head is packed."""

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Of the checkpoint: its numbers, however they are packed. None can be trained."""
        if only_trainable:
            return 0
        weights = self.artifact.program.weights.values()
        table = "model.embed_tokens.weight"
        return sum(math.prod(w.shape) for w in weights if not (exclude_embeddings and table in w.sources))

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the packed weights."""
        return self.artifact.weights_bytes

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: whether head and embedding are one was decided when the model was compiled."""

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> TokenEmbeddings:
        """The embeddings, if that is their size. Raises ConfigError otherwise."""
        if new_num_tokens not in (None, self._shape.vocab_size):
            raise ConfigError(
                f"resize_token_embeddings({new_num_tokens}): a compiled model has {self._shape.vocab_size} tokens for "
                "good; resize the checkpoint and compile it again"
            )
        return self.get_input_embeddings()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Accepts the device it's on. Raises ConfigError for any other place or dtype."""
        wanted = [*args, *(value for name, value in kwargs.items() if name != "non_blocking")]
        if any(w not in (None, "cpu", self.device, self.dtype) for w in wanted):
            raise ConfigError(f"to({', '.join(map(str, wanted))}): a compiled model stays on the CPU, in its formats")
        return self

    def cpu(self) -> Self:
        return self

    def float(self) -> Self:
        """Nothing to do: logits are fp32."""
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """torch's way to `cuda`, `half` and their like."""
        raise ConfigError(
            "a compiled model stays on the CPU, in its formats; compile with other qwench_weights to change them"
        )

    def _check_allowed(self, inputs_embeds: torch.Tensor | None, attention_mask: torch.Tensor | None) -> None:
        """What the model was compiled without. Raises RequestError."""
        if inputs_embeds is not None and not self.qwench_config.use_inputs_embeds:
            raise RequestError(
                "inputs_embeds: the model was compiled with use_inputs_embeds=False; compile it with True"
            )
        if attention_mask is not None and not self.qwench_config.use_attention_mask and (attention_mask == 0).any():
            raise RequestError(
                "attention_mask has padding, but the model was compiled with use_attention_mask=False; give rows of "
                "equal length, or compile it with True"
            )


def refuse(**options: Any) -> None:
    """Raises RequestError for options of forward that a compiled model hasn't got."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise RequestError(f"{name} is not available from a compiled model; it gives outputs and hidden states")
