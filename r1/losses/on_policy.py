"""On-policy distillation: the student writes, the teacher's log-probabilities grade each token.

Legend: B rows, T completion tokens, q student, p teacher, r_t = log p_t - log q_t.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def reverse_kl_advantages(
    student_logps: Tensor, teacher_logps: Tensor, mask: Tensor, *, coef: float = 1.0, discount: float = 0.0
) -> Tensor:
    """Advantage of each sampled token under a reverse-KL reward.

        A_t = coef * sum_{t' >= t} discount^(t'-t) (log p_t' - log q_t')

    On-policy distillation (Lu et al., Thinking Machines, 2025), where discount is 0. Any surrogate of
    `r1.losses.policy` takes the result as advantages (B, T).

    Args:
        student_logps: (B, T) of the sampled tokens, when they were drawn.
        teacher_logps: (B, T) of the same tokens.
        mask: (B, T), true on completion tokens.
        coef: scale.
        discount: 0 grades a token by itself, 1 by all that follows.

    Returns:
        (B, T), no gradient, 0 where the mask is false.

    Raises:
        ValueError: discount outside [0, 1].
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: found {discount}, expected a number in [0, 1]")
    mask = mask.bool()
    rewards = torch.where(mask, teacher_logps - student_logps, 0.0)
    return coef * torch.where(mask, _discounted_sum(rewards, discount), 0.0)


def minillm_long(
    logps: Tensor, teacher_logps: Tensor, mask: Tensor, *, length_norm: bool = True, weights: Tensor | None = None
) -> Tensor:
    """Long term of the MiniLLM gradient: each token is credited with what it leads to.

        l_t = -sg[w_t R_{t+1}] log q_t,   R_{t+1} = sum_{t' > t} (log p_t' - log q_t')

    MiniLLM, Eq. 3-6 (arXiv 2306.08543). Its single-step term is `r1.losses.distill.reverse_kl`; without length_norm
    the two sum to the gradient of KL(q || p) over whole completions.

    Args:
        logps: (B, T) of the student at the sampled tokens, with gradient.
        teacher_logps: (B, T) of the teacher at the same tokens.
        mask: (B, T), true on completion tokens.
        length_norm: divide R_{t+1} by its number of terms, so that early tokens of long completions do not dominate.
        weights: (B, T) importance weights q / p~ of teacher-mixed sampling; None samples from the student alone.

    Returns:
        (B, T), 0 where the mask is false.
    """
    mask = mask.bool()
    returns = minillm_returns(logps, teacher_logps, mask, length_norm=length_norm)
    if weights is not None:
        returns = returns * torch.where(mask, weights.detach(), 0.0)
    return -returns * torch.where(mask, logps, 0.0)


@torch.no_grad()
def minillm_returns(student_logps: Tensor, teacher_logps: Tensor, mask: Tensor, *, length_norm: bool = True) -> Tensor:
    """Return what each token leads to: R_{t+1} of `minillm_long`, the advantage (B, T) of its long term.

    Args:
        student_logps, teacher_logps: (B, T) of the sampled tokens.
        mask: (B, T), true on completion tokens.
        length_norm: divide by the number of terms.
    """
    mask = mask.bool()
    rewards = torch.where(mask, teacher_logps - student_logps, 0.0)
    returns = rewards.flip(1).cumsum(1).flip(1) - rewards
    if length_norm:
        num_terms = mask.flip(1).cumsum(1).flip(1) - mask.long()
        returns = returns / num_terms.clamp(min=1)
    return torch.where(mask, returns, 0.0)


def _discounted_sum(rewards: Tensor, discount: float) -> Tensor:
    if discount == 0:
        return rewards
    if discount == 1:
        return rewards.flip(1).cumsum(1).flip(1)
    sums = torch.zeros_like(rewards)
    following = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + discount * following
        sums[:, t] = following
    return sums
