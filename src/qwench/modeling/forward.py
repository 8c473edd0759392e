"""One pass over the new tokens of a padded batch: which rows compute, what they keep, and where it goes.

Takes checked inputs, extends the cache, gives logits and hidden states as transformers shapes them. Knows nothing of
generating. Called by `QwenchForCausalLM.forward`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from qwench.modeling.cache import QwenchCache, Row
from qwench.modeling.steps import Feed, run_feeds


class ModelShape(NamedTuple):
    """What a pass must know of the model. num_outputs: of its head, for each row. is_causal: False: each row of a batch
    is computed whole, in one step."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    max_step_tokens: int
    num_outputs: int
    is_causal: bool


class PassOutput(NamedTuple):
    """logits: [batch, kept, num_outputs] fp32. hidden_states: the last `num_states`, each [batch, length, hidden_size]
    fp32, or None. Zeros at padding."""

    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None


def run_pass(
    shape: ModelShape,
    cache: QwenchCache,
    inputs: torch.Tensor,
    real: torch.Tensor,
    logits_to_keep: int | torch.Tensor,
    num_states: int,
    adapters: list[int],
) -> PassOutput:
    """Feeds the real tokens and commits them to the cache. num_states: how many of the num_layers + 1 hidden states are
    wanted, from the last.

    inputs: [batch, length] token ids, or [batch, length, hidden_size] embeddings, fp32. real: [batch, length] bool.
    adapters: number of each row's, -1 for none.
    """
    batch, length = int(inputs.shape[0]), int(inputs.shape[1])
    kept, order = _kept_columns(length, logits_to_keep)
    logits = torch.zeros(batch, len(kept), shape.num_outputs)
    hidden = torch.zeros(num_states, batch, length, shape.hidden_size) if num_states else None
    leaders = _leaders(cache.rows, inputs, real, adapters)
    tokens, is_real = inputs.numpy(), real.numpy()
    if tokens.ndim == 2:
        tokens = tokens.astype(np.int32)
    offsets = is_real.cumsum(axis=1) - 1
    feeds = []
    for i, row in enumerate(cache.rows):
        if leaders[i] == i and is_real[i].any():
            columns = is_real[i].nonzero()[0]
            cache.pages.reserve(row, len(columns))
            is_kept = is_real[i][kept]
            at = i * len(kept) + is_kept.nonzero()[0]
            wanted = offsets[i][kept[is_kept]]
            feeds.append(
                Feed(row.tables, row.length, tokens[i][columns], wanted, at, i * length + columns, adapters[i])
            )
    run_feeds(
        cache.pages.executor,
        feeds,
        shape.max_step_tokens,
        logits.view(batch * len(kept), shape.num_outputs).numpy(),
        None if hidden is None else hidden.view(len(hidden), -1, shape.hidden_size).numpy(),
        cache.pages.deadline.check,
        is_causal=shape.is_causal,
    )
    _commit(cache, real, leaders)
    if leaders != list(range(batch)):
        logits = logits[torch.tensor(leaders)]
        hidden = None if hidden is None else hidden[:, torch.tensor(leaders)]
    return PassOutput(
        logits if order is None else logits[:, order], None if hidden is None else tuple(hidden.unbind(0))
    )


def _kept_columns(length: int, logits_to_keep: int | torch.Tensor) -> tuple[Any, torch.Tensor | None]:
    """Increasing columns [num_kept] int64 whose logits are wanted, and the order to return them in, if another."""
    if isinstance(logits_to_keep, torch.Tensor):
        columns, order = np.unique(np.arange(length)[logits_to_keep.to("cpu").numpy()], return_inverse=True)
        return columns, torch.from_numpy(order.reshape(-1))
    return np.arange(length)[-logits_to_keep if logits_to_keep else None :], None


def _leaders(rows: list[Row], inputs: torch.Tensor, real: torch.Tensor, adapters: list[int]) -> list[int]:
    """For each row the first row with the same past, tokens, padding and adapter: it computes for both.

    Beams and return sequences start out as copies of one prompt, which is then computed once.
    """
    first: dict[tuple[Any, ...], int] = {}
    leaders = []
    for i, row in enumerate(rows):
        key = (tuple(row.held()), row.length, inputs[i].numpy().tobytes(), real[i].numpy().tobytes(), adapters[i])
        leaders.append(first.setdefault(key, i))
    return leaders


def _commit(cache: QwenchCache, real: torch.Tensor, leaders: list[int]) -> None:
    """Counts the tokens as cached; followers take over their leader's blocks."""
    counts = real.sum(dim=1).tolist()
    for i, row in enumerate(cache.rows):
        if leaders[i] == i:
            row.length += counts[i]
        else:
            fork = cache.pages.fork(cache.rows[leaders[i]])
            cache.pages.free(row)
            row.tables, row.first, row.length = fork.tables, fork.first, fork.length
    cache.columns = torch.cat([cache.columns, real], dim=1)
