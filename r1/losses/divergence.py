"""Divergences of `r1.losses.distill` with their gradients in closed form: same numbers, fewer passes over the logits.

Legend: N tokens, V vocabulary, P teacher, Q student (softmax of logits / temperature).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from r1.losses.distill import DIVERGENCES

_BETA = {"forward_kl": 0.0, "reverse_kl": 1.0}


def fused_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, name: str, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """Divergence between teacher and student at each token.

        forward_kl   dl/dz_v = (Q_v - P_v) / tau
        reverse_kl   dl/dz_v = Q_v (log Q_v - log P_v - l) / tau
        jsd          dl/dz_v = (1 - beta) Q_v (log Q_v - log M_v - KL(Q || M)) / tau,   M = beta P + (1 - beta) Q

    Args:
        student_logits, teacher_logits: (N, V); the teacher gets no gradient.
        name: "forward_kl", "reverse_kl" or "jsd", defined in `r1.losses.distill`.
        beta: of jsd alone.
        temperature: divides both logits.

    Returns:
        (N,), nats, float32 at least.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    beta = _BETA.get(name, beta)
    return _Divergence.apply(student_logits.to(dtype), teacher_logits.detach().to(dtype), beta, temperature)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
        scaled = (student, teacher) if temperature == 1 else (student / temperature, teacher / temperature)
        log_q, log_p = (torch.log_softmax(z, -1) for z in scaled)
        values, grad = _value_and_grad(log_q, log_p, beta)
        if not bool(values.isfinite().all()):  # tokens of probability 0 need the care that the plain form takes
            values, grad = _plain(student, teacher, beta, temperature)
        elif temperature != 1:
            grad /= temperature
        ctx.save_for_backward(grad)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * grad_values.unsqueeze(-1), None, None, None


def _value_and_grad(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the values (N,) and their gradients (N, V) at temperature 1; the arguments are overwritten."""
    if beta == 0:
        p = log_p.exp()
        values = torch.linalg.vecdot(p, log_p.sub_(log_q))
        return values, log_q.exp_().sub_(p)
    q = log_q.exp()
    if beta == 1:
        difference = log_q.sub_(log_p)
        values = torch.linalg.vecdot(q, difference)
        return values, difference.sub_(values.unsqueeze(-1)).mul_(q)
    p = log_p.exp()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    of_teacher = torch.linalg.vecdot(p, log_p.sub_(log_m))
    difference = log_q.sub_(log_m)
    of_student = torch.linalg.vecdot(q, difference)
    grad = difference.sub_(of_student.unsqueeze(-1)).mul_(q).mul_(1 - beta)
    return beta * of_teacher + (1 - beta) * of_student, grad


def _plain(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> tuple[Tensor, Tensor]:
    every = torch.ones(1, len(student), dtype=torch.bool, device=student.device)
    with torch.enable_grad():
        leaf = student.detach().requires_grad_()
        values = DIVERGENCES["jsd"](leaf[None], teacher[None], every, beta=beta, temperature=temperature).squeeze(0)
        (grad,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), grad
