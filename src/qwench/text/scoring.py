"""What embeddings and scores mean to those who ask: the texts before them, their length, probabilities.

Knows no model and no tokenizer, so that every process can have it. Called by `pooled.py` and the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwench.checkpoint.sentence_transformers import EmbeddingSettings
from qwench.errors import RequestError
from qwench.targets.target import Float32

QUERY, DOCUMENTS = "query", ("document", "passage")  # what prompts for the two sides of a search are called


@dataclass(frozen=True)
class ClassifierSettings:
    """labels: what the outputs of the head are called. pad_token_id: as config.json has it."""

    labels: tuple[str, ...] = ()
    pad_token_id: int | None = None

    def scored(self, ids: list[int]) -> list[int]:
        """Up to the token whose scores count: transformers takes the last one that isn't padding, and what is behind
        it changes nothing where attention is causal."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.pad_token_id:
            end -= 1
        return ids[:end]


def prompt_text(settings: EmbeddingSettings, name: str | None) -> str:
    """What goes before a text: the prompt of that name, None: the checkpoint's default. Raises RequestError."""
    name = settings.default_prompt if name is None else name
    if not name:
        return ""
    if name not in settings.prompts:
        known = ", ".join(map(repr, settings.prompts)) or "none"
        raise RequestError(f"there is no prompt {name!r}; the checkpoint names: {known}")
    return settings.prompts[name]


def prompts_of_search(settings: EmbeddingSettings) -> tuple[str | None, str | None]:
    """The names of the prompts for a query and for a document; None where the default goes before both."""
    document = next((name for name in DOCUMENTS if name in settings.prompts), None)
    return QUERY if QUERY in settings.prompts else None, document


def embedding_messages(before: str, text: str) -> list[dict[str, Any]]:
    user = {"role": "user", "content": text}
    return [{"role": "system", "content": before}, user] if before else [user]


def finish_embeddings(rows: Float32, normalize: bool, dimensions: int | None) -> Float32:
    """rows: [n, hidden_size] -> [n, dimensions]. Raises RequestError for dimensions that there aren't."""
    if dimensions is not None:
        if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= rows.shape[1]:
            raise RequestError(f"dimensions is {dimensions!r}; it must be from 1 to {rows.shape[1]}")
        rows = rows[:, :dimensions]
    if not normalize:
        return rows
    norms: Float32 = np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)
    norms[norms == 0] = 1
    return rows / norms


def activated(scores: Float32, activation: bool = True) -> Float32:
    """[n, num_labels] of a classification head as probabilities: softmax, or sigmoid of a single label."""
    if not activation:
        return scores
    if scores.shape[1] == 1:
        probabilities: Float32 = (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return probabilities
    shifted: Float32 = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Float32 = shifted / shifted.sum(axis=1, keepdims=True)
    return shares
