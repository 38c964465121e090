"""Log-probabilities of tokens straight from hidden states, without ever holding (N, V) logits.

Legend: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1.native.logps import logps_backward, logps_forward

# Logits elements per chunk: 64 MiB of float32 on a CPU; accelerators need larger matrix products to stay busy.
CPU_CHUNK_ELEMENTS = 2**24
ACCELERATOR_CHUNK_ELEMENTS = 2**26


def default_chunk_size(vocab_size: int, device: torch.device) -> int:
    """Return the tokens per chunk whose logits fill the memory target of the device."""
    target = CPU_CHUNK_ELEMENTS if device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    return max(1, target // vocab_size)


def logps_from_logits(
    logits: Tensor, targets: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return log softmax(logits / temperature) at the targets, and the entropy of that distribution.

    Args:
        logits: (N, V), any float dtype; the maths runs in float32 at least.
        targets: (N,) int64.
        temperature: above 0.
        with_entropy: also return the entropy.

    Returns:
        logps (N,) in nats; entropy (N,) in nats without gradient, or None.
    """
    logits = _at_least_float32(logits) / _checked_temperature(temperature)
    logsumexp = logits.logsumexp(-1)
    logps = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logsumexp
    entropy = None
    if with_entropy:
        with torch.no_grad():
            entropy = _entropy(logits, logsumexp)
    return logps, entropy


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
    with_entropy: bool = False,
    native: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probability of each target without ever holding more than chunk_size x V logits.

        z = logit_scale * (hidden @ weight.T + bias);  z = softcap * tanh(z / softcap) if softcap
        logps = log softmax(z / temperature)[targets]

    The backward pass recomputes the logits chunk by chunk; gradients for hidden, weight and bias are exact.
    Matrix products run in the dtype of `weight` (or of autocast), everything else in float32 at least.

    Args:
        hidden: (N, H).
        weight: (V, H), the output embedding.
        targets: (N,) int64.
        bias: (V,) or None.
        temperature: the sampling temperature, above 0.
        softcap: bound of the logits (Gemma 2, arXiv 2408.00118 section 2), or None.
        logit_scale: factor on the logits (Cohere, Granite).
        chunk_size: tokens per chunk; by default what fits the memory target of the device.
        with_entropy: also return the entropy of each distribution.
        native: use the compiled loops of `r1.native` where they apply: all in float32 on the CPU, no softcap.

    Returns:
        logps (N,) in nats, float32 (float64 where an input is); entropy (N,) in nats without gradient, or None.

    Raises:
        ValueError: temperature or chunk_size not above 0, shapes that do not fit.
    """
    _checked_temperature(temperature)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden (N, H), weight (V, H), targets (N,); found {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type)
    matmul_dtype = torch.get_autocast_dtype(device_type) if autocast else weight.dtype
    tensors = [t for t in (hidden, weight, bias) if t is not None]
    native = native and device_type == "cpu" and softcap is None and matmul_dtype == torch.float32
    native = native and all(t.dtype == torch.float32 for t in tensors)
    if chunk_size is None and not native:
        chunk_size = default_chunk_size(weight.shape[0], weight.device)
    shape = (temperature, softcap, logit_scale)
    with torch.autocast(device_type, enabled=False):
        logps, entropy = _TokenLogps.apply(
            hidden, weight, bias, targets, shape, chunk_size, with_entropy, matmul_dtype, native
        )
    return logps, entropy if with_entropy else None


class _TokenLogps(torch.autograd.Function):
    """Chunked projection to the vocabulary and log-softmax at the targets, in both directions."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: tuple[float, float | None, float],
        chunk_size: int | None,
        with_entropy: bool,
        matmul_dtype: torch.dtype,
        native: bool,
    ) -> tuple[Tensor, Tensor]:
        if native:
            options = {"chunk_size": chunk_size, "with_entropy": with_entropy}
            found = logps_forward(hidden, weight, bias, targets, shape[2] / shape[0], **options)
        else:
            found = _chunked_logps(hidden, weight, bias, targets, shape, chunk_size, with_entropy, matmul_dtype)
        logps, logsumexps, entropy = found
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexps)
        ctx.constants = (shape, chunk_size, matmul_dtype, native)
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        # backward may be called under autocast, which would undo the dtypes chosen in forward.
        with torch.autocast(grad_logps.device.type, enabled=False):
            return *_chunked_gradients(ctx, grad_logps), None, None, None, None, None, None


def _chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shape: tuple[float, float | None, float],
    chunk_size: int,
    with_entropy: bool,
    matmul_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities, the logs of the denominators, and entropies (or empty)."""
    dtype = torch.float64 if torch.float64 in (hidden.dtype, weight.dtype) else torch.float32
    logps = torch.empty(targets.shape, dtype=dtype, device=hidden.device)
    logsumexps = torch.empty_like(logps)
    entropy = torch.empty_like(logps) if with_entropy else logps.new_empty(0)
    projection = weight.to(matmul_dtype)
    for rows in _chunks(len(targets), chunk_size):
        logits, _ = _chunk_logits(hidden[rows], projection, bias, shape, dtype)
        logsumexps[rows] = logits.logsumexp(-1)
        logps[rows] = logits.gather(-1, targets[rows, None]).squeeze(-1) - logsumexps[rows]
        if with_entropy:
            entropy[rows] = _entropy(logits, logsumexps[rows])
        del logits  # or they would still be there while the next chunk's are computed
    return logps, logsumexps, entropy


def _chunked_gradients(ctx: Any, grad_logps: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients for hidden, weight and bias, None where not needed."""
    hidden, weight, bias, targets, logsumexps = ctx.saved_tensors
    shape, chunk_size, matmul_dtype, native = ctx.constants
    need_hidden, need_weight, need_bias = needed = ctx.needs_input_grad[:3]
    if native:
        arguments = (hidden, weight, bias, targets, shape[2] / shape[0], logsumexps, grad_logps)
        return logps_backward(*arguments, chunk_size=chunk_size, needed=needed)
    dtype = logsumexps.dtype
    projection = weight.to(matmul_dtype)
    grad_hidden = torch.zeros_like(hidden) if need_hidden else None
    # Many chunks add up in these: float32 at least, or a bfloat16 sum would stop growing.
    grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if need_weight else None
    grad_bias = torch.zeros(weight.shape[:1], dtype=dtype, device=weight.device) if need_bias else None
    for rows in _chunks(len(targets), chunk_size):
        logits, capped = _chunk_logits(hidden[rows], projection, bias, shape, dtype)
        grad = _chunk_logits_grad(logits, capped, logsumexps[rows], targets[rows], grad_logps[rows], shape)
        if grad_bias is not None:
            grad_bias += grad.sum(0)
        grad = grad.to(matmul_dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = (grad @ projection).to(hidden.dtype)
        if grad_weight is not None:
            _accumulate_product(grad_weight, grad.T, hidden[rows].to(matmul_dtype))
        del logits, capped, grad
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(bias.dtype),
    )


def _chunks(num_rows: int, chunk_size: int) -> list[slice]:
    return [slice(start, min(start + chunk_size, num_rows)) for start in range(0, num_rows, chunk_size)]


def _chunk_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[float, float | None, float], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return the tempered logits (n, V) and, under a softcap, tanh(z / softcap) for the backward pass."""
    temperature, softcap, logit_scale = shape
    logits = F.linear(hidden.to(weight.dtype), weight).to(dtype)
    if bias is not None:
        logits += bias.to(dtype)
    if softcap is None:
        return logits.mul_(logit_scale / temperature), None
    capped = logits.mul_(logit_scale / softcap).tanh_()
    return capped * (softcap / temperature), capped


def _chunk_logits_grad(
    logits: Tensor,
    capped: Tensor | None,
    logsumexps: Tensor,
    targets: Tensor,
    grad_logps: Tensor,
    shape: tuple[float, float | None, float],
) -> Tensor:
    """Return d(loss) / d(hidden @ weight.T + bias), (n, V), overwriting the logits.

    d logp / d z_v = (1[v = target] - softmax(z)_v) * logit_scale / temperature, times 1 - tanh^2 under a softcap.
    """
    temperature, _, logit_scale = shape
    grad_logps = grad_logps.to(logits.dtype).unsqueeze(-1)
    grad = logits.sub_(logsumexps.unsqueeze(-1)).exp_().mul_(-grad_logps)
    grad.scatter_add_(-1, targets.unsqueeze(-1), grad_logps)
    grad.mul_(logit_scale / temperature)
    return grad if capped is None else grad.mul_(capped.square_().neg_().add_(1.0))


def _accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _entropy(logits: Tensor, logsumexp: Tensor) -> Tensor:
    """Return the entropy in nats, 0 log 0 counted as 0."""
    return torch.special.entr((logits - logsumexp.unsqueeze(-1)).exp_()).sum(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _checked_temperature(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(
            f"temperature must be above 0, found {temperature}: greedy decoding has no log-probabilities to train on"
        )
    return temperature
