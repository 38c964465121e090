"""The Bradley-Terry loss: values and gradients by hand."""

import math

import pytest
import torch

from r1.losses.preference import agreement, bradley_terry_loss


def test_values_by_hand():
    # -log sigmoid(d) = log(1 + exp(-d)): d = 0 gives ln 2, d = ln 3 gives ln(4/3), d = -ln 3 gives ln 4.
    chosen = torch.tensor([1.5, math.log(3), 0.0], dtype=torch.float64)
    rejected = torch.tensor([1.5, 0.0, math.log(3)], dtype=torch.float64)
    expected = torch.tensor([math.log(2), math.log(4 / 3), math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), expected, rtol=1e-12, atol=0)


def test_a_margin_is_subtracted_from_the_difference():
    # 3 - 1 - 2 = 0, and 3 - 1 - (2 + ln 3) = -ln 3.
    chosen, rejected = torch.full((2,), 3.0, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    margin = torch.tensor([2.0, 2.0 + math.log(3)], dtype=torch.float64)
    expected = torch.tensor([math.log(2), math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, margin=margin), expected, rtol=1e-12, atol=0)


def test_the_gradient_is_the_probability_of_the_wrong_order():
    # d/dr_chosen log(1 + exp(-d)) = -sigmoid(-d): -1/4 at d = ln 3; the rejected one gets the opposite.
    chosen = torch.tensor([math.log(3)], dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.25, rel=1e-12)
    assert rejected.grad.item() == pytest.approx(0.25, rel=1e-12)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: bradley_terry_loss(a, b, margin=0.3), (chosen, rejected))


def test_large_differences_stay_finite():
    scores = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry_loss(scores, -scores)
    # d = 2e4 costs nothing, d = -2e4 costs 2e4.
    assert loss.tolist() == [0.0, 2e4]
    loss.sum().backward()
    # Each score enters twice, once as -r_rejected: 2 * -sigmoid(-d).
    assert scores.grad.tolist() == [0.0, -2.0]


def test_scores_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="as many chosen as rejected"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(3))


def test_a_tie_is_half_an_agreement():
    found = agreement(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0]))
    assert found.tolist() == [1.0, 0.0, 0.5]
