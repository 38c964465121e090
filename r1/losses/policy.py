"""Policy surrogates: what each token adds to the loss, minimised.

Legend: B rows (completions), T completion tokens, rho = exp(logps - old_logps), A advantage, sg = stop gradient.

All share one shape: logps (B, T) with gradient; old_logps (B, T) constants; advantages (B,) or (B, T) constants; mask
(B, T) bool, true on completion tokens; and return (B, T), exactly 0 where the mask is false whatever stands there,
NaN included. `r1.losses.aggregation` turns that into a scalar. Log-probabilities are in nats, at the sampling
temperature.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def clipped(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Clip the probability ratio of each token.

        l_it = -min( rho_it A_it, clip(rho_it, 1 - clip_low, 1 + clip_high) A_it )

    GRPO, DeepSeekMath Eq. 3 (arXiv 2402.03300), without its KL term. DAPO (arXiv 2503.14476) clips at 0.2 and 0.28;
    DeepSeek-R1 (arXiv 2501.12948) at 10 and 10, which clips next to nothing. For A < 0 the ratio has no upper bound;
    the two options give it one.

    Args:
        clip_low, clip_high: >= 0; may exceed 1.
        delta: two-sided clipping, min(rho, delta) in the first term (INTELLECT-2, arXiv 2505.07291).
        dual_clip: for A < 0 the loss is at most -dual_clip * A (arXiv 1912.09729).

    Raises:
        ValueError: a negative clip range, delta <= 1 + clip_high, or dual_clip <= 1.
    """
    _check_clip(clip_low, clip_high)
    if delta is not None and delta <= 1 + clip_high:
        raise ValueError(f"delta: found {delta}, expected more than 1 + clip_high = {1 + clip_high}")
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip: found {dual_clip}, expected more than 1")
    log_ratio, advantages = _prepare(logps, old_logps, advantages, mask)
    ratio = log_ratio.exp()
    outer = ratio if delta is None else ratio.clamp(max=delta)
    objective = torch.minimum(outer * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective


def sequence_clipped(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """Clip one ratio per completion, the geometric mean of its token ratios.

        s_i = exp( 1/|o_i| sum_t log rho_it ),   l_it = -min( s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i )

    GSPO, Eq. 5-7 (arXiv 2507.18071); its clip ranges are the defaults. The value is the same on every token of a row,
    so aggregate with `sequence_mean` (`sequence_sum` makes it LUSPO: GSPO times length).

    Raises:
        ValueError: a negative clip range.
    """
    log_ratio, advantages = _prepare(logps, old_logps, advantages, mask)
    return _clip_objective(_sequence_log_ratio(log_ratio, mask).exp(), advantages, clip_low, clip_high)


def sequence_token_clipped(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """Clip the ratio of the completion while each token keeps its own gradient, so that advantages may vary by token.

        s_it = sg[s_i] * pi_it / sg[pi_it],   l_it = -min( s_it A_it, clip(s_it, 1 - clip_low, 1 + clip_high) A_it )

    GSPO-token, Eq. 13-14 (arXiv 2507.18071). Equal to `sequence_clipped` in value and gradient under `sequence_mean`
    when A is constant over the row.

    Raises:
        ValueError: a negative clip range.
    """
    log_ratio, advantages = _prepare(logps, old_logps, advantages, mask)
    sequence = _sequence_log_ratio(log_ratio, mask).exp().detach()
    return _clip_objective(sequence * (log_ratio - log_ratio.detach()).exp(), advantages, clip_low, clip_high)


def sequence_raw_clipped(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 10.0,
    clip_high: float = 10.0,
) -> Tensor:
    """Clip the probability ratio of the whole completion, the product of its token ratios.

        l_it = -min( R_i A_i, clip(R_i, 1 - clip_low, 1 + clip_high) A_i ),   R_i = prod_t rho_it

    DeepSeek-R1 Eq. 1 read literally (arXiv 2501.12948). Kept for study: the product overflows on long completions.
    Aggregate with `sequence_mean`.

    Raises:
        ValueError: a negative clip range.
    """
    log_ratio, advantages = _prepare(logps, old_logps, advantages, mask)
    return _clip_objective(log_ratio.sum(1, keepdim=True).exp(), advantages, clip_low, clip_high)


def cispo(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, cap: float = 5.0) -> Tensor:
    """Weight the policy gradient by the capped ratio, so that no token loses its gradient.

        l_it = -sg[ min(rho_it, cap) ] A_it log pi_it

    MiniMax-M1 Eq. 4-5 (arXiv 2506.13585), where cap = 1 + eps_high; here `cap` is absolute. Its aggregation is
    `token_mean`.

    Raises:
        ValueError: cap <= 0.
    """
    if cap <= 0:
        raise ValueError(f"cap: found {cap}, expected more than 0")
    log_ratio, advantages = _prepare(logps, old_logps, advantages, mask)
    weight = log_ratio.detach().exp().clamp(max=cap)
    return -weight * advantages * torch.where(mask.bool(), logps, 0.0)


def sapo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
) -> Tensor:
    """Replace the hard clip by a sigmoid gate that decays smoothly away from rho = 1.

        l_it = -(4 / tau) sigmoid( tau (rho_it - 1) ) A_it,   tau = tau_pos where A > 0, else tau_neg

    SAPO (arXiv 2511.20347). At rho = 1 its gradient is that of the plain surrogate.

    Raises:
        ValueError: tau_pos or tau_neg <= 0.
    """
    for name, tau in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        if tau <= 0:
            raise ValueError(f"{name}: found {tau}, expected more than 0")
    log_ratio, advantages = _prepare(logps, old_logps, advantages, mask)
    # full_like: torch.where of two numbers would round them to the default dtype.
    tau = torch.where(advantages > 0, torch.full_like(advantages, tau_pos), tau_neg)
    return -(4 / tau) * torch.sigmoid(tau * (log_ratio.exp() - 1)) * advantages


def off_policy_sequence_mask(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, threshold: float
) -> Tensor:
    """Tell which rows to keep: a row that did badly and has drifted too far from the policy that wrote it is dropped.

        keep_i = not ( A_i < 0  and  1/|o_i| sum_t (old_logps - logps)_it > threshold )

    DeepSeek-V3.2 (arXiv 2512.02556). Multiply the surrogate (not the KL term) by it; dropped rows keep counting in
    the row weights. With advantages (B, T) the row's mean advantage decides.

    Returns:
        (B,) bool, no gradient.
    """
    log_ratio, advantages = _prepare(logps.detach(), old_logps, advantages, mask)
    drift = -_sequence_log_ratio(log_ratio, mask).squeeze(1)
    return ~((advantages.sum(1) < 0) & (drift > threshold))


SURROGATES: dict[str, Callable[..., Tensor]] = {
    "clipped": clipped,
    "sequence": sequence_clipped,
    "sequence_token": sequence_token_clipped,
    "sequence_raw": sequence_raw_clipped,
    "cispo": cispo,
    "sapo": sapo,
}


def _prepare(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    for name, tensor in (("old_logps", old_logps), ("mask", mask)):
        if tensor.shape != logps.shape:
            raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected that of logps, {tuple(logps.shape)}")
    if advantages.shape not in (logps.shape, logps.shape[:1]):
        raise ValueError(
            f"advantages: found shape {tuple(advantages.shape)}, expected {tuple(logps.shape[:1])} or "
            f"{tuple(logps.shape)}"
        )
    mask = mask.bool()
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    # Padding is silenced before any exp: a torch.where after it would still send 0 * inf = NaN into the gradient.
    log_ratio = torch.where(mask, logps - old_logps.detach(), 0.0)
    return log_ratio, torch.where(mask, advantages.detach(), 0.0)


def _sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    return log_ratio.sum(1, keepdim=True) / mask.bool().sum(1, keepdim=True).clamp(min=1)


def _clip_objective(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    _check_clip(clip_low, clip_high)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def _check_clip(clip_low: float, clip_high: float) -> None:
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if value < 0:
            raise ValueError(f"{name}: found {value}, expected 0 or more")
