import pytest
import torch

from r1.tensors import (
    completion_positions,
    gather_completion_hidden,
    masked_mean,
    masked_sum,
    pad_rows,
    scatter_to_rows,
)

NAN = float("nan")


def test_masked_sum_ignores_nan_in_padding_forward_and_backward():
    values = torch.tensor([[1.0, 2.0, NAN], [4.0, NAN, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    total = masked_sum(values, mask)
    total.backward()
    assert total.item() == 7.0
    assert torch.equal(values.grad, mask.float())
    assert masked_sum(values, mask, 1).tolist() == [3.0, 4.0]


def test_masked_mean_divides_by_the_count_or_by_the_given_denominator():
    values = torch.tensor([[1.0, 2.0, NAN], [5.0, NAN, NAN]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(8 / 3)
    assert masked_mean(values, mask, 1).tolist() == [1.5, 5.0]
    assert masked_mean(values, mask, denominator=16).item() == 0.5


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.full((2, 2), NAN), torch.zeros(2, 2, dtype=torch.bool)).item() == 0.0


def test_masked_mean_counts_a_broadcast_mask_in_full():
    # Three columns of row 0: (1 + 2 + 3) / 3.
    values = torch.tensor([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]])
    assert masked_mean(values, torch.tensor([[True], [False]])).item() == 2.0


def test_pad_rows_pads_on_the_right():
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([], dtype=torch.int64)]
    assert pad_rows(rows, 9).tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]


def test_pad_rows_refuses_no_rows_and_matrices():
    with pytest.raises(ValueError, match="at least one row"):
        pad_rows([], 0)
    with pytest.raises(ValueError, match=r"1-D tensors, found shapes \[\(2, 2\)\]"):
        pad_rows([torch.zeros(2, 2)], 0)


def test_hidden_state_before_a_completion_token_predicts_it():
    hidden = torch.arange(2 * 6, dtype=torch.float32).reshape(2, 6, 1)  # row 0: 0..5, row 1: 6..11
    prompt_lengths = torch.tensor([2, 3])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # Row 0: completion tokens at 2, 3, 4, predicted by states 1, 2, 3. Row 1: token at 3 by state 2 = 6 + 2.
    assert gather_completion_hidden(hidden, prompt_lengths, mask).squeeze(-1).tolist() == [1.0, 2.0, 3.0, 8.0]
    rows, columns = completion_positions(prompt_lengths, mask)
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 0, 1], [2, 3, 4, 3])


@pytest.mark.parametrize("prompt_length", [0, 4])
def test_mask_that_does_not_fit_the_rows_is_an_error(prompt_length):
    with pytest.raises(ValueError, match="do not fit input of length 5"):
        gather_completion_hidden(torch.zeros(1, 5, 2), torch.tensor([prompt_length]), torch.ones(1, 2).bool())


def test_scatter_to_rows_is_the_inverse_of_selecting():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    rows = scatter_to_rows(values, mask, fill=-1.0)
    assert rows.tolist() == [[1.0, -1.0, 2.0], [-1.0, 3.0, -1.0]]
    (rows * torch.tensor([[1.0, 10.0, 2.0], [10.0, 3.0, 10.0]])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="2 values for 3 true slots"):
        scatter_to_rows(values[:2], mask)
