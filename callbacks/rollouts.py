"""Every rollout kept on disk, and a few shown in TensorBoard."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from r1.rollout.files import write_rollout
from r1.rollout.statistics import reward_matrix
from r1.types import RolloutGroup


class RolloutWriter(Callback):
    """Writes each rollout to `rollouts/` in the run directory (`r1.rollout.files`) and shows some as text.

    Args:
        text_every: rollouts between two texts in TensorBoard; 0 shows none.
        num_texts: groups shown each time, with their best and worst completion.
        folder: inside the run directory.
    """

    def __init__(self, *, text_every: int = 10, num_texts: int = 3, folder: str = "rollouts") -> None:
        self.text_every, self.num_texts, self.folder = text_every, num_texts, folder

    def on_rollout_end(self, trainer: Trainer, pl_module: LightningModule, record: Any) -> None:
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / self.folder / f"rollout_{record.number:06d}.jsonl.gz"
        write_rollout(path, record.groups, step=trainer.global_step)
        writer = getattr(trainer.logger, "experiment", None)
        if writer is None or not hasattr(writer, "add_text"):
            return
        means = reward_matrix(record.groups).nanmean(dim=1)
        writer.add_histogram("reward/group_mean", torch.nan_to_num(means), trainer.global_step)
        if self.text_every and record.number % self.text_every == 0:
            text = "\n\n---\n\n".join(describe_group(group) for group in record.groups[: self.num_texts])
            writer.add_text("completions", text, trainer.global_step)


def describe_group(group: RolloutGroup) -> str:
    """Write a group's best and worst completion as Markdown: prompt, turn, gold answer, reward breakdown."""
    ranked = sorted(group.rollouts, key=lambda r: float("-inf") if r.reward is None else r.reward, reverse=True)
    parts = [f"**prompt**\n\n{_block(group.prompt.text)}\n\n**gold answer** `{group.prompt.problem.answer}`"]
    for label, rollout in (("best", ranked[0]), ("worst", ranked[-1])):
        breakdown = " | ".join(
            f"{name} {'-' if score is None else format(score, '.3g')}" for name, score in rollout.rewards.items()
        )
        reward = "-" if rollout.reward is None else format(rollout.reward, ".3g")
        parts.append(
            f"**{label}**: reward {reward} ({breakdown}), advantage {rollout.advantage:.2f}, "
            f"{len(rollout.completion.token_ids)} tokens, {rollout.completion.finish_reason}\n\n"
            f"{_block(rollout.completion.turn)}"
        )
    return "\n\n".join(parts)


def _block(text: str) -> str:
    # Indented, not fenced: a completion may hold fences of its own.
    lines = [part for line in text.splitlines() or [""] for part in textwrap.wrap(line, 110) or [""]]
    return "\n".join("    " + line for line in lines)
