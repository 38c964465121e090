"""vLLM beside the training in one process's device: it sleeps while the policy is being updated.

For one GPU that trains and samples in turn, in an environment with both r1 and vLLM. Sampling, weights and logps are
as in `r1.rollout.vllm`. Its calls were tried with vLLM on a CPU, where it cannot sleep; never on a GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from r1.distributed import rank_and_world
from r1.registry import did_you_mean
from r1.rollout.base import ENGINES
from r1.rollout.groups import Row, assemble_groups
from r1.rollout.vllm import DTYPES
from r1.rollout.vllm_client import num_drawn
from r1.rollout.vllm_rows import first_seed
from r1.rollout.vllm_server import EXTENSION, server_folder, temporary_variables
from r1.rollout.vllm_weights import WeightBuffer
from r1.types import Prompt, RolloutGroup, SamplingParams


@ENGINES.register("vllm_colocated")
class ColocatedVLLMEngine:
    """Samples with a `vllm.LLM`.

    Args:
        dtype: of its weights; by default that of the policy.
        options: further arguments of `vllm.LLM`, such as {gpu_memory_utilization: 0.3, max_model_len: 4096}.
    """

    exact_logps = False
    mismatch = "token_truncate"

    def __init__(self, *, dtype: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        if dtype not in (None, *DTYPES):
            raise ValueError(f"rollout.dtype: found {dtype!r}.{did_you_mean(str(dtype), DTYPES)}")
        self.dtype, self.options = dtype, dict(options or {})
        self.policy: Any = None
        self.buffer: WeightBuffer | None = None
        self._llm: Any = None
        self._folder: Path | None = None
        self._asleep = False

    def load_weights(self, policy: Any) -> None:
        """Give vLLM the policy's weights.

        Raises:
            ImportError: vLLM is not installed here.
            ValueError: there are several ranks.
        """
        if rank_and_world()[1] > 1:
            raise ValueError("rollout.name=vllm_colocated works in one process; with several ranks use rollout=vllm")
        weights = policy.checkpoint_weights()
        if self.buffer is None or not self.buffer.fits(weights):
            self.close()
            self._build(policy, weights)
        self.policy = policy
        self.buffer.write(weights)
        self._wake()
        with self.buffer.offered("shared_memory", "") as update:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {**update, "version": "own"}})
            self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()

    def _build(self, policy: Any, weights: Mapping[str, torch.Tensor]) -> None:
        try:
            from vllm import LLM
            from vllm.config import WeightTransferConfig
        except ImportError as error:
            raise ImportError(
                "rollout=vllm_colocated needs vLLM in this environment: pip install 'r1[vllm]'"
            ) from error
        # Processes that vLLM starts import the extension too.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(EXTENSION), os.environ.get("PYTHONPATH")]))
        sys.path.append(str(EXTENSION))
        dtype = self.dtype or str(policy.model.dtype).removeprefix("torch.")
        self.buffer = WeightBuffer(weights, DTYPES[dtype])
        on_device = torch.accelerator.is_available()
        self._folder = server_folder()
        policy.save_without_weights(self._folder)
        options = {
            "dtype": dtype,
            "load_format": "dummy",
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "enable_sleep_mode": on_device,
            "enforce_eager": not on_device,
            "weight_transfer_config": WeightTransferConfig(backend="r1"),
            "worker_extension_cls": "r1_vllm_worker.TrainerWeights",
        }
        with _environment(temporary_variables(self._folder)):
            self._llm = LLM(model=str(self._folder), **options | self.options)

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[RolloutGroup]:
        if not prompts:
            return []
        from vllm import SamplingParams as VLLMParams

        self._wake()
        asked = [
            VLLMParams(
                n=num_drawn(params),
                seed=first_seed(prompt, params),
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                stop=list(params.stop),
                ignore_eos=True,
                stop_token_ids=list(self.policy.eos_token_ids),
                include_stop_str_in_output=True,
                logprobs=0,
            )
            for prompt in prompts
        ]
        texts = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
        rows = []
        for index, answer in enumerate(self._llm.generate(texts, asked, use_tqdm=False)):
            outputs = sorted(answer.outputs, key=lambda output: output.index)
            for g, output in enumerate(outputs * (params.num_generations // len(outputs))):
                row = Row(index, first_seed(prompts[index], params) + g)
                for token, among in zip(output.token_ids, output.logprobs, strict=True):
                    row.append(token, among[token].logprob)
                row.finish_reason = "length" if output.finish_reason == "length" else "stop"
                rows.append(row)
        self._sleep()
        return assemble_groups(prompts, rows, params, self.policy)

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _sleep(self) -> None:
        if torch.accelerator.is_available():
            # Level 1 keeps the weights in host memory: another rollout may be drawn before the next ones come.
            self._llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """Shut vLLM down."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        if self.buffer is not None:
            self.buffer.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._llm = self.buffer = self.policy = self._folder = None
        self._asleep = False


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
