"""Divergences with gradients in closed form, the chunked weighted sum over them, and the top k with its bucket."""

import functools
import itertools
import math

import pytest
import torch

from r1.losses import (
    DIVERGENCES,
    DistillObjective,
    TopK,
    bucket_log_probs,
    chunked_weighted_sum,
    forward_kl,
    fused_divergence,
    top_k_of,
)

OPTIONS = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.3}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0}),
]


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(name, student, teacher, **options):
    every = torch.ones(1, len(student), dtype=torch.bool)
    return DIVERGENCES[name](student[None], teacher[None], every, **options).squeeze(0)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_closed_form_equals_the_plain_divergence_and_its_gradient(name, options, temperature):
    student, teacher, weights = logits(0, 6, 11).requires_grad_(), logits(1, 6, 11), logits(2, 6)
    fused = fused_divergence(student, teacher, name=name, temperature=temperature, **options)
    expected = plain(name, student, teacher, temperature=temperature, **options)
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad((x * weights).sum(), student)[0] for x in (fused, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), [OPTIONS[0], OPTIONS[2]])
def test_tokens_that_the_teacher_rules_out_count_as_in_the_plain_form(name, options):
    student, teacher = logits(0, 4, 7).requires_grad_(), logits(1, 4, 7)
    teacher[1, 2:5] = -torch.inf
    fused, expected = fused_divergence(student, teacher, name=name, **options), plain(name, student, teacher, **options)
    assert fused.isfinite().all()
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (fused, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_half_precision_logits_are_read_in_float32():
    student, teacher = logits(0, 3, 9).bfloat16(), logits(1, 3, 9).bfloat16()
    fused = fused_divergence(student, teacher, name="forward_kl")
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, fused_divergence(student.float(), teacher.float(), name="forward_kl"))


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_a_chunked_sum_has_the_value_and_gradients_of_the_whole(chunk_size):
    hidden, head, bias = (logits(i, *shape).requires_grad_() for i, shape in enumerate([(10, 5), (13, 5), (13,)]))
    teacher, weights = logits(7, 10, 13), logits(8, 10)

    def per_token(student, rows):
        return fused_divergence(student, teacher[rows], name="jsd", beta=0.4)

    total, values = chunked_weighted_sum(per_token, hidden, head, weights, bias=bias, chunk_size=chunk_size)
    whole = plain("jsd", hidden @ head.T + bias, teacher, beta=0.4)
    torch.testing.assert_close(values, whole.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(total, (whole * weights).sum(), rtol=1e-12, atol=1e-14)
    assert not values.requires_grad
    found = torch.autograd.grad(3 * total, [hidden, head, bias])
    wanted = torch.autograd.grad(3 * (whole * weights).sum(), [hidden, head, bias])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_a_chunked_sum_needs_no_gradient_and_gives_it_once():
    hidden, head, weights = logits(0, 4, 3), logits(1, 6, 3), torch.ones(4)

    def per_token(student, rows):
        return student.square().sum(-1)

    total, _ = chunked_weighted_sum(per_token, hidden, head, weights)
    assert not total.requires_grad
    total, _ = chunked_weighted_sum(per_token, hidden.requires_grad_(), head, weights)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="for one backward pass"):
        total.backward()


def test_no_tokens_give_zero_that_still_reaches_both_parameters():
    hidden, head = torch.zeros(0, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    total, values = chunked_weighted_sum(lambda student, rows: student.sum(-1), hidden, head, torch.zeros(0))
    total.backward()
    assert total.item() == 0 and values.shape == (0,)
    assert head.grad.abs().max() == 0


def test_the_tail_holds_what_the_kept_tokens_leave():
    # Probabilities 1/2, 1/4, 1/8, 1/8: the two likeliest leave 1/4.
    kept = top_k_of(torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log(), 2)
    assert kept.indices.tolist() == [[1, 3]]
    assert kept.logps.exp().tolist() == [pytest.approx([0.5, 0.25])]
    assert kept.tail.exp().tolist() == pytest.approx([0.25])
    # A student of equal probabilities has 1/4, 1/4 and 1/2 in those buckets.
    buckets = bucket_log_probs(torch.zeros(1, 4), kept.indices)
    assert buckets.exp().tolist() == [pytest.approx([0.25, 0.25, 0.5])]
    # KL = 1/2 log 2 + 1/4 log 1 + 1/4 log 1/2 = 1/4 log 2.
    loss = DistillObjective()(torch.zeros(1, 4), kept, torch.zeros(1, dtype=torch.int64))
    assert loss.tolist() == pytest.approx([0.25 * math.log(2)])


def test_the_bucketed_divergence_grows_with_k_to_the_whole_one():
    student, teacher, labels = logits(0, 5, 12).requires_grad_(), logits(1, 5, 12), torch.arange(5)
    objective = DistillObjective(temperature=1.7)
    losses = [objective(student, top_k_of(teacher, k, temperature=1.7), labels) for k in range(1, 13)]
    for fewer, more in itertools.pairwise(losses):
        assert (fewer <= more + 1e-12).all()
    whole = forward_kl(student[None], teacher[None], torch.ones(1, 5), temperature=1.7)[0]
    torch.testing.assert_close(losses[-1], whole, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (losses[-1], whole)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    assert torch.autograd.grad(losses[2].sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_the_objective_is_the_divergence_of_its_name(name):
    student, teacher, labels = logits(0, 5, 12), logits(1, 5, 12), torch.arange(5)
    options = {"hinton": {"alpha": 0.3, "temperature": 2.0}, "jsd": {"beta": 0.3}}.get(name, {"temperature": 0.7})
    expected = plain(name, student, teacher, **options, **({"labels": labels[None]} if name == "hinton" else {}))
    objective = DistillObjective(divergence=name, **options)
    torch.testing.assert_close(objective(student, teacher, labels), expected, rtol=1e-12, atol=1e-14)
    # Columns beyond the smaller head are padding.
    padded = functools.partial(torch.nn.functional.pad, pad=(0, 3), value=5.0)
    if name != "hinton":
        torch.testing.assert_close(objective(student, padded(teacher), labels), expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(objective(padded(student), teacher, labels), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"divergence": "forward_lk"},
            r"algorithm.objective.divergence: found 'forward_lk'. Did you mean 'forward_kl'",
        ),
        ({"aggregation": "group_token_mean"}, "algorithm.objective.aggregation"),
        ({"beta": 1.5}, "algorithm.objective.beta: found 1.5"),
        ({"temperature": 0.0}, "algorithm.objective.temperature: found 0.0"),
        ({"aggregation": "constant"}, "max_length: found None"),
    ],
)
def test_values_without_sense_are_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        DistillObjective(**changes)


def test_k_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="k: found 9, expected 1 to 4"):
        top_k_of(torch.zeros(1, 4), 9)
    rows = TopK(indices=torch.arange(6).view(3, 2), logps=torch.zeros(3, 2), tail=torch.arange(3.0))[1:3]
    assert rows.indices.tolist() == [[2, 3], [4, 5]] and rows.tail.tolist() == [1.0, 2.0]
