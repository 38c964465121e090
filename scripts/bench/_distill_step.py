"""What all sides of `vs_trl_distill.py` share: settings, weights, traces, and the clock around one step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from r1.data.collate import TraceBatch, TraceExample, collate_traces
from r1.models.policy import Policy
from r1.models.tiny import tiny_llama
from r1.models.tokenizer import byte_tokenizer
from r1.types import Trace

STUDENT = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "intermediate_size": 384}
TEACHER = {"hidden_size": 256, "num_layers": 6, "num_heads": 8, "intermediate_size": 704}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """One comparison; see the options of `vs_trl_distill.py`."""

    vocab_size: int
    beta: float
    num_rows: int
    micro_batch: int
    prompt_length: int
    completion_length: int
    lr: float
    threads: int
    seed: int
    num_steps: int

    @property
    def num_micro_batches(self) -> int:
        return self.num_rows // self.micro_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillCost:
    """What one optimizer step cost.

    Attributes:
        tokens: prompt and completion tokens.
        wall, cpu: seconds; cpu counts every thread of the process.
        peak: most resident memory of the process during the step, in MiB.
        rest: resident memory before the training, with both models in it, in MiB.
        loss: as the side's own trainer computed it.
    """

    tokens: int
    wall: float
    cpu: float
    peak: float
    rest: float
    loss: float


class DistillGate:
    """Holds a trainer between two optimizer steps until the other sides have had their turn, and measures each step."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.started: tuple[float, float] | None = None
        self.rest = 0.0

    def training_starts(self) -> None:
        """Note the resident memory that models and libraries take."""
        self.rest = resident("VmRSS")

    def step_ends(self, tokens: int, loss: float) -> bool:
        """Report the step, wait for the next turn, and return whether there is one."""
        wall, cpu, peak = time.perf_counter(), time.process_time(), resident("VmHWM")
        if self.started is None:
            self.connection.send("ready")
        else:
            wall_0, cpu_0 = self.started
            self.connection.send(
                DistillCost(tokens=tokens, wall=wall - wall_0, cpu=cpu - cpu_0, peak=peak, rest=self.rest, loss=loss)
            )
        go_on = self.connection.recv()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self.started = (time.perf_counter(), time.process_time())
        return go_on


def resident(field: str) -> float:
    """Return a field of this process's memory status (VmRSS: now, VmHWM: the most so far), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def build_models(settings: DistillSettings) -> tuple[Policy, Policy]:
    """Build student and teacher, whose logits spread over a few nats as those of trained models do."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(settings.vocab_size - len(tokenizer))])
    student, teacher = (
        tiny_llama(**shape, initializer_range=scale, tokenizer=tokenizer, seed=settings.seed + i)
        for i, (shape, scale) in enumerate([(STUDENT, 0.02), (TEACHER, 0.1)])
    )
    return student, teacher


class BenchTraces:
    """Random traces whose completions have lengths between half and one and a half times the mean.

    Attributes:
        batch_size: rows of an optimizer step.
    """

    def __init__(self, settings: DistillSettings, pad_token_id: int) -> None:
        self.settings, self.pad_token_id, self.batch_size = settings, pad_token_id, settings.num_rows

    def __len__(self) -> int:
        return self.settings.num_steps

    def rows(self, step: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return prompt and completion of each row, as token ids."""
        s = self.settings
        generator = torch.Generator().manual_seed(s.seed * 100_003 + step)
        half = s.completion_length // 2
        lengths = torch.randint(half, s.completion_length + half + 1, (s.num_rows,), generator=generator).tolist()
        rows = [torch.randint(256, (s.prompt_length + n,), generator=generator).tolist() for n in lengths]
        # Shortest first, as the rows of a micro-batch are dealt to every side.
        return sorted(
            ((tuple(r[: s.prompt_length]), tuple(r[s.prompt_length :])) for r in rows), key=lambda r: len(r[1])
        )

    def batch_at(self, step: int) -> TraceBatch:
        trace = Trace(prompt="", completion="")
        examples = [TraceExample(prompt_ids=p, completion_ids=c, trace=trace) for p, c in self.rows(step)]
        return collate_traces(examples, self.pad_token_id)

    def num_tokens(self, step: int) -> int:
        return sum(len(prompt) + len(completion) for prompt, completion in self.rows(step))

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def take_side(connection: Connection, name: str, settings: DistillSettings, mode: str) -> None:
    """Be one side of `vs_trl_distill.py`: "ours", or a trainer of TRL's by name."""
    if name == "ours":
        from _distill_ours import run

        run(settings, DistillGate(connection))
    else:
        from _distill_trl import run

        run(settings, DistillGate(connection), name)
