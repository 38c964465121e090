"""Row weights: literals, and that any split of a step gives the same loss and gradient."""

import math
import random

import pytest
import torch

from r1.losses import AGGREGATIONS, aggregate, clipped, kl_estimate, row_weights

LENGTHS = torch.tensor([4, 2, 0, 3])


# B = 4 rows, 9 tokens; groups {rows 0, 1} with 6 tokens and {rows 2, 3} with 3.
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sequence_mean", [1 / 16, 1 / 8, 0, 1 / 12]),
        ("token_mean", [1 / 9, 1 / 9, 0, 1 / 9]),
        ("group_token_mean", [1 / 12, 1 / 12, 0, 1 / 6]),
        ("constant", [1 / 32, 1 / 32, 0, 1 / 32]),
        ("sequence_sum", [1 / 4, 1 / 4, 0, 1 / 4]),
    ],
)
def test_weights_by_hand(mode, expected):
    weights = row_weights(LENGTHS, mode, group_ids=torch.tensor([7, 7, 3, 3]), max_length=8, dtype=torch.float64)
    assert weights.tolist() == pytest.approx(expected, rel=1e-15)


# Without the empty row B is 3; alone in its group, it takes the group with it.
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sequence_mean", [1 / 12, 1 / 6, 0, 1 / 9]),
        ("token_mean", [1 / 9, 1 / 9, 0, 1 / 9]),
        ("group_token_mean", [1 / 12, 1 / 12, 0, 1 / 6]),
        ("constant", [1 / 24, 1 / 24, 0, 1 / 24]),
        ("sequence_sum", [1 / 3, 1 / 3, 0, 1 / 3]),
    ],
)
def test_drop_empty_takes_rows_without_tokens_out_of_the_count(mode, expected):
    groups = torch.tensor([7, 7, 5, 3])
    weights = row_weights(LENGTHS, mode, group_ids=groups, max_length=8, drop_empty=True, dtype=torch.float64)
    assert weights.tolist() == pytest.approx(expected, rel=1e-15)
    if mode == "group_token_mean":
        counted = row_weights(LENGTHS, mode, group_ids=groups, dtype=torch.float64)
        assert counted.tolist() == pytest.approx([1 / 18, 1 / 18, 0, 1 / 9], rel=1e-15)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("drop_empty", [False, True])
def test_a_step_without_any_token_weighs_nothing(mode, drop_empty):
    lengths = torch.zeros(3, dtype=torch.long)
    weights = row_weights(lengths, mode, group_ids=torch.zeros(3), max_length=8, drop_empty=drop_empty)
    assert weights.tolist() == [0, 0, 0]
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(10))
def test_any_split_into_parts_gives_the_same_loss_and_gradient(mode, seed):
    rng = random.Random(seed)
    group_size, num_prompts, num_tokens = rng.randint(2, 4), rng.randint(1, 4), rng.randint(1, 8)
    num_rows = group_size * num_prompts
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, num_tokens + 1, (num_rows,), generator=generator)
    mask = torch.arange(num_tokens) < lengths.unsqueeze(1)
    old, ref, noise = -torch.rand(3, num_rows, num_tokens, generator=generator, dtype=torch.float64)
    advantages = torch.randn(num_rows, generator=generator, dtype=torch.float64)
    groups = torch.arange(num_rows) // group_size
    weights = row_weights(lengths, mode, group_ids=groups, max_length=num_tokens, dtype=torch.float64)

    def loss_of(logps, rows):
        per_token = clipped(logps[rows], old[rows], advantages[rows], mask[rows])
        per_token = per_token + 0.04 * kl_estimate(logps[rows], ref[rows], mask=mask[rows])
        return aggregate(per_token, mask[rows], weights[rows])

    logps = (old + 0.3 * noise).requires_grad_()
    whole = loss_of(logps, torch.arange(num_rows))
    (gradient,) = torch.autograd.grad(whole, logps)
    shuffled = torch.randperm(num_rows, generator=generator)
    cuts = sorted(rng.sample(range(num_rows + 1), rng.randint(0, num_rows)))
    parts = torch.tensor_split(shuffled, cuts)
    logps.grad = None
    total = 0.0
    for rows in parts:
        part = loss_of(logps, rows)
        part.backward()
        total += part.item()
    assert total == pytest.approx(whole.item(), rel=1e-12, abs=1e-15)
    torch.testing.assert_close(logps.grad, gradient, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_junk_in_padded_slots_changes_neither_value_nor_gradient(junk):
    per_token = torch.tensor([[1.0, 2.0], [3.0, junk]], requires_grad=True)
    loss = aggregate(per_token, torch.tensor([[1, 1], [1, 0]]), torch.tensor([0.5, 0.25]))
    assert loss.item() == 0.5 * 3 + 0.25 * 3
    (gradient,) = torch.autograd.grad(loss, per_token)
    assert gradient.tolist() == [[0.5, 0.5], [0.25, 0.0]]


def test_a_part_without_tokens_is_zero_and_still_differentiable():
    per_token = torch.full((2, 3), math.nan, requires_grad=True)
    loss = aggregate(per_token, torch.zeros(2, 3), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0
    assert per_token.grad.tolist() == [[0.0] * 3] * 2


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="Did you mean 'token_mean'"):
        row_weights(LENGTHS, "tokenmean")
    with pytest.raises(ValueError, match="max_length"):
        row_weights(LENGTHS, "constant")
    with pytest.raises(ValueError, match="group_ids"):
        row_weights(LENGTHS, "group_token_mean")
