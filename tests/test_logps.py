import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from r1.logps import logps_from_logits, token_logps


def problem(num_tokens=7, hidden_size=5, vocab_size=11, dtype=torch.float64, bias=False):
    """Random hidden states, output embedding, targets (and bias), seeded."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    return draw(num_tokens, hidden_size), draw(vocab_size, hidden_size), targets, draw(vocab_size) if bias else None


def reference_logps(hidden, weight, targets, bias=None, temperature=1.0, softcap=None, logit_scale=1.0):
    logits = hidden @ weight.T
    logits = logit_scale * (logits if bias is None else logits + bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logps = torch.log_softmax(logits / temperature, -1)
    return logps.gather(-1, targets[:, None]).squeeze(-1), -(logps.exp() * logps).sum(-1)


def test_token_logps_of_uniform_logits_is_minus_log_v():
    logps, entropy = token_logps(torch.zeros(3, 4), torch.ones(8, 4), torch.tensor([0, 3, 7]), with_entropy=True)
    assert logps.tolist() == pytest.approx([-math.log(8)] * 3)
    assert entropy.tolist() == pytest.approx([math.log(8)] * 3)


OPTIONS = [
    {},
    {"temperature": 0.7},
    {"softcap": 3.0},
    {"logit_scale": 0.25, "temperature": 1.3},
    {"softcap": 2.0, "logit_scale": 1.5, "temperature": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, None])
def test_token_logps_and_gradients_equal_log_softmax(options, bias, chunk_size):
    hidden, weight, targets, offset = problem(bias=bias)
    inputs = [t for t in (hidden, weight, offset) if t is not None]
    upstream = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    ours, entropy = token_logps(
        hidden, weight, targets, bias=offset, chunk_size=chunk_size, with_entropy=True, **options
    )
    theirs, their_entropy = reference_logps(hidden, weight, targets, offset, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, their_entropy, rtol=1e-12, atol=1e-12)
    assert not entropy.requires_grad
    expected = torch.autograd.grad(theirs, inputs, upstream)
    for found, wanted in zip(torch.autograd.grad(ours, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_token_logps_passes_gradcheck(options):
    hidden, weight, targets, bias = problem(num_tokens=4, hidden_size=3, vocab_size=5, bias=True)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logps(h, w, targets, bias=b, chunk_size=3, **options)[0], (hidden, weight, bias)
    )


def test_only_the_gradients_asked_for_are_made():
    hidden, weight, targets, _ = problem()
    token_logps(hidden, weight.detach(), targets)[0].sum().backward()
    alone = hidden.grad
    hidden.grad = None
    token_logps(hidden, weight, targets)[0].sum().backward()
    assert torch.equal(hidden.grad, alone)
    with torch.no_grad():
        assert not token_logps(hidden, weight, targets)[0].requires_grad


def test_no_tokens_give_zero_gradients():
    hidden, weight, targets, _ = problem(num_tokens=0)
    logps, entropy = token_logps(hidden, weight, targets, with_entropy=True)
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_bfloat16_inputs_give_float32_logps_and_bfloat16_gradients():
    hidden, weight, targets, _ = problem(num_tokens=64, hidden_size=32, vocab_size=50, dtype=torch.bfloat16)
    logps, entropy = token_logps(hidden, weight, targets, chunk_size=16, with_entropy=True)
    assert logps.dtype == entropy.dtype == torch.float32
    # The matrix product is bfloat16; what follows it is float32 and exact.
    expected, _ = logps_from_logits((hidden @ weight.T).float(), targets)
    torch.testing.assert_close(logps, expected)
    logps.mean().backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.bfloat16


def test_weight_gradient_of_bfloat16_accumulates_in_float32():
    # With p = 1/2 each of 4096 tokens adds 1/8192 to the row of its target and -1/8192 to the other: 1/2 and -1/2.
    # A bfloat16 sum has 8 significant bits and would stop growing at 256/8192 = 1/32.
    num_tokens = 4096
    hidden = torch.ones(num_tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    logps, _ = token_logps(hidden, weight, torch.zeros(num_tokens, dtype=torch.int64), chunk_size=1)
    logps.mean().backward()
    assert weight.grad.flatten().tolist() == [0.5, -0.5]


def test_autocast_multiplies_in_its_own_dtype_and_returns_float32():
    hidden, weight, targets, _ = problem(num_tokens=16, hidden_size=32, vocab_size=50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, _ = token_logps(hidden, weight, targets)
        expected, _ = logps_from_logits(hidden @ weight.T, targets)
        assert logps.dtype == torch.float32
        torch.testing.assert_close(logps, expected)
        logps.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_logits_of_hundreds_do_not_overflow():
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[500.0], [0.0], [-500.0]])
    logps, entropy = token_logps(hidden, weight, torch.tensor([1]), with_entropy=True)
    assert logps.item() == -500.0
    assert entropy.item() == 0.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(temperature):
    hidden, weight, targets, _ = problem()
    with pytest.raises(ValueError, match="temperature must be above 0"):
        token_logps(hidden, weight, targets, temperature=temperature)


def test_shapes_and_chunk_size_are_checked():
    hidden, weight, targets, _ = problem()
    with pytest.raises(ValueError, match="expected hidden"):
        token_logps(hidden[:, :3], weight, targets)
    with pytest.raises(ValueError, match="expected hidden"):
        token_logps(hidden, weight, targets[:3])
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        token_logps(hidden, weight, targets, chunk_size=0)


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        outs = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(t.numel() for t in outs if isinstance(t, torch.Tensor))])
        return out


def test_no_tensor_is_larger_than_chunk_times_vocabulary():
    num_tokens, hidden_size, vocab_size, chunk_size = 256, 8, 1000, 16
    hidden, weight, targets, _ = problem(num_tokens, hidden_size, vocab_size, torch.float32)
    torch.autograd.set_multithreading_enabled(False)  # so that the mode sees the backward pass
    try:
        with LargestTensor() as ours:
            token_logps(hidden, weight, targets, chunk_size=chunk_size, with_entropy=True)[0].sum().backward()
        with LargestTensor() as plain:
            reference_logps(hidden, weight, targets)[0].sum().backward()
    finally:
        torch.autograd.set_multithreading_enabled(True)
    assert ours.numel == chunk_size * vocab_size
    assert plain.numel == num_tokens * vocab_size
