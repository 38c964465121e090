"""From logits to one token a row, by inverse transform of a number drawn beforehand."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(
    logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    The token is the first whose cumulative probability exceeds the row's uniform number, so a row's draw depends on
    its own logits and its own random stream alone, not on the batch around it.

    Args:
        logits: (N, V), any float dtype; worked on in float32.
        uniforms: (N,) in [0, 1).
        temperature: divides the logits; 0 takes the most likely token.
        top_p: nucleus mass; 1 keeps all.
        top_k: 0 keeps all.

    Returns:
        tokens (N,) int64, and their log-probabilities (N,) float32 in the full distribution at this temperature
        (temperature 1 when greedy). Truncation by top-p or top-k changes what is drawn, not what is reported.
    """
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, logits.log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)
    logps = (logits / temperature if temperature != 1 else logits).log_softmax(dim=-1)
    probabilities = logps.exp()
    if top_k > 0 or top_p < 1:
        probabilities = _truncate(probabilities, top_p, top_k)
    cumulative = probabilities.cumsum(dim=-1)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, thresholds, right=True).clamp_(max=logits.shape[1] - 1)
    # An accelerator adds up in an order of its own, so the sum may rise on a token of probability 0.
    drawn = probabilities.gather(1, tokens)
    tokens = torch.where(drawn > 0, tokens, probabilities.argmax(dim=-1, keepdim=True))
    return tokens.squeeze(1), logps.gather(1, tokens).squeeze(1)


def _truncate(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k > 0:
        keep[:, top_k:] = False
    if top_p < 1:
        # A token stays while the mass before it is below top_p, so the first one always stays.
        keep &= ordered.cumsum(dim=-1) - ordered < top_p
    return torch.zeros_like(probabilities).scatter_(1, order, ordered * keep)
