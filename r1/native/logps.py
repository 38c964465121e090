"""Log-probabilities of tokens through the loops of train.cpp, a tile of tokens and vocabulary at a time.

Over a tile of tokens the projection is read once, however large the vocabulary, and logits stay in the cache.
Legend: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from r1.native.gradients import gradient_sum
from r1.native.ops import logits_gradient, logps_of_logits, matmul

TILE_TOKENS = 1024  # unless the caller says how many
TILE_VOCABULARY = 2048


def logps_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    *,
    chunk_size: int | None,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log softmax(scale * logits) at the targets, the log of its denominator, and the entropy (or empty).

    With w_t the share of tile t in the denominator, log p = log p_t + log w_t and H = sum_t w_t (H_t - log w_t).

    Args:
        hidden: (N, H) float32.
        weight: (V, H) float32.
        bias: (V,) float32, or None.
        targets: (N,) int64.
        scale: above 0.
        chunk_size: tokens of a tile, or None.
        with_entropy: whether to compute the entropy.
    """
    logps, logsumexps = torch.empty(len(targets)), torch.empty(len(targets))
    entropy = torch.empty(len(targets) if with_entropy else 0)
    for rows, tiles in _tiles(hidden, weight, bias, targets, chunk_size):
        parts = [logps_of_logits(logits, local, scale, with_entropy=with_entropy) for _, logits, local in tiles]
        tile_logps, tile_sums, tile_entropy = map(torch.stack, zip(*parts, strict=True))
        logsumexps[rows] = tile_sums.logsumexp(0)
        log_shares = tile_sums - logsumexps[rows]
        own = targets[rows].div(TILE_VOCABULARY, rounding_mode="floor")[None]
        logps[rows] = (tile_logps + log_shares).gather(0, own)[0]
        if with_entropy:
            entropy[rows] = (log_shares.exp() * (tile_entropy - log_shares)).sum(0)
    return logps, logsumexps, entropy


def logps_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    logsumexps: Tensor,
    grad_logps: Tensor,
    *,
    chunk_size: int | None,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of sum(grad_logps * logps) for hidden, weight and bias, None where none is due.

    None is due for what is not needed, nor for a weight whose gradient went to `.grad` (`r1.native.gradients`).
    Arguments as above, `logsumexps` (N,) as returned there.
    """
    need_hidden, need_weight, need_bias = needed
    grad_hidden = torch.empty_like(hidden) if need_hidden else None
    grad_bias = torch.zeros_like(bias) if need_bias else None
    grad_weight, in_place = gradient_sum(weight) if need_weight else (None, False)
    for rows, tiles in _tiles(hidden, weight, bias, targets, chunk_size):
        for columns, logits, local in tiles:
            grad = logits_gradient(logits, local, scale, logsumexps[rows], grad_logps[rows])
            if need_bias:
                grad_bias[columns] += grad.sum(0)
            if need_hidden:
                matmul(grad, weight[columns], out=grad_hidden[rows], add=columns.start > 0)
            if need_weight:
                matmul(grad.t(), hidden[rows], out=grad_weight[columns], add=True)
    return grad_hidden, None if in_place else grad_weight, grad_bias


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_size: int | None
) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor, Tensor]]]]:
    """Yield slices of the tokens, each with its tiles: slice of the vocabulary, logits, targets counted from its start.

    All logits lie in the same memory: a tile is valid until the next one.
    """
    vocab = len(weight)
    size = min(chunk_size or max(TILE_TOKENS, TILE_TOKENS * TILE_VOCABULARY // vocab), len(targets))
    space = torch.empty(size * min(vocab, TILE_VOCABULARY))

    def of(rows: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for columns in _slices(vocab, TILE_VOCABULARY):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            logits = matmul(hidden[rows], weight[columns].t(), out=space[: shape[0] * shape[1]].view(shape))
            if bias is not None:
                logits += bias[columns]
            yield columns, logits, targets[rows] - columns.start

    for rows in _slices(len(targets), size):
        yield rows, of(rows)


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + size, length))
