"""Tensor building blocks: masked reductions, padding, and the way between rows and a flat list of completion tokens.

Token log-probabilities stand in `r1.logps` and can be imported from here too.

Legend: B rows, S tokens of prompt + completion, T completion tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r1.logps import logps_from_logits, token_logps

__all__ = [
    "completion_positions",
    "gather_completion_hidden",
    "logps_from_logits",
    "masked_mean",
    "masked_sum",
    "pad_rows",
    "scatter_to_rows",
    "token_logps",
]


def masked_sum(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Sum the values where the mask is true.

    `values * mask` would let a NaN or infinity of a padded slot through; selecting does not, in either direction.

    Args:
        values: any shape.
        mask: bool, broadcastable to `values`.
        dim: dimensions to reduce; None reduces all.
    """
    kept = torch.where(mask.bool(), values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(
    values: Tensor,
    mask: Tensor,
    dim: int | tuple[int, ...] | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Average the values where the mask is true: masked_sum / denominator.

    The denominator is explicit so that splitting a batch over micro-batches or ranks does not change the number.
    By default it is the count of true slots, and the mean of an empty selection is 0.

    Args:
        values: any shape.
        mask: bool, broadcastable to `values`.
        dim: dimensions to reduce; None reduces all.
        denominator: what to divide by instead of the count.
    """
    total = masked_sum(values, mask, dim)
    if denominator is None:
        selected = mask.bool().expand_as(values)
        denominator = (selected.sum() if dim is None else selected.sum(dim)).clamp(min=1)
    return total / denominator


def pad_rows(rows: Sequence[Tensor], value: float) -> Tensor:
    """Stack 1-D tensors of different lengths into (B, L), padded on the right to the longest.

    Args:
        rows: B tensors of one dtype and device, (length,) each.
        value: what fills the padding.

    Raises:
        ValueError: no rows, or a row that is not 1-D.
    """
    if not rows:
        raise ValueError("pad_rows needs at least one row")
    if any(row.ndim != 1 for row in rows):
        raise ValueError(f"pad_rows takes 1-D tensors, found shapes {[tuple(row.shape) for row in rows]}")
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def completion_positions(prompt_lengths: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of every completion token in (B, S) input_ids, in row-major order of the mask.

    Args:
        prompt_lengths: (B,) int64, at least 1.
        mask: (B, T) bool, true on completion tokens.

    Returns:
        rows (num_tokens,) and columns (num_tokens,), int64.
    """
    rows, offsets = mask.bool().nonzero(as_tuple=True)
    return rows, prompt_lengths[rows] + offsets


def gather_completion_hidden(hidden: Tensor, prompt_lengths: Tensor, mask: Tensor) -> Tensor:
    """Pick the hidden states that predict the completion tokens.

    Completion token t of a row stands at prompt_length + t, so the state at prompt_length + t - 1 predicts it.

    Args:
        hidden: (B, S, H).
        prompt_lengths: (B,) int64, at least 1.
        mask: (B, T) bool, true on completion tokens.

    Returns:
        (num_tokens, H), in row-major order of the mask.

    Raises:
        ValueError: a completion token without a state before it, or beyond the S tokens.
    """
    rows, columns = completion_positions(prompt_lengths, mask)
    # A negative index would silently read the last state of the row.
    if rows.numel() and (int(columns.min()) < 1 or int(columns.max()) >= hidden.shape[1]):
        raise ValueError(
            f"completion tokens stand at {int(columns.min())}..{int(columns.max())}, "
            f"expected 1..{hidden.shape[1] - 1}: prompt_lengths and mask do not fit input of length {hidden.shape[1]}"
        )
    return hidden[rows, columns - 1]


def scatter_to_rows(values: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """Put flat values back to their place: the inverse of `rows[mask]`.

    Args:
        values: (num_tokens,), in row-major order of the mask.
        mask: (B, T) bool with num_tokens true slots.
        fill: value of the other slots.

    Returns:
        (B, T), dtype of `values`, differentiable in `values`.

    Raises:
        ValueError: as many values as true slots were expected.
    """
    mask = mask.bool()
    if values.numel() != int(mask.sum()):
        raise ValueError(f"found {values.numel()} values for {int(mask.sum())} true slots of the mask")
    return torch.full(mask.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
