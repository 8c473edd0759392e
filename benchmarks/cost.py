"""What one step must do whoever computes it: multiplications and bytes, counted from config.json alone.

Independent of qwench's Program, so that it judges qwench and its peers alike. Knows nothing of machines or time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan import Work


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model's sizes, as config.json names them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    is_tied: bool

    @classmethod
    def from_folder(cls, folder: Path) -> Shape:
        """Raises FileNotFoundError or KeyError when `folder` has no such config.json."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return cls(
            config["vocab_size"], config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"],
            config["num_attention_heads"], config["num_key_value_heads"], bool(config.get("tie_word_embeddings")),
        )  # fmt: skip

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def layer_weights(self) -> int:
        """Values in the matrices of all layers."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_weights(self) -> int:
        """Values in all matrices, a tied embedding once."""
        return self.layer_weights + self.head_weights * (1 if self.is_tied else 2)

    @property
    def cached_values(self) -> int:
        """Keys and values of one position, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def read_bytes(self, weight_bytes: int) -> float:
        """Of weights of so many bytes, those that a step reads: all but the rows of an untied embedding."""
        return weight_bytes * (self.layer_weights + self.head_weights) / self.num_weights


@dataclass(frozen=True)
class Cost:
    """matrix_ops, attention_ops: multiplications and additions. read_bytes: of weights and cache, once a step."""

    matrix_ops: float
    attention_ops: float
    read_bytes: float


CACHE_BYTES_PER_VALUE = 2  # fp16 or bf16, what all contenders keep by default or could


def prefill_cost(shape: Shape, work: Work, weight_bytes: int, max_step_tokens: int) -> Cost:
    """Reading all users' prompts, a row of logits for each; weights are read once every `max_step_tokens` tokens."""
    tokens = work.num_users * work.num_prompt
    matrix = 2.0 * (tokens * shape.layer_weights + work.num_users * shape.head_weights)
    pairs = work.num_users * work.num_prompt * (work.num_prompt + 1) / 2
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    return Cost(matrix, attention, -(-tokens // max_step_tokens) * shape.read_bytes(weight_bytes))


def decode_cost(shape: Shape, work: Work, weight_bytes: int) -> Cost:
    """One step in the middle of the answers: a token for each user."""
    users, context = work.num_users, work.num_prompt + work.num_generate / 2
    matrix = 2.0 * users * (shape.layer_weights + shape.head_weights)
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * users * context
    cache = users * context * shape.cached_values * CACHE_BYTES_PER_VALUE
    return Cost(matrix, attention, shape.read_bytes(weight_bytes) + cache)
