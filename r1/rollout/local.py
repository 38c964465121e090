"""The in-process engine: continuous batching over a preallocated key-value cache.

A group's prompt is prefilled once and its keys and values are shared out to the G rows. A row that finishes gives its
place to the next waiting completion, so the batch stays full; when none waits the batch shrinks.
Legend: N places in the batch, G completions per prompt.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r1.native import NativeUnavailable, load_library
from r1.registry import did_you_mean
from r1.rollout.base import ENGINES, OnCompletion, uniform_stream
from r1.rollout.compiled import LENGTH_STEP, NUM_LENGTHS, CompiledStep
from r1.rollout.decoder import Decoder, unsupported_reason
from r1.rollout.groups import Row, assemble_groups, completion_of, is_stopped, start_rows
from r1.rollout.native import NativeBatch, unsupported_decoder
from r1.rollout.prefill import Prefills
from r1.rollout.sampling import sample_tokens
from r1.rollout.static import State, StaticBatch
from r1.types import Prompt, RolloutGroup, SamplingParams

DTYPES = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KERNELS = ("auto", "native", "torch")
COMPILE = (True, False, "auto")


@ENGINES.register("local")
class LocalEngine:
    """Samples from the policy in this process.

    Args:
        max_batch_size: places in the decoding batch; also bounds the key-value cache.
        dtype: to decode in ("bfloat16" halves the traffic of float32 weights); by default that of the weights.
        kernels: "native", the loops of `r1.rollout.native`, compiled by the machine's C++ compiler, which decode in
            float32 on CPUs; "torch", torch's own operations; "auto", native where it can be had. Both draw the same
            tokens, up to rounding.
        compile: true, the decode step goes through torch.compile, with CUDA graphs on GPUs; "auto", on GPUs, where it
            compiles; false, not at all. Weights, cache and state stay allocated between rollouts then. Off by default:
            it was run on CPUs alone, where it draws the same tokens, and never timed on a GPU.
    """

    def __init__(
        self,
        *,
        max_batch_size: int = 256,
        dtype: str | None = None,
        kernels: str = "auto",
        compile: bool | str = False,
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"rollout.max_batch_size must be at least 1, found {max_batch_size}")
        if dtype not in DTYPES:
            raise ValueError(f"rollout.dtype: found {dtype!r}.{did_you_mean(str(dtype), map(str, DTYPES))}")
        if kernels not in KERNELS:
            raise ValueError(f"rollout.kernels: found {kernels!r}.{did_you_mean(kernels, KERNELS)}")
        if compile not in COMPILE:
            raise ValueError(f"rollout.compile: found {compile!r}, expected auto, true or false")
        self.max_batch_size, self.kernels, self.compile = max_batch_size, kernels, compile
        self.compiled: CompiledStep | None = None
        self.dtype = DTYPES[dtype]
        self.policy: Any = None

    @property
    def exact_logps(self) -> bool:
        if self.policy is None or self.policy.model.dtype not in (torch.float32, torch.float64):
            return False
        return self.dtype in (None, self.policy.model.dtype)

    def load_weights(self, policy: Any) -> None:
        reason = unsupported_reason(policy.model)
        if reason:
            raise ValueError(
                f"rollout.name=local cannot decode this model: {reason}. "
                "Use rollout=transformers, which runs any causal LM"
            )
        self.policy = policy

    def close(self) -> None:
        self.policy = self.compiled = None

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, on_completion: OnCompletion | None = None
    ) -> list[RolloutGroup]:
        if not prompts:
            return []
        rows = start_rows(prompts, params)
        batch = self._batch(prompts, params, min(self.max_batch_size, len(rows)))
        batch.on_completion = on_completion
        batch.run(deque(rows))
        return assemble_groups(prompts, rows, params, self.policy)

    def _batch(self, prompts: list[Prompt], params: SamplingParams, num_places: int) -> Any:
        length = max(len(prompt.token_ids) for prompt in prompts) + params.max_tokens
        on_cuda = self.policy.model.device.type == "cuda"
        if self.compile is True or (self.compile == "auto" and on_cuda):
            return self._compiled_batch(prompts, params, num_places, length)
        decoder = self.decoder(length, params)
        if self._is_native(decoder):
            return NativeBatch(self.policy, prompts, params, num_places, decoder)
        if not on_cuda:
            return _Batch(self.policy, prompts, params, num_places, decoder)
        eos, device = self.policy.eos_token_ids, self.policy.model.device
        state = State.allocate(decoder, num_places, params.max_tokens, eos, device)
        return StaticBatch(self.policy, prompts, params, decoder, state=state, max_length=length)

    def _compiled_batch(self, prompts: list[Prompt], params: SamplingParams, num_places: int, length: int) -> Any:
        if self.kernels == "native":
            raise ValueError(f"rollout.kernels=native has nothing to compile; found rollout.compile={self.compile}")
        if self.compiled is None:
            self.compiled = CompiledStep(required=self.compile is True)
        decoder = self.decoder(-(-length // LENGTH_STEP) * LENGTH_STEP, params)
        decoder, state = self.compiled.prepare(
            decoder, num_places, params.max_tokens, self.policy.eos_token_ids, max_length=length
        )
        return StaticBatch(
            self.policy, prompts, params, decoder, state=state, max_length=decoder.max_length, step=self.compiled,
            num_lengths=NUM_LENGTHS,
        )  # fmt: skip

    def _is_native(self, decoder: Any) -> bool:
        if self.kernels == "torch":
            return False
        try:
            load_library()
            reason = unsupported_decoder(decoder)
        except NativeUnavailable as error:
            reason = str(error)
        if reason and self.kernels == "native":
            raise ValueError(f"rollout.kernels=native: {reason}. rollout.kernels=torch works everywhere")
        return reason is None

    def decoder(self, max_length: int, params: SamplingParams) -> Any:
        """Return what gives the next token's logits for up to `max_length` tokens of prompt and completion."""
        return Decoder(self.policy.model, max_length, dtype=self.dtype)


class _Batch:
    """The rows being decoded. Places 0..n-1 are busy; a freed place is filled by the last busy one."""

    def __init__(
        self, policy: Any, prompts: list[Prompt], params: SamplingParams, num_places: int, decoder: Any
    ) -> None:
        self.policy, self.prompts, self.params = policy, prompts, params
        self.num_places, self.decoder = num_places, decoder
        self.device = policy.model.device
        self.cache = self.decoder.allocate_cache(num_places)
        self.rows: list[Row] = []
        self.prefills = Prefills(decoder, prompts, params.num_generations, device=self.device)
        self.tokens = torch.zeros(num_places, dtype=torch.int64, device=self.device)
        self.positions = torch.zeros(num_places, dtype=torch.int64, device=self.device)
        self.uniforms = torch.zeros(num_places, params.max_tokens, dtype=torch.float32, device=self.device)
        self.eos = frozenset(policy.eos_token_ids)
        self.on_completion: OnCompletion | None = None

    def run(self, waiting: deque[Row]) -> None:
        while waiting or self.rows:
            # Prompts are prefilled a few at a time, not one by one, while there is other work.
            free = self.num_places - len(self.rows)
            if waiting and (free >= min(self.num_places // 8 + 1, len(waiting)) or not self.rows):
                self._admit([waiting.popleft() for _ in range(min(free, len(waiting)))])
            if self.rows:
                self._decode()

    def _decode(self) -> None:
        n = len(self.rows)
        length = max(len(self.prompts[r.prompt_index].token_ids) + len(r.token_ids) for r in self.rows)
        logits = self.decoder.step(self.tokens[:n], self.positions[:n], length, self.cache)
        drawn = torch.tensor([len(row.token_ids) for row in self.rows], device=self.device)
        self.positions[:n] += 1
        self._draw(0, logits, self.uniforms[:n].gather(1, drawn[:, None]).squeeze(1))

    def _admit(self, rows: list[Row]) -> None:
        start, n, place = len(self.rows), len(rows), len(self.rows)
        rows = sorted(rows, key=lambda row: self.prefills.firsts[row.prompt_index])
        logits = []
        for index, numbers in self.prefills.take([row.prompt_index for row in rows]):
            count, kept, length = len(numbers), self.prefills[index], len(self.prompts[index].token_ids)
            for (keys, values), (key, value) in zip(self.cache, kept.cache, strict=True):
                keys[place : place + count, :length] = key
                values[place : place + count, :length] = value
            self.positions[place : place + count] = length
            logits.append(kept.logits.expand(count, -1))
            place += count
        draws = np.stack([uniform_stream(row.seed, self.params.max_tokens) for row in rows])
        self.uniforms[start : start + n] = torch.from_numpy(draws).to(self.device)
        self.rows += rows
        self._draw(start, torch.cat(logits), self.uniforms[start : start + n, 0])

    def _draw(self, start: int, logits: Tensor, uniforms: Tensor) -> None:
        """Draw a token for each row from `start` on, file it, and free the places of the rows that end."""
        p = self.params
        tokens, logps = sample_tokens(logits, uniforms, temperature=p.temperature, top_p=p.top_p, top_k=p.top_k)
        self.tokens[start : start + len(tokens)] = tokens
        ended = []
        for place, (token, logp) in enumerate(zip(tokens.tolist(), logps.tolist(), strict=True), start):
            row = self.rows[place]
            row.append(token, logp)
            if token in self.eos or is_stopped(row.token_ids, p, self.policy.tokenizer):
                row.finish_reason = "stop"
                ended.append(place)
            elif len(row.token_ids) >= p.max_tokens:
                ended.append(place)
        if self.on_completion is not None:
            for place in ended:
                row = self.rows[place]
                self.on_completion(row.prompt_index, completion_of(row, self.prompts[row.prompt_index], self.policy))
        if ended:
            self._free(ended)

    def _free(self, ended: list[int]) -> None:
        gone = set(ended)
        left = len(self.rows) - len(ended)
        holes = [place for place in ended if place < left]
        movers = [place for place in range(left, len(self.rows)) if place not in gone]
        if holes:
            to, source = torch.tensor(holes, device=self.device), torch.tensor(movers, device=self.device)
            length = max(
                len(self.prompts[self.rows[m].prompt_index].token_ids) + len(self.rows[m].token_ids) for m in movers
            )
            for keys, values in self.cache:
                keys[to, :length] = keys[source, :length]
                values[to, :length] = values[source, :length]
            for state in (self.tokens, self.positions, self.uniforms):
                state[to] = state[source]
            for hole, mover in zip(holes, movers, strict=True):
                self.rows[hole] = self.rows[mover]
        del self.rows[left:]
