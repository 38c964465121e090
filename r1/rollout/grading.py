"""On-policy distillation as reinforcement learning: the teacher grades every token that the student wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1.losses.on_policy import minillm_returns, reverse_kl_advantages
from r1.registry import did_you_mean
from r1.rollout.buffer import RolloutBuffer
from r1.tensors import pad_rows

GRADES = ("reverse_kl", "minillm")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherGrading:
    """Gives each token an advantage of its own (config node `algorithm.grading`).

        A_it = coef * (grade of token t in row i) + reward_coef * (advantage of row i from its rewards)

    Attributes:
        teacher: `r1.models.Teacher`.
        kind: "reverse_kl" (`r1.losses.on_policy.reverse_kl_advantages`) or "minillm", the long term of MiniLLM
            (`minillm_returns`).
        coef: weight of the teacher.
        discount: of reverse_kl; 0 grades a token by itself, 1 by all that follows.
        length_norm: of minillm; divides by the number of tokens that follow.
        reward_coef: weight of the rewards; 0 leaves everything to the teacher.
    """

    teacher: Any
    kind: str = "reverse_kl"
    coef: float = 1.0
    discount: float = 0.0
    length_norm: bool = True
    reward_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in GRADES:
            raise ValueError(
                f"algorithm.grading.kind: found {self.kind!r}.{did_you_mean(self.kind, GRADES)} "
                f"Expected one of {', '.join(GRADES)}"
            )
        if not 0 <= self.discount <= 1:
            raise ValueError(f"algorithm.grading.discount: found {self.discount}, expected a number in [0, 1]")

    def __call__(self, buffer: RolloutBuffer) -> list[Tensor]:
        """Return N tensors (T_i,) float32 from the buffer's old and teacher logps and its advantages of rows (N,)."""
        student, teacher = (pad_rows(rows, 0.0) for rows in (buffer.old_logps, buffer.teacher_logps))
        lengths = torch.tensor([len(row) for row in buffer.old_logps])
        mask = torch.arange(student.shape[1]) < lengths[:, None]
        if self.kind == "reverse_kl":
            grades = reverse_kl_advantages(student, teacher, mask, coef=self.coef, discount=self.discount)
        else:
            grades = self.coef * minillm_returns(student, teacher, mask, length_norm=self.length_norm)
        if self.reward_coef:
            grades = grades + self.reward_coef * buffer.advantages[:, None]
        return [row[:length].float() for row, length in zip(grades, lengths.tolist(), strict=True)]
