"""Several ranks with one vLLM server: rank 0 pushes whole weights, all ranks ask."""

from importlib.util import find_spec

import pytest
from rank_runs import GRPO
from vllm_stand_in import stand_in

from r1.models import tiny_llama

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 16}
STEPS = ("rollout=vllm", "rollout.start_timeout=30", "trainer.max_steps=6", "algorithm.plan.micro_batch_size=4")


def run(ranks, folder, *argv, world, fault=None):
    with stand_in(tiny_llama(**SIZES, seed=9)) as server:
        server.faults = {("/v1/completions", fault): (500, "gone")} if fault is not None else {}
        done = ranks.run(folder, *GRPO, *STEPS, *argv, f"rollout.url={server.url}", world=world).ok
        return done, server


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_two_ranks_draw_what_one_draws(ranks, tmp_path, staleness):
    ahead = f"algorithm.plan.max_staleness={staleness}"
    alone, server = run(ranks, tmp_path / "alone", ahead, world=1)
    pushes = server.count("/update_weights")
    for strategy in ("ddp", "fsdp"):
        two, server = run(ranks, tmp_path / strategy, ahead, f"strategy={strategy}", world=2)
        assert [line["token_ids"] for line in two.rollouts] == [line["token_ids"] for line in alone.rollouts]
        assert two.scalars["rollout/staleness"] == alone.scalars["rollout/staleness"] == [0.0] * 2 + [staleness] * 4
        assert two.scalars["train/loss"] == pytest.approx(alone.scalars["train/loss"], rel=0, abs=1e-6)
        assert server.count("/update_weights") == pushes  # rank 0's alone


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install 'r1[deepspeed]'")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_server_gets_whole_weights_from_deepspeed_too(ranks, tmp_path, stage):
    one_ahead = "algorithm.plan.max_staleness=1"
    alone, server = run(ranks, tmp_path / "alone", one_ahead, world=1)
    pushes = server.count("/update_weights")
    two, server = run(ranks, tmp_path / "two", one_ahead, f"strategy=deepspeed_zero{stage}", world=2)
    assert [line["token_ids"] for line in two.rollouts] == [line["token_ids"] for line in alone.rollouts]
    assert two.scalars["train/loss"] == pytest.approx(alone.scalars["train/loss"], rel=0, abs=1e-6)
    assert server.count("/update_weights") == pushes > 2


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_two_ranks_outlive_a_fault_that_one_of_them_met(ranks, tmp_path, staleness):
    ahead = (f"algorithm.plan.max_staleness={staleness}", "strategy=ddp")
    whole, _ = run(ranks, tmp_path / "whole", *ahead, world=2)
    broken, server = run(ranks, tmp_path / "broken", *ahead, world=2, fault=15)
    assert [line["token_ids"] for line in broken.rollouts] == [line["token_ids"] for line in whole.rollouts]
    assert server.count("/v1/completions") > 15
