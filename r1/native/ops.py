"""The loops of train.cpp as functions on tensors: two blocks of a decoder layer, a norm, and products of matrices.

Everything is float32 on the CPU. Each block keeps what its backward pass cannot cheaply compute again, and no more.
Legend: N tokens of all sequences one after another, C hidden size, H query heads, K key-value heads, D head size,
I feed-forward size.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1.native.library import load_library


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32) for name in ("heads", "kv_heads", "head_dim", "num_segments", "num_threads", "longest")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which tokens see which, and where they stand.

    Attributes:
        positions: (N,) int32, of a token in its sequence.
        segments: (num_segments, 4) int32: start, length, start of the prefix, its length. The tokens of a segment
            attend to the whole prefix and causally to themselves; prefixes come before the segments that share them.
        cos, sin: (L, D / 2) float32, of the rotary embedding.
        num_heads, num_kv_heads, head_dim: H, K, D.
        eps: of the norms.
    """

    positions: Tensor
    segments: Tensor
    cos: Tensor
    sin: Tensor
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float

    def shape(self) -> _Shape:
        longest = int((self.segments[:, 1] + self.segments[:, 3]).max())
        sizes = (self.num_heads, self.num_kv_heads, self.head_dim, len(self.segments))
        return _Shape(*sizes, torch.get_num_threads(), longest)


def matmul(left: Tensor, right: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
    """Return left (m, k) @ right (k, n), where given in or added to `out`; float32 of any strides, without gradient."""
    if right.numel() and 1 not in right.stride():
        right = right.contiguous()
    if out is None:
        out = torch.empty(left.shape[0], right.shape[1])
    load_library().matmul(
        _at(left), ctypes.c_int64(left.stride(0)), ctypes.c_int64(left.stride(1)),
        _at(right), ctypes.c_int64(right.stride(0)), ctypes.c_int64(right.stride(1)),
        _at(out), ctypes.c_int64(out.stride(0)), left.shape[0], right.shape[1], left.shape[1], int(add),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps), (N, C)."""
    return _Norm.apply(x, weight, eps)


def attention_block(
    x: Tensor,
    norm: Tensor,
    projections: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    head_norms: tuple[Tensor | None, ...],
    layout: Layout,
) -> Tensor:
    """Return x + o(attention(q, k, v of norm(x))), (N, C).

    Args:
        x: (N, C).
        norm: (C,) weight.
        projections: weights of q (H D, C), k, v (K D, C) and o (C, H D).
        biases: theirs, or None.
        head_norms: weights (D,) of the norms of query and key heads, or None.
        layout: of the tokens.
    """
    return _Attention.apply(layout, x, norm, *projections, *biases, *head_norms)


def feed_forward_block(x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
    """Return x + down(silu(gate(y)) * up(y)) with y = norm(x), (N, C); gate and up are (I, C), down is (C, I)."""
    return _FeedForward.apply(eps, x, norm, gate, up, down)


def logps_of_logits(logits: Tensor, targets: Tensor, scale: float, *, with_entropy: bool) -> tuple[Tensor, ...]:
    """Return log softmax(scale * logits) at the targets, the log of its denominator, and the entropy (or empty).

    Args:
        logits: (n, V), contiguous.
        targets: (n,) int64. Of one outside of [0, V) nothing is said.
        scale: above 0.
        with_entropy: whether to compute the entropy.
    """
    n, vocab = logits.shape
    logps, logsumexps, entropy = torch.empty(n), torch.empty(n), torch.empty(n if with_entropy else 0)
    load_library().logps_forward(
        _at(logits), _at(targets.contiguous()), ctypes.c_float(scale), _at(logps), _at(logsumexps),
        _at(entropy) if with_entropy else None, n, vocab, torch.get_num_threads(),
    )  # fmt: skip
    return logps, logsumexps, entropy


def logits_gradient(logits: Tensor, targets: Tensor, scale: float, logsumexps: Tensor, weights: Tensor) -> Tensor:
    """Return d(sum of weights * logps) / d(logits), (n, V), overwriting the logits; arguments as above."""
    load_library().logps_backward(
        _at(logits), _at(targets.contiguous()), ctypes.c_float(scale), _at(logsumexps), _at(weights.contiguous()),
        *logits.shape, torch.get_num_threads(),
    )  # fmt: skip
    return logits


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    load_library().norm_forward(_at(x), _at(weight), _at(y), *x.shape, ctypes.c_float(eps))
    return y


def _add_norm_gradient(dx: Tensor, dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add the gradient of norm(x) to dx in place, and return that of its weight."""
    dweight = torch.zeros_like(weight)
    load_library().norm_backward(_at(dy), _at(x), _at(weight), _at(dx), _at(dweight), *x.shape, ctypes.c_float(eps))
    return dweight


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _normed(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = torch.zeros_like(x)
        return dx, _add_norm_gradient(dx, dy.contiguous(), x, weight, ctx.eps), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, x: Tensor, norm: Tensor, *weights: Tensor | None) -> Tensor:
        (q, k, v, o), (*biases, o_bias), head_norms = weights[:4], weights[4:8], weights[8:]
        library, shape = load_library(), layout.shape()
        raw = _joined_products(_normed(x, norm, layout.eps), (q, k, v), biases)
        heads = torch.empty_like(raw) if head_norms[0] is not None else raw
        _heads(library.heads_forward, layout, shape, (raw, heads), head_norms)
        mixed, logsumexps = torch.empty(len(x), o.shape[1]), torch.empty(len(x), layout.num_heads)
        library.attention_forward(_at(heads), _at(mixed), _at(logsumexps), _at(layout.segments), ctypes.byref(shape))
        y = matmul(mixed, o.t(), out=x.clone() if o_bias is None else x + o_bias, add=True)
        ctx.layout = layout
        ctx.save_for_backward(x, norm, raw if heads is not raw else None, heads, mixed, logsumexps, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, raw, heads, mixed, logsumexps, *weights = ctx.saved_tensors
        (q, k, v, o), biases, head_norms = weights[:4], weights[4:8], weights[8:]
        layout, library, dy = ctx.layout, load_library(), dy.contiguous()
        shape = layout.shape()
        dmixed, do = matmul(dy, o), matmul(dy.t(), mixed)
        d = torch.zeros_like(heads)
        library.attention_backward(
            _at(dmixed), _at(heads), _at(mixed), _at(logsumexps), _at(d), _at(layout.segments), ctypes.byref(shape)
        )
        dhead_norms = [None if w is None else torch.zeros_like(w) for w in head_norms]
        _heads(library.heads_backward, layout, shape, (d, raw), head_norms, dhead_norms)
        normed = _normed(x, norm, layout.eps)
        parts = d.split([len(q), len(k), len(v)], dim=1)
        dweights = [matmul(part.t(), normed) for part in parts]
        dbiases = [None if b is None else p.sum(0) for b, p in zip(biases, (*parts, dy), strict=True)]
        dnormed = matmul(parts[0], q)
        for part, weight in zip(parts[1:], (k, v), strict=True):
            matmul(part, weight, out=dnormed, add=True)
        dx = dy.clone()
        dnorm = _add_norm_gradient(dx, dnormed, x, norm, layout.eps)
        return None, dx, dnorm, *dweights, do, *dbiases, *dhead_norms


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate_up = _joined_products(_normed(x, norm, eps), (gate, up), (None, None))
        y = matmul(_gated(gate_up), down.t(), out=x.clone(), add=True)
        ctx.eps = eps
        ctx.save_for_backward(x, norm, gate, up, down, gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, gate, up, down, gate_up = ctx.saved_tensors
        dy = dy.contiguous()
        ddown, dact = matmul(dy.t(), _gated(gate_up)), matmul(dy, down)
        d = torch.empty_like(gate_up)
        load_library().gated_backward(_at(dact), _at(gate_up), _at(d), len(x), gate.shape[0])
        dgate, dup = d.chunk(2, dim=1)
        normed = _normed(x, norm, ctx.eps)
        dnormed = matmul(dup, up, out=matmul(dgate, gate), add=True)
        dx = dy.clone()
        dnorm = _add_norm_gradient(dx, dnormed, x, norm, ctx.eps)
        return None, dx, dnorm, matmul(dgate.t(), normed), matmul(dup.t(), normed), ddown


def _joined_products(x: Tensor, weights: tuple[Tensor, ...], biases: Any) -> Tensor:
    """Return x @ weight.T + bias of several weights side by side."""
    joined = torch.empty(len(x), sum(map(len, weights)))
    for part, weight, bias in zip(joined.split([*map(len, weights)], dim=1), weights, biases, strict=True):
        if bias is not None:
            part.copy_(bias.expand_as(part))
        matmul(x, weight.t(), out=part, add=bias is not None)
    return joined


def _gated(gate_up: Tensor) -> Tensor:
    act = torch.empty(len(gate_up), gate_up.shape[1] // 2)
    load_library().gated_forward(_at(gate_up), _at(act), *act.shape)
    return act


def _heads(function: Any, layout: Layout, shape: _Shape, tensors: Any, norms: Any, dnorms: Any = ()) -> None:
    first, second = tensors
    function(
        _at(first), _at(second), _at(layout.positions), _at(layout.cos), _at(layout.sin), *map(_at, norms),
        *map(_at, dnorms), len(first), ctypes.byref(shape), ctypes.c_float(layout.eps),
    )  # fmt: skip
