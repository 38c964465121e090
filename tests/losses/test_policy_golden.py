"""Policy surrogates against the reference losses, a per-token Python reference, finite differences and NaN padding."""

import json
import math
from pathlib import Path

import pytest
import torch

from r1.losses import (
    SURROGATES,
    aggregate,
    clipped,
    kl_estimate,
    mismatch_weights,
    off_policy_sequence_mask,
    row_weights,
    sequence_clipped,
    sequence_token_clipped,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_grpo.json").read_text())
INPUTS = {
    k: torch.tensor(GOLDEN["inputs"][k], dtype=torch.float64)
    for k in ("mask", "old_logps", "logps", "ref_logps", "rollout_logps")
}
LEVELS = {
    "token": "clipped",
    "sequence": "sequence",
    "sequence_token": "sequence_token",
    "sequence_raw": "sequence_raw",
}
AGGREGATION = {
    "seq_mean": "sequence_mean",
    "token_mean": "token_mean",
    "group_token": "group_token_mean",
    "const": "constant",
    "seq_sum": "sequence_sum",
}


def surrogate_of(config, logps, advantages, mask):
    """Translate a reference configuration into our functions."""
    old = INPUTS["old_logps"]
    kind = config.get("loss", "clip")
    if kind == "cispo":
        return SURROGATES["cispo"](logps, old, advantages, mask, cap=config["cap"])
    if kind == "sapo":
        return SURROGATES["sapo"](logps, old, advantages, mask)
    options = {"clip_low": config.get("eps_low", 0.2), "clip_high": config.get("eps_high", 0.2)}
    level = LEVELS[config.get("level", "token")]
    if level == "clipped":
        options |= {"delta": config.get("delta"), "dual_clip": config.get("dual_c")}
    return SURROGATES[level](logps, old, advantages, mask, **options)


def loss_of(name, config, logps, advantages):
    mask = INPUTS["mask"].clone()
    if name.endswith("row5_fully_masked"):
        mask[5] = 0
    mask = mask.bool()
    old, ref = INPUTS["old_logps"], INPUTS["ref_logps"]
    per_token = surrogate_of(config, logps, advantages, mask)
    if "_tis_" in name:
        rule = name.split("_tis_")[1]
        mode = "_".join(rule.split("_")[:2])
        weights = mismatch_weights(old, INPUTS["rollout_logps"], mask, mode=mode, max_ratio=2.0, min_ratio=0.5)
        expected = torch.tensor(config["tis_weight"], dtype=torch.float64).expand_as(weights)
        torch.testing.assert_close(weights[mask], expected[mask], rtol=1e-10, atol=0)
        per_token = per_token * weights
    if "opsm" in config:
        keep = off_policy_sequence_mask(logps, old, advantages, mask, threshold=config["opsm"])
        per_token = per_token * keep.unsqueeze(1)
    if beta := config.get("beta"):
        kind = "importance_k3" if config.get("kl_is") else config.get("kl", "k3")
        per_token = per_token + beta * kl_estimate(logps, ref, kind, mask=mask, old_logps=old)
    weights = row_weights(
        mask.sum(1),
        AGGREGATION[config.get("agg", "seq_mean")],
        group_ids=torch.tensor([0, 0, 0, 1, 1, 1]),
        max_length=config.get("l_max"),
        dtype=torch.float64,
    )
    return aggregate(per_token, mask, weights)


def test_every_reference_loss_is_there():
    assert len(GOLDEN["losses"]) == 33


@pytest.mark.parametrize("name", list(GOLDEN["losses"]))
def test_loss_and_gradient_match_the_reference(name):
    case = GOLDEN["losses"][name]
    logps = INPUTS["logps"].clone().requires_grad_()
    advantages = torch.tensor(case["advantages"], dtype=torch.float64)
    loss = loss_of(name, case["config"], logps, advantages)
    torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(loss, logps)
    expected = torch.tensor(case["grad_logps"], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("name", list(GOLDEN["losses"]))
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_junk_in_padded_slots_changes_neither_value_nor_gradient(name, junk, monkeypatch):
    case = GOLDEN["losses"][name]
    mask = INPUTS["mask"].bool()
    for key in ("logps", "old_logps", "ref_logps", "rollout_logps"):
        monkeypatch.setitem(INPUTS, key, INPUTS[key].masked_fill(~mask, junk))
    logps = INPUTS["logps"].clone().requires_grad_()
    advantages = torch.tensor(case["advantages"], dtype=torch.float64).unsqueeze(1).expand_as(mask)
    loss = loss_of(name, case["config"], logps, advantages.masked_fill(~mask, junk))
    torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(loss, logps)
    expected = torch.tensor(case["grad_logps"], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("name", list(SURROGATES))
def test_padded_slots_are_exactly_zero(name):
    mask = INPUTS["mask"].bool()
    logps = INPUTS["logps"].masked_fill(~mask, math.nan)
    per_token = SURROGATES[name](logps, INPUTS["old_logps"], torch.ones(6, dtype=torch.float64), mask)
    assert per_token.shape == (6, 4)
    assert per_token[~mask].abs().tolist() == [0.0] * 7
    assert per_token[mask].isfinite().all()


def test_per_token_ratios_match_the_reference():
    logps, old, mask = INPUTS["logps"], INPUTS["old_logps"], INPUTS["mask"].bool()
    minus_one = -torch.ones(6, dtype=torch.float64)
    # With A = -1 and no clipping range the loss is max(rho, 1); with a range of 1e9 it is rho itself.
    ratio = clipped(logps, old, minus_one, mask, clip_low=1e9, clip_high=1e9)
    expected = torch.tensor(GOLDEN["per_token"]["rho"], dtype=torch.float64)
    torch.testing.assert_close(ratio[mask], expected[mask], rtol=1e-12, atol=0)
    sequence = sequence_clipped(logps, old, minus_one, mask, clip_low=1e9, clip_high=1e9)
    expected = torch.tensor(GOLDEN["per_token"]["gspo_s"], dtype=torch.float64)
    torch.testing.assert_close(sequence[:, 0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("compared", ["micro", "sum"])
def test_micro_batches_match_the_reference(compared):
    cases = {"grpo": "sequence_mean", "dapo": "token_mean", "dr_grpo": "constant", "bnpo": "token_mean"}
    advantages = torch.tensor(GOLDEN["advantages"]["group_std_ddof1_eps0"], dtype=torch.float64)
    mask = INPUTS["mask"].bool()
    per_token = clipped(INPUTS["logps"], INPUTS["old_logps"], advantages, mask)
    parts = (slice(0, 3), slice(3, 6))
    for name, mode in cases.items():
        weights = row_weights(mask.sum(1), mode, max_length=4, dtype=torch.float64)
        if name == "bnpo":
            # Normalised by the tokens of the micro-batch alone, then averaged over the two.
            weights = torch.cat([row_weights(mask[p].sum(1), mode, dtype=torch.float64) / 2 for p in parts])
        micro = [aggregate(per_token[p], mask[p], weights[p]).item() for p in parts]
        expected = GOLDEN["microbatch"][name]
        if compared == "micro":
            assert micro == pytest.approx(expected["micro"], rel=1e-10)
        else:
            assert sum(micro) == pytest.approx(expected["sum"], rel=1e-10)
            if name != "bnpo":
                assert sum(micro) == pytest.approx(GOLDEN["microbatch"]["full"][name], rel=1e-10)


def test_ratio_of_one_keeps_the_full_gradient():
    # torch.minimum ties there; a clip that were to win the tie would halve or lose -A.
    logps = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    for name in SURROGATES:
        per_token = SURROGATES[name](logps, logps, torch.tensor([0.7], dtype=torch.float64), torch.ones(1, 2))
        # One token of the row: the sequence forms spread or repeat it, so that sum / length (or sum) gives -A.
        (gradient,) = torch.autograd.grad(per_token.sum(), logps)
        scale = {"sequence_raw": 2}.get(name, 1)
        torch.testing.assert_close(gradient, torch.full_like(gradient, -0.7 * scale), rtol=1e-12, atol=0)


def test_sequence_token_equals_sequence_for_constant_advantages():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(5, 7, generator=generator, dtype=torch.float64)
    logps = (old + 0.1 * torch.randn(5, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(7) < torch.tensor([7, 1, 3, 5, 0]).unsqueeze(1)
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    weights = row_weights(mask.sum(1), "sequence_mean", dtype=torch.float64)
    results = []
    for surrogate in (sequence_clipped, sequence_token_clipped):
        loss = aggregate(surrogate(logps, old, advantages, mask, clip_low=0.02, clip_high=0.03), mask, weights)
        results.append((loss.detach(), torch.autograd.grad(loss, logps)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-17)


# The clip ranges keep every ratio of the inputs away from a kink; cispo's cap lies below all of them, so that its
# detached factor is the constant `cap` and finite differences apply.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clipped", {"clip_low": 0.2, "clip_high": 0.27}),
        ("clipped", {"clip_low": 10.0, "clip_high": 10.0}),
        ("clipped", {"delta": 4.0}),
        ("clipped", {"dual_clip": 3.0}),
        ("sequence", {}),
        ("sequence", {"clip_low": 0.15, "clip_high": 0.28}),
        ("sequence_raw", {}),
        ("cispo", {"cap": 0.3}),
        ("sapo", {}),
    ],
)
def test_gradients_are_those_of_finite_differences(name, options):
    mask = INPUTS["mask"].bool()
    # Off the grid of the reference inputs, whose row 3 sits exactly on rho = 1.
    logps = (INPUTS["logps"] + 0.013).requires_grad_()
    for advantages in (
        torch.tensor([1.1, -0.5, -0.7, 0.3, 0.8, -1.1], dtype=torch.float64),
        torch.linspace(-1.3, 1.2, 24, dtype=torch.float64).reshape(6, 4),
    ):
        assert torch.autograd.gradcheck(
            lambda x, a=advantages: SURROGATES[name](x, INPUTS["old_logps"], a, mask, **options), logps
        )


def test_cispo_gradient_is_the_capped_ratio_times_the_advantage():
    logps = INPUTS["logps"].clone().requires_grad_()
    mask, advantages = INPUTS["mask"].bool(), torch.linspace(-1, 1, 6, dtype=torch.float64)
    loss = SURROGATES["cispo"](logps, INPUTS["old_logps"], advantages, mask, cap=1.5).sum()
    ratio = (INPUTS["logps"] - INPUTS["old_logps"]).exp().clamp(max=1.5)
    expected = torch.where(mask, -ratio * advantages.unsqueeze(1), 0)
    torch.testing.assert_close(torch.autograd.grad(loss, logps)[0], expected, rtol=1e-12, atol=0)


def test_off_policy_mask_drops_only_bad_rows_that_drifted():
    old = torch.zeros(4, 2)
    logps = torch.tensor([[-0.3, -0.3], [-0.3, -0.3], [0.3, 0.3], [-0.3, 9.0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]])
    keep = off_policy_sequence_mask(logps, old, torch.tensor([-1.0, 1.0, -1.0, -1.0]), mask, threshold=0.2)
    assert keep.tolist() == [False, True, True, False]


def test_bad_arguments_are_refused_by_name():
    x, a, m = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3)
    with pytest.raises(ValueError, match="clip_low"):
        clipped(x, x, a, m, clip_low=-0.1)
    with pytest.raises(ValueError, match="delta"):
        clipped(x, x, a, m, delta=1.1)
    with pytest.raises(ValueError, match="dual_clip"):
        clipped(x, x, a, m, dual_clip=0.5)
    with pytest.raises(ValueError, match="cap"):
        SURROGATES["cispo"](x, x, a, m, cap=0.0)
    with pytest.raises(ValueError, match="tau_neg"):
        SURROGATES["sapo"](x, x, a, m, tau_neg=0.0)
    with pytest.raises(ValueError, match="advantages"):
        clipped(x, x, torch.zeros(3), m)
    with pytest.raises(ValueError, match="old_logps"):
        clipped(x, torch.zeros(3), a, m)
