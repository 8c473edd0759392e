"""`architectures` of config.json -> HeadSpec: what a model computes of the hidden states behind its last layer.

Names what is read where it refuses. Called by spec.py; what a head's tensors say of it beside config.json, a bias, is
known to the reader of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwench.checkpoint.fields import LARGEST_SIZE, Fields
from qwench.errors import CheckpointError

HeadKind = Literal["causal_lm", "none", "sequence_classification", "token_classification"]

# model_type -> how its classes' names begin
FAMILIES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}
ENDINGS: dict[str, HeadKind] = {
    "ForCausalLM": "causal_lm", "Model": "none", "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
}  # fmt: skip
# Heads of two layers with a ReLU between them: kind and number of labels, which the code beside such models says.
DEEP: dict[str, tuple[HeadKind, int]] = {
    "Qwen2ForRewardModel": ("sequence_classification", 1), "Qwen2ForProcessRewardModel": ("token_classification", 2),
}  # fmt: skip
DEFAULT_LABELS = 2  # transformers'


@dataclass(frozen=True)
class HeadSpec:
    """causal_lm: logits of the next token. none: hidden states alone. The classifications: `num_labels` numbers of a
    sequence, by its last token, or of each token. is_deep: by two layers with a ReLU between them."""

    kind: HeadKind = "causal_lm"
    num_labels: int = 0
    has_bias: bool = False
    is_deep: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ENDINGS.values():
            raise CheckpointError(f"the head is {self.kind!r}; there are {', '.join(ENDINGS.values())}")
        if not (0 < self.num_labels <= LARGEST_SIZE if self.is_classifier else self.num_labels == 0):
            raise CheckpointError(f"the head {self.kind!r} has {self.num_labels} labels")

    @property
    def is_classifier(self) -> bool:
        return self.kind in ("sequence_classification", "token_classification")


LANGUAGE_MODEL = HeadSpec()


def why_silent(head: HeadSpec, is_causal: bool) -> str | None:
    """Why a model can't continue a text, for errors; None if it can."""
    if head.kind == "causal_lm" and is_causal:
        return None
    has = "no language model's head" if head.kind != "causal_lm" else "attention in both directions"
    gives = "scores and embeddings" if head.is_classifier else "embeddings"
    return f"this model has {has}, so it can't continue a text; it gives {gives}"


def read_head(config: Fields, model_type: str) -> HeadSpec:
    """The head that the first of `architectures` that is known has; a language model's where none is named."""
    known = {FAMILIES[model_type] + ending: kind for ending, kind in ENDINGS.items()}
    architectures = config.get("architectures") or [FAMILIES[model_type] + "ForCausalLM"]
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise config.error(f"architectures must be a list of names, but is {architectures!r}")
    deep = DEEP if model_type == "qwen2" else {}
    if named := [name for name in architectures if name in deep]:
        return HeadSpec(*deep[named[0]], has_bias=True, is_deep=True)
    kinds = [known[name] for name in architectures if name in known]
    if not kinds:
        raise config.error(f"architectures is {architectures!r}; of model_type {model_type!r} qwench reads "
                           f"{', '.join([*known, *deep])}")  # fmt: skip
    is_classifier = kinds[0] in ("sequence_classification", "token_classification")
    return HeadSpec(kinds[0], _num_labels(config) if is_classifier else 0, kinds[0] == "token_classification")


def _num_labels(config: Fields) -> int:
    """From `num_labels` or the number of names in `id2label`, which must agree."""
    names = config.get("id2label")
    if names is None:
        return config.positive("num_labels", DEFAULT_LABELS)
    if not isinstance(names, dict) or not names or set(names) != {str(i) for i in range(len(names))}:
        raise config.error(f"id2label must name the labels '0', '1' and so on, but is {names!r}")
    if (count := config.positive("num_labels", len(names))) != len(names):
        raise config.error(f"num_labels is {count}, but id2label names {len(names)}")
    return count
