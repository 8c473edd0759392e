"""Which tokens of a padded batch are real, and that their positions are ones the engine gives them.

A row is a sequence of its own: padding is never fed, and a token's position is the number of real tokens before it.
That equals transformers as long as a row's real tokens are contiguous, which is checked here. Called by `forward`
and by the native path; knows nothing of caches or blocks.
"""

from __future__ import annotations

import torch

from qwench.errors import RequestError


def check_inputs(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, vocab_size: int, hidden_size: int
) -> torch.Tensor:
    """The one of both that is given, on the CPU: [batch, length] ids, or [batch, length, hidden_size] fp32.

    Raises RequestError if it isn't that, or if it isn't one.
    """
    if (input_ids is None) == (inputs_embeds is None):
        both = "both are given" if input_ids is not None else "both are missing"
        raise RequestError(f"give either input_ids or inputs_embeds; {both}")
    if inputs_embeds is None:
        return check_input_ids(input_ids, vocab_size).to("cpu")
    return check_inputs_embeds(inputs_embeds, hidden_size)


def check_inputs_embeds(inputs_embeds: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """`inputs_embeds` [batch, length, hidden_size] of real numbers, as fp32 on the CPU, or RequestError."""
    shape = tuple(inputs_embeds.shape)
    if len(shape) != 3 or shape[2] != hidden_size or not inputs_embeds.is_floating_point():
        raise RequestError(
            f"inputs_embeds must be real numbers [batch, length, {hidden_size}], but are {inputs_embeds.dtype} {shape}"
        )
    if inputs_embeds.numel() == 0:
        raise RequestError(f"inputs_embeds are empty: shape {shape}; give at least one token a row")
    return inputs_embeds.detach().to("cpu", torch.float32).contiguous()


def check_input_ids(input_ids: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """`input_ids` [batch, length] of integers within the vocabulary, or RequestError."""
    if input_ids is None:
        raise RequestError("input_ids are missing")
    if input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise RequestError(f"input_ids must be integers [batch, length], but are {input_ids.dtype} {input_ids.shape}")
    if input_ids.numel() == 0:
        raise RequestError(f"input_ids are empty: shape {tuple(input_ids.shape)}; give at least one token a row")
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise RequestError(f"input_ids hold {low if low < 0 else high}; the vocabulary is 0 to {vocab_size - 1}")
    return input_ids


def real_tokens(
    shape: tuple[int, int], attention_mask: torch.Tensor | None, past: torch.Tensor, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Which of the new tokens are real: [batch, length] bool.

    shape: (batch, length) of the new tokens. past: [batch, cached] bool, which cached columns are real.
    attention_mask: [batch, cached + length], or None for no padding. position_ids: [batch or 1, length] or None.
    Raises RequestError for padding between real tokens, or positions that aren't consecutive.
    """
    batch, length = shape
    if attention_mask is None:
        mask = torch.cat([past, torch.ones(shape, dtype=torch.bool)], dim=1)
    else:
        mask = _checked_mask(attention_mask, shape, past)
    _check_contiguous(mask)
    real = mask[:, past.shape[1] :]
    if position_ids is not None:
        if position_ids.ndim != 2 or position_ids.shape[1] != length or position_ids.shape[0] not in (1, batch):
            raise RequestError(f"position_ids must be [{batch}, {length}], but are {tuple(position_ids.shape)}")
        _check_positions(position_ids.expand(batch, length), mask, real)
    return real


def _checked_mask(attention_mask: torch.Tensor, shape: tuple[int, int], past: torch.Tensor) -> torch.Tensor:
    expected = (shape[0], past.shape[1] + shape[1])
    if tuple(attention_mask.shape) != expected:
        raise RequestError(
            f"attention_mask is {tuple(attention_mask.shape)}, but must be {expected}: "
            f"{past.shape[1]} cached and {shape[1]} new tokens a row"
        )
    mask = attention_mask.to("cpu") != 0
    if not torch.equal(mask[:, : past.shape[1]], past):
        raise RequestError("attention_mask differs from the one under which past_key_values was filled")
    return mask


def _check_contiguous(mask: torch.Tensor) -> None:
    """At most one run of real tokens a row."""
    starts = mask[:, 1:] & ~mask[:, :-1]
    runs = starts.sum(dim=1) + mask[:, 0]
    if (runs > 1).any():
        row = int((runs > 1).nonzero()[0])
        raise RequestError(
            f"attention_mask has padding between the tokens of row {row}; qwench allows it only before or after them "
            "(pad on the left: tokenizer.padding_side = 'left')"
        )


def _check_positions(position_ids: torch.Tensor, mask: torch.Tensor, real: torch.Tensor) -> None:
    """Positions may count real tokens (as `generate` does) or columns (as a bare `forward` does): both are the same
    to a rotary embedding, which sees differences only."""
    past_columns = mask.shape[1] - real.shape[1]
    by_count = (mask.cumsum(dim=1) - 1)[:, past_columns:]
    by_column = torch.arange(past_columns, mask.shape[1]).expand_as(real)
    given = position_ids.to("cpu")
    fits = ((given == by_count) | ~real).all(dim=1) | ((given == by_column) | ~real).all(dim=1)
    if not fits.all():
        row = int((~fits).nonzero()[0])
        raise RequestError(
            f"position_ids of row {row} are not consecutive from the number of tokens before; leave position_ids out"
        )
