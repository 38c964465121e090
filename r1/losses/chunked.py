"""A weighted sum of per-token losses over an output projection, a chunk of tokens at a time, gradients included.

Legend: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

PerToken = Callable[[Tensor, slice], Tensor]


def chunked_weighted_sum(
    per_token: PerToken,
    hidden: Tensor,
    head: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int = 512,
) -> tuple[Tensor, Tensor]:
    """Sum w_i l(logits_i), never holding the logits of more than `chunk_size` tokens.

    Since the weights are known beforehand, each chunk's gradients are computed along with its values: no logits are
    projected a second time in the backward pass, and none outlive their chunk.

    Args:
        per_token: maps the logits (n, V) of tokens `rows` (a slice of the N) to their losses (n,).
        hidden: (N, H).
        head: (V, H) weight of the output projection.
        weights: (N,) constants.
        bias: (V,) of the output projection, or None.
        chunk_size: tokens per chunk.

    Returns:
        The sum, with gradient in hidden, head and bias (through one backward pass); and the losses (N,), without.

    Raises:
        ValueError: chunk_size < 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size: found {chunk_size}, expected at least 1")
    return _ChunkedWeightedSum.apply(per_token, hidden, head, bias, weights, chunk_size)


class _ChunkedWeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        per_token: PerToken,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        weights: Tensor,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        grads = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if needed else None
            for x, needed in zip((hidden, head, bias), ctx.needs_input_grad[1:4], strict=True)
        ]
        has_grad = any(grad is not None for grad in grads)
        parts = []
        # At least one chunk, if empty, so that the dtype of the result is that of the losses.
        for start in range(0, max(len(hidden), 1), chunk_size):
            rows = slice(start, start + chunk_size)
            states = hidden[rows]
            logits = linear(states, head, bias).detach().requires_grad_(has_grad)
            with torch.set_grad_enabled(has_grad):
                values = per_token(logits, rows)
            parts.append(values.detach())
            if has_grad:
                (grad,) = torch.autograd.grad(values, logits, weights[rows].to(values))
                _add_up(grads, grad, states, head, rows)
        ctx.grads = grads
        ctx.dtypes = [x.dtype if x is not None else None for x in (hidden, head, bias)]
        values = torch.cat(parts)
        ctx.mark_non_differentiable(values)
        return (values * weights.to(values)).sum(), values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        if ctx.grads is None:
            raise RuntimeError("chunked_weighted_sum keeps its gradients for one backward pass, and that was made")
        grads, ctx.grads = ctx.grads, None
        # In place: the head's gradient is as large as the head.
        scaled = [g if g is None else g.mul_(grad_total).to(d) for g, d in zip(grads, ctx.dtypes, strict=True)]
        return None, *scaled, None, None


def _add_up(grads: list[Tensor | None], grad: Tensor, states: Tensor, head: Tensor, rows: slice) -> None:
    of_hidden, of_head, of_bias = grads
    if of_hidden is not None:
        of_hidden[rows] = grad @ head
    if of_head is not None:
        if of_head.dtype == grad.dtype == states.dtype:
            of_head.addmm_(grad.T, states)
        else:
            of_head += grad.T @ states
    if of_bias is not None:
        of_bias += grad.sum(0)
