"""Losses on pairs of responses of which one is preferred.

Legend: B pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0) -> Tensor:
    """Return the negative log-likelihood of each preference: -log sigmoid(r_chosen - r_rejected - margin).

    Source: Bradley & Terry 1952; as a loss of reward models arXiv 2009.01325, section 3.4; the margin is that of
    arXiv 2307.09288, Eq. 2. Finite, with a finite gradient, for any finite difference.

    Args:
        chosen: (B,) score of the preferred response.
        rejected: (B,) score of the other.
        margin: (B,) or a number, by how much the scores ought to differ.

    Returns:
        (B,) nats.

    Raises:
        ValueError: shapes that differ.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"expected as many chosen as rejected scores, found {chosen.shape} and {rejected.shape}")
    return -F.logsigmoid(chosen - rejected - margin)


def agreement(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return (B,) float32: 1 where the scores order a pair as preferred, 0 where they do not, one half for a tie."""
    return (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
