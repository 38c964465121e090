import math

import pytest
import torch

from r1.rollout.base import mix_seed, uniform_stream
from r1.rollout.sampling import sample_tokens

LOGITS = torch.tensor([[1.0, -0.5, 3.0, 0.2, 2.0, -4.0]])


def draw_grid(logits, n, **options):
    """Tokens for n equally spaced uniforms: token i must come up in a share p_i of them, up to the ends."""
    uniforms = (torch.arange(n) + 0.5) / n
    return sample_tokens(logits.expand(n, -1), uniforms, **options)


def test_greedy_takes_the_most_likely_token_whatever_the_uniform_number():
    tokens, logps = sample_tokens(LOGITS.expand(3, -1), torch.tensor([0.0, 0.5, 0.999]), temperature=0)
    assert tokens.tolist() == [2, 2, 2]
    torch.testing.assert_close(logps, LOGITS.log_softmax(-1)[0, 2].expand(3))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_each_token_owns_an_interval_as_long_as_its_probability(temperature):
    n = 10_000
    tokens, _ = draw_grid(LOGITS, n, temperature=temperature)
    expected = n * (LOGITS.double() / temperature).softmax(-1)[0]
    # An interval of length p holds floor(pn) or ceil(pn) points of a grid of n.
    assert (tokens.bincount(minlength=6) - expected).abs().max() <= 1


def test_draws_of_the_random_stream_follow_the_softmax():
    n = 20_000
    uniforms = torch.from_numpy(uniform_stream(mix_seed(1, 2, 3), n))
    tokens, _ = sample_tokens(LOGITS.expand(n, -1), uniforms)
    expected = n * LOGITS.double().softmax(-1)[0]
    chi_square = ((tokens.bincount(minlength=6) - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 99.9 % point of 5 degrees of freedom


def test_streams_of_different_completions_are_independent():
    streams = torch.stack([torch.from_numpy(uniform_stream(mix_seed(0, 5, g), 4000)) for g in range(8)])
    correlation = torch.corrcoef(streams.double()) - torch.eye(8)
    assert correlation.abs().max() < 4.5 / math.sqrt(4000)
    assert 0 <= streams.min() and streams.max() < 1


def test_top_k_keeps_the_k_most_likely_and_their_proportions():
    n = 10_000
    tokens, _ = draw_grid(LOGITS, n, top_k=2)
    kept = LOGITS.double().softmax(-1)[0, [2, 4]]
    expected = torch.zeros(6, dtype=torch.float64)
    expected[[2, 4]] = n * kept / kept.sum()
    assert (tokens.bincount(minlength=6) - expected).abs().max() <= 1


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    for top_p, kept in ((0.4, [0]), (0.6, [0, 1]), (0.8, [0, 1, 2]), (0.99, [0, 1, 2, 3, 4])):
        tokens, _ = draw_grid(logits, 1000, top_p=top_p)
        assert tokens.unique().tolist() == kept


def test_top_k_breaks_ties_in_the_order_of_the_vocabulary():
    tokens, _ = draw_grid(torch.zeros(1, 5), 100, top_k=2)
    assert tokens.unique().tolist() == [0, 1]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.7}])
def test_logps_are_those_of_the_full_distribution_at_the_temperature(options):
    tokens, logps = draw_grid(LOGITS, 500, temperature=0.7, **options)
    torch.testing.assert_close(logps, (LOGITS / 0.7).log_softmax(-1)[0, tokens])


@pytest.mark.parametrize("vocabulary", [3, 264, 151_936])
def test_a_token_of_probability_zero_is_never_drawn(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, vocabulary, generator=generator)
    logits[:, 0] = logits[:, -1] = -math.inf
    # The least and the greatest number a stream can hold, and powers of two towards both ends.
    ends = [0.0, 1 - 2.0**-24, *(2.0**-k for k in range(1, 24)), *(1 - 2.0**-k for k in range(1, 24))]
    uniforms = torch.tensor((ends * 2)[:64], dtype=torch.float32)
    tokens, logps = sample_tokens(logits, uniforms)
    assert tokens.min() > 0 and tokens.max() < vocabulary - 1
    assert logps.isfinite().all()


def test_a_draw_depends_on_its_own_row_alone():
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(32, 50, generator=generator), torch.rand(32, generator=generator)
    together = sample_tokens(logits, uniforms, top_p=0.9)
    for i in range(32):
        alone = sample_tokens(logits[i : i + 1], uniforms[i : i + 1], top_p=0.9)
        assert alone[0].item() == together[0][i].item()
        assert torch.equal(alone[1][0], together[1][i])


def test_half_precision_logits_are_worked_on_in_float32():
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    tokens, logps = draw_grid(logits, 4096)
    assert tokens.tolist() == list(range(4096))  # a cumulative sum in bfloat16 would stop growing at 1/2
    torch.testing.assert_close(logps, torch.full((4096,), -math.log(4096)))
