"""A teacher's distribution as its k most likely tokens and one bucket for all others.

Legend: N tokens, V vocabulary, k kept tokens.

The divergence between two bucketed distributions is at most that between the whole ones (data-processing inequality)
and equals it where k = V. Without the bucket, a renormalised top k would tell the student nothing of how sure the
teacher is, and would leave the mass that the student puts elsewhere unpunished.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The most likely tokens of N distributions.

    Attributes:
        indices: (N, k) int64, token ids.
        logps: (N, k), their log-probabilities in nats.
        tail: (N,), log of the probability of all other tokens; -inf where k = V.
        temperature: at which the distributions were taken.
    """

    indices: Tensor
    logps: Tensor
    tail: Tensor
    temperature: float = 1.0

    def __getitem__(self, rows: slice) -> TopK:
        return TopK(
            indices=self.indices[rows], logps=self.logps[rows], tail=self.tail[rows], temperature=self.temperature
        )

    def buckets(self) -> Tensor:
        """Return the log-probabilities of the buckets (N, k + 1)."""
        return torch.cat([self.logps, self.tail.unsqueeze(-1)], -1)


def top_k_of(logits: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """Keep the k most likely tokens of softmax(logits / temperature); logits (N, V), maths in float32 at least.

    Raises:
        ValueError: k outside 1..V.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: found {k}, expected 1 to {logits.shape[-1]}, the size of the vocabulary")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = torch.log_softmax(logits.to(dtype) / temperature, -1)
    best = logps.topk(k, -1)
    tail = logps.scatter(-1, best.indices, -torch.inf).logsumexp(-1)
    return TopK(indices=best.indices, logps=best.values, tail=tail, temperature=temperature)


def bucket_log_probs(logits: Tensor, indices: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the student's log-probabilities of the teacher's buckets, with gradient.

    Args:
        logits: (N, V).
        indices: (N, k), the kept tokens.
        temperature: divides the logits.

    Returns:
        (N, k + 1), the last for all other tokens together; (N, V) where k = V leaves none.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = torch.log_softmax(logits.to(dtype) / temperature, -1)
    kept = logps.gather(-1, indices)
    if indices.shape[-1] == logits.shape[-1]:  # the gradient of a logsumexp over nothing would be NaN
        return kept
    return torch.cat([kept, logps.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)], -1)
