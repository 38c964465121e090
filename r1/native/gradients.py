"""Gradients of large matrices, added to those of earlier micro-batches where they lie.

Autograd adds the gradient of a micro-batch to `.grad` when it is complete: with embeddings of 150,000 tokens that is a
second matrix of their size, nearly all zeros for the input embedding. Legend: N tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_IN_PLACE = ContextVar("in_place", default=False)


@contextmanager
def adding_in_place(allowed: bool = True) -> Iterator[None]:
    """Have `loss.backward()` of the fused loops write the gradients of embedding and head to `.grad` itself.

    They reach autograd as None then, so it must be a backward pass whose gradients nobody else waits for: not
    `torch.autograd.grad`, and no DDP, which sends them off as they come.

    Args:
        allowed: false changes nothing.
    """
    token = _IN_PLACE.set(allowed)
    try:
        yield
    finally:
        _IN_PLACE.reset(token)


def gradient_sum(weight: Tensor) -> tuple[Tensor, bool]:
    """Return the tensor to which a gradient of `weight` is to be added, and whether it is `weight.grad` itself.

    It is that within `adding_in_place`, for a parameter without hooks; else it is new, all zeros.
    """
    if not (_IN_PLACE.get() and weight.is_leaf) or _has_hooks(weight):
        return torch.zeros_like(weight), False
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return (weight.grad, True) if weight.grad.is_contiguous() else (torch.zeros_like(weight), False)


def embedding(ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
    """Return the rows of `weight` (V, H) at `ids` (N,), as `torch.nn.functional.embedding` does."""
    return _Embedding.apply(ids, weight, padding_idx)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding_idx = padding_idx
        return weight[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight = ctx.saved_tensors
        if ctx.padding_idx is not None:
            kept = ids != ctx.padding_idx
            ids, grad = ids[kept], grad[kept]
        total, in_place = gradient_sum(weight)
        total.index_add_(0, ids, grad)
        return None, None if in_place else total, None


def _has_hooks(weight: Tensor) -> bool:
    return bool(weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None))
