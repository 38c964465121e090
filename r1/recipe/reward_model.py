"""How a reward model is built from a config, and the preference pairs that a task's verifier makes for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from r1.data.preferences import (
    PreferenceDataModule,
    PreferencePair,
    build_pairs,
    read_preferences,
    write_preferences,
)
from r1.distributed import rank_and_world
from r1.models.reward_model import Reading, RewardModel
from r1.modules.reward_model import RewardModelModule
from r1.recipe.assemble import ALGORITHMS, Config, Parts, build_optimizer, build_sampling, check_keys
from r1.rewards import build_rewards

PAIRS_FILE = "pairs.jsonl"
_DATA_KEYS = ("path", "num_problems", "split", "by", "num_pairs", "held_out", "batch_size")
_PROMPTS_AT_ONCE = 64


@ALGORITHMS.register("reward_model")
def reward_model(config: Config, parts: Parts) -> tuple[RewardModelModule, PreferenceDataModule]:
    """A reward model on the backbone of the run's model, trained on pairs of a file, or on the model's own completions
    as the rewards of the config tell them apart."""
    algorithm = check_keys(config["algorithm"], ("name", "part", "data", "optimizer"), "algorithm")
    data = check_keys(algorithm["data"], _DATA_KEYS, "algorithm.data")
    part = algorithm.get("part", "summary")
    # The turn that is scored is whole: nothing of it belongs to the prompt.
    prompt = {key: value for key, value in config["prompt"].items() if key != "prefill"}
    model = RewardModel.from_policy(parts.policy, reading=Reading(prompt=prompt, part=part))

    def make_pairs(device: torch.device) -> list[PreferencePair]:
        if data.get("path"):
            return read_preferences(data["path"])
        file = Path(config["output_dir"]) / PAIRS_FILE
        if config["resume"] and file.is_file():
            return read_preferences(file)
        pairs = sample_pairs(config, parts, data, part=part, device=device)
        if pairs and rank_and_world()[0] == 0:
            write_preferences(file, pairs)
        return pairs

    pairs = PreferenceDataModule(
        make_pairs,
        encode=model.encode,
        pad_id=model.pad_token_id,
        batch_size=data.get("batch_size", 64),
        held_out=data.get("held_out", 0.1),
        seed=config["seed"],
    )
    return RewardModelModule(reward_model=model, data=pairs, optimizer=build_optimizer(algorithm)), pairs


def sample_pairs(
    config: Config, parts: Parts, data: Mapping[str, Any], *, part: str, device: torch.device
) -> list[PreferencePair]:
    """Return pairs of the run's model's own completions.

    Args:
        config: the run's; `rollout.sampling` says how completions are drawn, `reward` what scores them.
        parts: of the run. The policy is moved to `device`, and back when the completions are drawn.
        data: num_problems, split, by (labels of rewards, each of which makes pairs) and num_pairs (of a problem and
            label).
        part: of the turn that is compared.
        device: to sample on.
    """
    rewards = build_rewards(config["reward"], task=parts.task)
    stream = parts.task.problems(data.get("split", "train"), seed=config["seed"])
    problems = stream.take_unique(data.get("num_problems", 1000))
    sampling, groups = build_sampling(config), []
    home = parts.policy.model.device
    parts.policy.to(device).eval()
    parts.engine.load_weights(parts.policy)
    with torch.no_grad():
        for start in range(0, len(problems), _PROMPTS_AT_ONCE):
            some = problems[start : start + _PROMPTS_AT_ONCE]
            prompts = [parts.template.render(problem, parts.policy.tokenizer) for problem in some]
            groups += rewards.score_groups(parts.engine.generate(prompts, sampling))
    rewards.close()
    parts.policy.to(home)
    labels = data.get("by") or ["accuracy"]
    return [
        pair
        for label in ([labels] if isinstance(labels, str) else labels)
        for pair in build_pairs(groups, by=label, part=part, num_pairs=data.get("num_pairs", 4))
    ]
