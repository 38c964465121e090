"""From per-token losses to one number, the same however a step is split over micro-batches and ranks.

Legend: B rows of one whole optimizer step (all micro-batches, all ranks), T completion tokens, |o_i| tokens of row i.

Every aggregation in use gives all tokens of a row one weight, and that weight depends on nothing but the lengths of
the rows. So the weights are computed once for the whole step, and any part of the rows then adds its own share: the
sum over the parts is exactly the loss of the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1.registry import did_you_mean

AGGREGATIONS = ("sequence_mean", "token_mean", "group_token_mean", "constant", "sequence_sum")


def row_weights(
    lengths: Tensor,
    mode: str = "sequence_mean",
    *,
    group_ids: Tensor | None = None,
    max_length: int | None = None,
    drop_empty: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight that one token of each row has in the loss of a whole optimizer step.

        sequence_mean      1 / (|o_i| B)                     GRPO, DeepSeekMath Eq. 3 (arXiv 2402.03300); GSPO
        token_mean         1 / sum_j |o_j|                   DAPO and CISPO as trainers code them; BNPO when the rows of
                                                             one micro-batch are given alone (depends on the split)
        group_token_mean   1 / (groups * sum_group |o_j|)    DAPO as printed, Eq. 8 (arXiv 2503.14476)
        constant           1 / (max_length B)                Dr. GRPO (arXiv 2503.20783)
        sequence_sum       1 / B                             Dr. GRPO as printed; LUSPO

    Args:
        lengths: (B,) int, completion tokens of every row of the step (`mask.sum(1)`).
        mode: one of AGGREGATIONS.
        group_ids: (B,) int, equal for rows of one prompt; for group_token_mean alone.
        max_length: the constant of Dr. GRPO, normally the longest completion allowed; for constant alone.
        drop_empty: rows without tokens (fully masked) count in B, and groups of nothing else in `groups`, unless true.
            TRL counts them, verl does not.
        dtype: dtype of the weights, computed in float64.

    Returns:
        (B,). Rows without tokens get 0. To work on a step with other ranks, gather `lengths` first.

    Raises:
        ValueError: an unknown mode, or one that lacks its group_ids or max_length.
    """
    if mode not in AGGREGATIONS:
        raise ValueError(
            f"mode: found {mode!r}, expected one of {', '.join(AGGREGATIONS)}.{did_you_mean(mode, AGGREGATIONS)}"
        )
    filled = lengths > 0
    num_rows = filled.sum() if drop_empty else torch.full((), lengths.numel(), device=lengths.device)
    if mode == "group_token_mean":
        denominator = _group_denominator(lengths, group_ids, drop_empty=drop_empty)
    elif mode == "constant":
        if max_length is None or max_length <= 0:
            raise ValueError(
                f"max_length: found {max_length}, expected a positive number: mode 'constant' divides by it"
            )
        denominator = (num_rows * max_length).expand_as(lengths)
    elif mode == "sequence_mean":
        denominator = lengths * num_rows
    elif mode == "token_mean":
        denominator = lengths.sum().expand_as(lengths)
    else:
        denominator = num_rows.expand_as(lengths)
    return torch.where(filled, 1 / denominator.clamp(min=1).double(), 0.0).to(dtype)


def aggregate(per_token: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sum the masked per-token losses of some rows with the weights that those rows have in the step.

        sum_i w_i sum_t m_it l_it

    Args:
        per_token: (B, T) of any part of the step's rows.
        mask: (B, T), true on completion tokens. What stands elsewhere, NaN included, changes neither the value nor
            the gradient with respect to `per_token`.
        weights: (B,), those rows of `row_weights`.

    Returns:
        Scalar: this part's share of the loss. Parts add up; a trainer that averages gradients over parts needs it
        multiplied by their number. Without any token it is 0 and still part of the graph.
    """
    row_sums = torch.where(mask.bool(), per_token, 0.0).sum(1)
    return (row_sums * weights.to(per_token)).sum()


def _group_denominator(lengths: Tensor, group_ids: Tensor | None, *, drop_empty: bool) -> Tensor:
    if group_ids is None:
        raise ValueError("group_ids: found None, expected the prompt of each row: mode 'group_token_mean' needs it")
    unique, index = group_ids.unique(return_inverse=True)
    tokens = lengths.new_zeros(unique.numel()).index_add_(0, index, lengths)
    num_groups = int((tokens > 0).sum()) if drop_empty else unique.numel()
    return tokens[index] * num_groups
