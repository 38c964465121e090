"""Chunked distillation: the gradients of the whole, blind to padding, in memory that the batch does not change."""

import functools
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from r1.losses import DIVERGENCES, aggregate, chunked_per_token, forward_kl, row_weights


def bound(name):
    """A divergence of DIVERGENCES as a function of (student logits, teacher logits, mask, labels=...)."""
    options = {"hinton": {"alpha": 0.3, "temperature": 2.0}, "jsd": {"beta": 0.3, "temperature": 1.5}}
    return functools.partial(DIVERGENCES[name], **options.get(name, {}))


@pytest.mark.parametrize("name", list(DIVERGENCES))
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_give_the_gradients_of_the_whole_and_ignore_padding(name, chunk_size):
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 4]).unsqueeze(1)
    student = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64).masked_fill(~mask.unsqueeze(-1), math.nan)
    teacher = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64).masked_fill(~mask.unsqueeze(-1), math.nan)
    head = torch.randn(8, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher_head = torch.randn(8, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 8, (4, 5), generator=generator).masked_fill(~mask, -100)
    options = {"labels": labels} if name == "hinton" else {}
    student.requires_grad_()
    weights = row_weights(mask.sum(1), "sequence_mean", dtype=torch.float64)
    chunked = chunked_per_token(
        bound(name), student, head, teacher, teacher_head, mask, chunk_size=chunk_size, **options
    )
    # Where the padding is NaN the whole form would send NaN through its matmul into the head; it gets zeros instead.
    clean = student.detach().nan_to_num().requires_grad_()
    whole = bound(name)(clean @ head.T, teacher.nan_to_num() @ teacher_head.T, mask, **options)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-15)
    actual = torch.autograd.grad(aggregate(chunked, mask, weights), [student, head])
    expected = torch.autograd.grad(aggregate(whole, mask, weights), [clean, head])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-15)


def test_a_part_without_tokens_still_reaches_both_parameters():
    student, head = torch.randn(2, 3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = chunked_per_token(forward_kl, student, head, torch.randn(2, 3, 5), torch.randn(7, 5), mask)
    loss.sum().backward()
    assert loss.tolist() == [[0.0] * 3] * 2
    assert student.grad.abs().max() == 0
    assert head.grad.abs().max() == 0


class LogitsMemory(TorchDispatchMode):
    """Counts the live elements of tensors with one column per vocabulary entry, forward and backward."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.live, self.peak, self.largest = vocab, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == self.vocab:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.live:
                    self.live[storage.data_ptr()] = tensor.numel()
                    weakref.finalize(storage, self.live.pop, storage.data_ptr(), None)
                self.largest = max(self.largest, tensor.numel())
                self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_logits_memory_depends_on_the_chunk_and_not_on_the_batch(name):
    # 1009 is no other size here: a tensor with that last dimension holds logits or what derives from them.
    vocab, chunk = 1009, 8
    peaks = []
    for num_rows in (4, 16):
        student = torch.randn(num_rows, 16, 6, requires_grad=True)
        head, teacher_head = torch.randn(vocab, 6, requires_grad=True), torch.randn(vocab, 5)
        teacher, mask = torch.randn(num_rows, 16, 5), torch.ones(num_rows, 16)
        with LogitsMemory(vocab) as memory:
            per_token = chunked_per_token(bound(name), student, head, teacher, teacher_head, mask, chunk_size=chunk)
            per_token.sum().backward()
        # head.T is a view with 1009 columns and 6 rows: smaller than a chunk of logits.
        assert memory.largest == chunk * vocab
        peaks.append(memory.peak)
    assert peaks[1] <= peaks[0] * 1.25
    # Whole logits would be 256 rows of each model; a chunk needs a few arrays of 8 rows.
    assert peaks[1] < 256 * vocab
