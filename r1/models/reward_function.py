"""A trained reward model as a reward. `r1.models` registers it, because `r1.rewards` knows no torch."""

from __future__ import annotations

import torch

from r1.models.registry import MODELS
from r1.registry import did_you_mean
from r1.rewards.base import REWARDS
from r1.turns import PARTS, Part, part_of_turn
from r1.types import Completion, Problem


@REWARDS.register("reward_model")
class RewardModelReward:
    """Scores of a frozen reward model on what follows the thinking, or on the whole response.

    A policy exploits a reward model (arXiv 2501.12948 v2, Fig. 6), therefore scores are bounded, and R1 adds this
    reward in its last steps only: in a stage of its own.

    Args:
        path: directory of the reward model.
        part: "summary" or "response"; by default what it was trained on.
        normalize: subtract the mean of the training scores and divide by their standard deviation.
        bound: scores are clipped to [-bound, bound]. A turn without the part, such as one that never stops thinking,
            gets -bound.
        batch_size: texts scored at once.
        device: where it runs; by default a GPU if there is one.
        dtype: of its weights.
    """

    isolated = False
    item_wise = True

    def __init__(
        self,
        *,
        path: str,
        part: Part | None = None,
        normalize: bool = True,
        bound: float = 3.0,
        batch_size: int = 64,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if part is not None and part not in PARTS:
            raise ValueError(
                f"reward.reward_model.part: found {part!r}.{did_you_mean(part, PARTS)} Parts: {', '.join(PARTS)}"
            )
        if not bound > 0:
            raise ValueError(f"reward.reward_model.bound must be above 0, found {bound}")
        self.model = MODELS.build("reward_model", path=path, dtype=dtype).requires_grad_(False).eval()
        self.part: Part = part or self.model.reading.part
        self.normalize, self.bound, self.batch_size, self.device = normalize, bound, batch_size, device

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        scores: list[float | None] = [-self.bound] * len(completions)
        parts = [part_of_turn(completion.turn, self.part) for completion in completions]
        texts = {i: part for i, part in enumerate(parts) if part is not None}
        if texts:
            # Lightning has chosen this process's GPU by the time of the first rollout, not when this was built.
            self.model.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            found = self.model.score(
                [problems[i].prompt for i in texts],
                list(texts.values()),
                normalize=self.normalize,
                batch_size=self.batch_size,
            )
            for i, value in zip(texts, found, strict=True):
                scores[i] = max(-self.bound, min(self.bound, value))
        return scores
