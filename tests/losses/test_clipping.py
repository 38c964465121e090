"""Clip statistics against the reference fractions, and that they add up over parts."""

import json
import math
from pathlib import Path

import pytest
import torch

from r1.losses import clip_stats

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_grpo.json").read_text())
INPUTS = {k: torch.tensor(GOLDEN["inputs"][k], dtype=torch.float64) for k in ("mask", "old_logps", "logps")}


@pytest.mark.parametrize(
    ("name", "low", "high"), [("eps0.2", 0.2, 0.2), ("eps0.2_0.28", 0.2, 0.28), ("eps10", 10.0, 10.0)]
)
def test_clip_stats_match_the_reference(name, low, high):
    advantages = torch.tensor(GOLDEN["advantages"]["group_std_ddof1_eps0"], dtype=torch.float64)
    logps, old, mask = INPUTS["logps"], INPUTS["old_logps"], INPUTS["mask"]
    whole = clip_stats(logps, old, advantages, mask, clip_low=low, clip_high=high)
    expected, n = GOLDEN["clip_stats"][name], whole["num_tokens"].item()
    assert n == 17
    assert whole["num_clip_low"].item() / n == pytest.approx(expected["low"], rel=1e-12)
    assert whole["num_clip_high"].item() / n == pytest.approx(expected["high"], rel=1e-12)
    assert whole["num_clipped"].item() / n == pytest.approx(expected["region"], rel=1e-12)
    assert whole["ratio_sum"].item() / n == pytest.approx(GOLDEN["clip_stats"]["mean_ratio"], rel=1e-12)
    assert -whole["log_ratio_sum"].item() / n == pytest.approx(
        GOLDEN["clip_stats"]["old_approx_kl_mean(old-new)"], rel=1e-12
    )
    assert whole["ratio_max"].item() == pytest.approx(math.exp(2.6))  # row 3, token 1
    parts = [
        clip_stats(logps[i], old[i], advantages[i], mask[i], clip_low=low, clip_high=high)
        for i in (slice(0, 2), slice(2, 6))
    ]
    for key in whole:
        total = max(p[key] for p in parts) if key == "ratio_max" else sum(p[key] for p in parts)
        torch.testing.assert_close(total, whole[key])


def test_clip_stats_at_sequence_level_count_whole_rows():
    advantages = torch.tensor(GOLDEN["advantages"]["group_std_ddof1_eps0"], dtype=torch.float64)
    stats = clip_stats(
        INPUTS["logps"], INPUTS["old_logps"], advantages, INPUTS["mask"], clip_low=0.2, clip_high=0.28, level="sequence"
    )
    # s = 1.070 1.964 0.819 2.301 0.985 0.803 and A = + - - + + -: only row 3 (s > 1.28, A > 0, 3 tokens) is clipped.
    assert (stats["num_clip_high"].item(), stats["num_clip_low"].item()) == (3, 0)
    with pytest.raises(ValueError, match="level"):
        clip_stats(INPUTS["logps"], INPUTS["old_logps"], advantages, INPUTS["mask"], level="row")


def test_clip_stats_leave_out_tokens_that_have_no_gradient_to_lose():
    # rho = e, 1/e for each sign of A: clipped are (A > 0, e) and (A < 0, 1/e) alone.
    logps = torch.tensor([[1.0, -1.0]] * 3)
    stats = clip_stats(logps, torch.zeros(3, 2), torch.tensor([1.0, -1.0, 0.0]), torch.ones(3, 2))
    assert [stats[k].item() for k in ("num_clip_high", "num_clip_low", "num_clipped", "num_tokens")] == [1, 1, 2, 6]


def test_clip_stats_without_tokens_are_zero():
    empty = clip_stats(torch.full((1, 2), math.nan), torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2))
    assert all(v.item() == 0 for v in empty.values())
