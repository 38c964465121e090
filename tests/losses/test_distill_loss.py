"""Distillation losses against reference numbers, a Python reference, exact enumeration, and their chunked forms."""

import functools
import itertools
import json
import math
import random
from pathlib import Path

import pytest
import torch

from r1.losses import (
    DIVERGENCES,
    aggregate,
    chunked_per_token,
    clipped,
    forward_kl,
    generalized_jsd,
    hinton,
    minillm_long,
    reverse_kl,
    reverse_kl_advantages,
    row_weights,
    token_nll,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_distill.json").read_text())
STUDENT = torch.tensor(GOLDEN["inputs"]["student_logits"], dtype=torch.float64)
TEACHER = torch.tensor(GOLDEN["inputs"]["teacher_logits"], dtype=torch.float64)
LABELS = torch.tensor(GOLDEN["inputs"]["labels"])
MASK = torch.tensor(GOLDEN["inputs"]["mask"]).bool()
ON_POLICY = GOLDEN["on_policy"]


def label_logps(logits):
    return torch.log_softmax(logits, -1).gather(-1, LABELS.unsqueeze(-1)).squeeze(-1)


def per_token_of(name, config, student, teacher, labels):
    if name.startswith("sft"):
        return token_nll(student, labels, MASK)
    if name.startswith("hinton"):
        return hinton(student, teacher, MASK, labels=labels, **config)
    if name.startswith("minillm_single"):
        return reverse_kl(student, teacher, MASK)
    if name.startswith("minillm_long"):
        return minillm_long(label_logps(student), label_logps(teacher), MASK)
    if name.startswith("on_policy"):
        logps = label_logps(student)
        advantages = reverse_kl_advantages(
            logps, label_logps(teacher), MASK, coef=config["coef"], discount=config["gamma"]
        )
        return clipped(logps, logps, advantages, MASK, clip_low=math.inf, clip_high=math.inf)
    return generalized_jsd(student, teacher, MASK, **config)


def loss_of(name, student, teacher, labels):
    per_token = per_token_of(name, GOLDEN["losses"][name]["config"], student, teacher, labels)
    mode = "sequence_mean" if name.endswith("seq_mean") else "token_mean"
    return aggregate(per_token, MASK, row_weights(MASK.sum(1), mode, dtype=torch.float64))


def test_every_reference_loss_is_there():
    assert len(GOLDEN["losses"]) == 17


@pytest.mark.parametrize("name", list(GOLDEN["losses"]))
def test_loss_and_gradient_match_the_reference(name):
    case = GOLDEN["losses"][name]
    student = STUDENT.clone().requires_grad_()
    loss = loss_of(name, student, TEACHER, LABELS)
    torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-10, atol=0)
    expected = torch.tensor(case["grad_student_logits"], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected, rtol=1e-10, atol=1e-16)


# The sampled-token losses read log-probabilities; their padding is covered with the policy surrogates.
@pytest.mark.parametrize("name", [n for n in GOLDEN["losses"] if not n.startswith(("on_policy", "minillm_long"))])
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_junk_in_padded_slots_changes_neither_value_nor_gradient(name, junk):
    case = GOLDEN["losses"][name]
    student = STUDENT.masked_fill(~MASK.unsqueeze(-1), junk).requires_grad_()
    teacher = TEACHER.masked_fill(~MASK.unsqueeze(-1), junk)
    loss = loss_of(name, student, teacher, LABELS.masked_fill(~MASK, -100))
    torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-10, atol=0)
    expected = torch.tensor(case["grad_student_logits"], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected, rtol=1e-10, atol=1e-16)


def test_on_policy_advantages_match_the_reference():
    student, teacher = label_logps(STUDENT), label_logps(TEACHER)
    torch.testing.assert_close(student.tolist(), ON_POLICY["student_logp"], rtol=1e-12, atol=0)
    for gamma in (0, 1):
        advantages = reverse_kl_advantages(student, teacher, MASK, discount=gamma)
        expected = torch.tensor(ON_POLICY[f"advantage_gamma{gamma}"], dtype=torch.float64)
        torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=0)


def test_discounted_advantages_by_hand():
    # r = 1, 2, 4, padding: 1 + 0.5*2 + 0.25*4 = 3; 2 + 0.5*4 = 4; 4.
    teacher = torch.tensor([[1.0, 2.0, 4.0, math.nan]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert reverse_kl_advantages(torch.zeros(1, 4), teacher, mask, discount=0.5).tolist() == [[3, 4, 4, 0]]
    assert reverse_kl_advantages(torch.zeros(1, 4), teacher, mask, coef=2.0).tolist() == [[2, 4, 8, 0]]


def test_minillm_long_by_hand():
    # r = 1, 2, 4: what follows is 6, 4, 0; divided by 2, 1, none: 3, 4, 0. Times -logp = 1, 2, 3, and the weights.
    logps = torch.tensor([[-1.0, -2.0, -3.0, math.nan]])
    teacher = torch.tensor([[0.0, 0.0, 1.0, math.nan]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert minillm_long(logps, teacher, mask).tolist() == [[3, 8, 0, 0]]
    assert minillm_long(logps, teacher, mask, length_norm=False).tolist() == [[6, 8, 0, 0]]
    weights = torch.tensor([[0.5, 2.0, 1.0, math.nan]])
    assert minillm_long(logps, teacher, mask, weights=weights).tolist() == [[1.5, 16, 0, 0]]


def test_single_and_long_terms_sum_to_the_gradient_of_the_sequence_divergence():
    # Every completion of 2 tokens over 3: the first from one table, the second from a table for each first token.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.log_softmax(torch.randn(4, 3, generator=generator, dtype=torch.float64), -1)
    log_q = torch.log_softmax(student, -1)
    sequences = list(itertools.product(range(3), repeat=2))
    first, second = torch.tensor(sequences).T
    sampled = torch.stack([log_q[0, first], log_q[1 + first, second]], 1)
    graded = torch.stack([teacher[0, first], teacher[1 + first, second]], 1)
    joint = sampled.sum(1)
    (exact,) = torch.autograd.grad((joint.exp() * (joint - graded.sum(1))).sum(), student, retain_graph=True)

    mask = torch.ones(9, 2)
    states = torch.stack([torch.zeros_like(first), 1 + first], 1)
    single = reverse_kl(student[states], teacher[states], mask)
    long = minillm_long(sampled, graded, mask, length_norm=False)
    expectation = (joint.detach().exp().unsqueeze(1) * (single + long)).sum()
    (estimated,) = torch.autograd.grad(expectation, student)
    torch.testing.assert_close(estimated, exact, rtol=1e-10, atol=1e-15)


def test_jsd_ends_are_the_two_divergences_and_its_limits_are_zero():
    torch.testing.assert_close(generalized_jsd(STUDENT, TEACHER, MASK, beta=0.0), forward_kl(STUDENT, TEACHER, MASK))
    torch.testing.assert_close(generalized_jsd(STUDENT, TEACHER, MASK, beta=1.0), reverse_kl(STUDENT, TEACHER, MASK))
    for beta in (1e-6, 1 - 1e-6):
        assert generalized_jsd(STUDENT, TEACHER, MASK, beta=beta).abs().max() < 1e-4
    assert forward_kl(STUDENT, TEACHER, MASK)[MASK].min() > 0.01


def test_tokens_the_teacher_never_says_cost_nothing_in_forward_kl():
    teacher = TEACHER.clone()
    teacher[..., 3] = -math.inf
    student = STUDENT.clone().requires_grad_()
    loss = forward_kl(student, teacher, MASK)[MASK]
    p = torch.softmax(teacher, -1)[..., [0, 1, 2, 4]]
    expected = (p * (p.log() - torch.log_softmax(STUDENT, -1)[..., [0, 1, 2, 4]])).sum(-1)[MASK]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def bound(name):
    """A divergence of DIVERGENCES as a function of (student logits, teacher logits, mask, labels=...)."""
    options = {"hinton": {"alpha": 0.3, "temperature": 2.0}, "jsd": {"beta": 0.3, "temperature": 1.5}}
    return functools.partial(DIVERGENCES[name], **options.get(name, {}))


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_gradients_are_those_of_finite_differences(name):
    labels = {"labels": LABELS} if name == "hinton" else {}
    divergence = bound(name)
    assert torch.autograd.gradcheck(lambda x: divergence(x, TEACHER, MASK, **labels), STUDENT.clone().requires_grad_())


def slow_divergence(name, student, teacher, label):
    """One token, in plain Python, by the definitions; options as in `bound`."""

    def softmax(logits, tau):
        weights = [math.exp(x / tau) for x in logits]
        return [w / sum(weights) for w in weights]

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    tau = {"hinton": 2.0, "jsd": 1.5}.get(name, 1.0)
    p, q = softmax(teacher, tau), softmax(student, tau)
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        middle = [0.3 * x + 0.7 * y for x, y in zip(p, q, strict=True)]
        return 0.3 * kl(p, middle) + 0.7 * kl(q, middle)
    return 0.3 * 4 * kl(p, q) - 0.7 * math.log(softmax(student, 1.0)[label])


@pytest.mark.parametrize("seed", range(50))
def test_random_shapes_match_the_slow_reference_whole_and_in_chunks(seed):
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_tokens, vocab = rng.randint(1, 4), rng.randint(1, 6), rng.randint(2, 9)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    student, teacher = draw(num_rows, num_tokens, 4), draw(num_rows, num_tokens, 3)
    student_head, teacher_head = draw(vocab, 4), draw(vocab, 3)
    labels = torch.randint(0, vocab, (num_rows, num_tokens), generator=generator)
    mask = torch.rand(num_rows, num_tokens, generator=generator) < 0.7
    logits, teacher_logits = student @ student_head.T, teacher @ teacher_head.T
    for name in DIVERGENCES:
        options = {"labels": labels} if name == "hinton" else {}
        expected = torch.zeros(num_rows, num_tokens, dtype=torch.float64)
        for i, t in mask.nonzero().tolist():
            expected[i, t] = slow_divergence(
                name, logits[i, t].tolist(), teacher_logits[i, t].tolist(), int(labels[i, t])
            )
        whole = bound(name)(logits, teacher_logits, mask, **options)
        torch.testing.assert_close(whole, expected, rtol=1e-10, atol=1e-14)
        chunked = chunked_per_token(
            bound(name), student, student_head, teacher, teacher_head, mask, chunk_size=rng.randint(1, 7), **options
        )
        torch.testing.assert_close(chunked, expected, rtol=1e-10, atol=1e-14)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="teacher vocabulary: found 4 tokens, expected the student's 5"):
        forward_kl(STUDENT, TEACHER[..., :4], MASK)
    with pytest.raises(ValueError, match="temperature"):
        reverse_kl(STUDENT, TEACHER, MASK, temperature=0.0)
    with pytest.raises(ValueError, match="beta"):
        generalized_jsd(STUDENT, TEACHER, MASK, beta=1.5)
    with pytest.raises(ValueError, match="alpha"):
        hinton(STUDENT, TEACHER, MASK, labels=LABELS, alpha=-0.5)
    with pytest.raises(ValueError, match="discount"):
        reverse_kl_advantages(STUDENT[..., 0], TEACHER[..., 0], MASK, discount=2.0)
    with pytest.raises(ValueError, match="chunk_size"):
        chunked_per_token(forward_kl, STUDENT, STUDENT[0], TEACHER, TEACHER[0], MASK, chunk_size=0)
