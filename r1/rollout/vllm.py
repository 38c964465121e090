"""The engine for one node and beyond: a vLLM server samples, and gets new weights after every update.

Tokens go out and tokens come back. The weights travel through memory (`r1.rollout.vllm_weights`), the server is never
restarted for them, and each set of them has a version, so that completions are known to come from the weights that were
pushed. A server that dies is started again, given the same weights, and asked for the completions that are missing.
Under several ranks rank 0 owns the server and pushes; all ranks ask it.
"""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from r1.distributed import rank_and_world
from r1.registry import did_you_mean
from r1.rollout.base import ENGINES, OnCompletion
from r1.rollout.concurrency import run_concurrently
from r1.rollout.endpoint import Endpoint, EndpointError, ServerGoneError
from r1.rollout.groups import assemble_groups
from r1.rollout.vllm_client import Answer, VLLMClient
from r1.rollout.vllm_connection import VLLMConnection
from r1.rollout.vllm_rows import HandOver, first_seed, rows_of
from r1.rollout.vllm_weights import TRANSFERS, WeightBuffer
from r1.types import Prompt, RolloutGroup, SamplingParams

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@ENGINES.register("vllm")
class VLLMEngine:
    """Samples from a vLLM server.

    Completion g of a prompt is drawn from seed mix_seed(run seed, rollout, problem) + g. vLLM's kernels round otherwise
    from batch to batch, so that the same seed may give another token where two are nearly as likely; the logps are
    those of the distribution that each token was drawn from, temperature, top_p and top_k included.

    Args:
        python: interpreter of an environment with vLLM, from which a server for this machine is started; by default
            this one's.
        url: address of a server that runs already, instead; what several nodes need.
        model: what that server calls the model; by default the only one it has.
        dtype: of the server's weights; by default that of the policy.
        transfer: how weights travel: "shared_memory" (a server of this machine and user) or "socket" (any).
        flags: of `vllm serve` for a server that is started, name -> value, such as {tensor_parallel_size: 2}; on CPUs
            enforce_eager is one of them.
        arguments: further words for its command line.
        env: variables added to its environment; on CPUs VLLM_CPU_KVCACHE_SPACE=1 and TORCHDYNAMO_DISABLE=1 are there.
        log: its log; by default a file in the folder for temporary files.
        start_timeout: seconds it may take to start, or a server that runs already may be away.
        max_restarts: times in a row that a server is brought back without a completion in between.
        timeout: seconds for all completions of a prompt.
        concurrency: prompts in flight.
        api_key_env: environment variable that holds the server's key.
    """

    exact_logps = False
    mismatch = "token_truncate"

    def __init__(
        self,
        *,
        python: str | None = None,
        url: str | None = None,
        model: str | None = None,
        dtype: str | None = None,
        transfer: str = "shared_memory",
        flags: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log: str | None = None,
        start_timeout: float = 600.0,
        max_restarts: int = 2,
        timeout: float = 3600.0,
        concurrency: int = 256,
        api_key_env: str | None = None,
    ) -> None:
        for key, value, known in (("transfer", transfer, TRANSFERS), ("dtype", dtype, (None, *DTYPES))):
            if value not in known:
                raise ValueError(
                    f"rollout.{key}: found {value!r}.{did_you_mean(str(value), map(str, known))} "
                    f"Expected one of {', '.join(map(str, known))}"
                )
        for key, value, low in (("concurrency", concurrency, 1), ("max_restarts", max_restarts, 0)):
            if value < low:
                raise ValueError(f"rollout.{key} must be at least {low}, found {value}")
        if url is not None and (python or flags or arguments):
            raise ValueError(
                "rollout.url: a server that runs already takes no python, flags or arguments; leave them out"
            )
        self.endpoint = {"timeout": timeout, "api_key_env": api_key_env, "max_retries": 0}
        if url is not None:
            Endpoint(url, **self.endpoint)
        self.dtype, self.max_restarts, self.concurrency = dtype, max_restarts, concurrency
        self._settings = {
            **{"python": python, "url": url, "model": model, "transfer": transfer},
            **{"flags": dict(flags or {}), "arguments": tuple(arguments), "env": dict(env or {})},
            "log": Path(log) if log else Path(tempfile.gettempdir()) / f"r1_vllm_{os.getpid()}.log",
            **{"start_timeout": start_timeout, "endpoint": self.endpoint},
        }
        self.policy: Any = None
        self.connection: VLLMConnection | None = None  # of rank 0
        self.client: VLLMClient | None = None
        self.buffer: WeightBuffer | None = None
        self.max_length = 0
        self.version = ""
        self.num_pushes = 0
        self._run = uuid.uuid4().hex[:12]
        self._group: Any = None
        self._future: Future[list[RolloutGroup]] | None = None
        self._closed = False

    def load_weights(self, policy: Any) -> None:
        """Push the policy's weights, starting the server if need be; all ranks call it together.

        Raises:
            ValueError: no vLLM there, or a server of another model.
            EndpointError: the server cannot be had.
        """
        self._wait()
        self.policy, self._closed = policy, False
        if rank_and_world()[1] > 1 and self._group is None:
            # Of its own: what is drawn in the background must not get between the collectives of the training step.
            self._group = dist.new_group(backend="gloo")
        self._on_rank_0(lambda: self._load(policy))

    def _load(self, policy: Any) -> None:
        weights = policy.checkpoint_weights()
        if self.buffer is None or not self.buffer.fits(weights):
            self._disconnect()
            dtype = self.dtype or str(policy.model.dtype).removeprefix("torch.")
            self.buffer = WeightBuffer(weights, DTYPES[dtype])
            self.connection = VLLMConnection(policy=policy, dtype=dtype, buffer=self.buffer, **self._settings)
        self.connection.policy = policy
        self.buffer.write(weights)
        self.num_pushes += 1
        self.version = f"{self._run}-{self.num_pushes}"
        if self.connection.client is None:
            self.connection.connect()
        try:
            self.connection.push(self.version)
        except ServerGoneError as error:
            self.connection.recover(error, self.version)

    def close(self) -> None:
        """Stop the server that was started, and release the memory that weights travel in."""
        self._closed = True  # whatever is drawn in the background is given up
        self._disconnect()
        self.policy = None

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.buffer.close()
        self.connection = self.client = self.buffer = None

    def submit(self, prompts: list[Prompt], params: SamplingParams) -> Future[list[RolloutGroup]]:
        """Start to draw completions in the background with the weights of now, and return what they will be."""
        self._wait()
        future: Future[list[RolloutGroup]] = Future()

        def draw() -> None:
            try:
                future.set_result(self._generate(prompts, params))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=draw, daemon=True).start()
        self._future = future
        return future

    def _wait(self) -> None:
        """Let what is drawn in the background have the weights and the ranks to itself until it is done."""
        if self._future is not None:
            wait([self._future])
            self._future = None

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, on_completion: OnCompletion | None = None
    ) -> list[RolloutGroup]:
        """Draw completions; under several ranks all ranks call it, if with no prompts.

        Raises:
            ValueError: a prompt and `max_tokens` are longer than what the server takes.
            EndpointError: no usable answer, or a server that does not come back.
        """
        self._wait()
        return self._generate(prompts, params, on_completion)

    def _generate(
        self, prompts: list[Prompt], params: SamplingParams, tell: OnCompletion | None = None
    ) -> list[RolloutGroup]:
        self._check_lengths(prompts, params)
        answers: dict[int, list[Answer]] = {}
        is_right = lambda: self.client.versions() == {self.version}  # noqa: E731
        hand_over = tell and HandOver(tell, prompts, params, self.policy, answers=answers, is_right=is_right)
        num_failures = 0
        while True:
            num_answers = len(answers)
            gone = self._ask(prompts, params, answers, hand_over)
            if hand_over:
                hand_over.settle()
            if not self._on_any_rank(gone is not None):
                break
            gone = gone or ServerGoneError(f"{self.client.endpoint.url} is gone, as another rank says.")
            progressed = self._on_any_rank(len(answers) > num_answers)
            num_failures = 1 if progressed else num_failures + 1
            if num_failures > self.max_restarts or self._closed:
                words = f"; {self.connection.server.last_words()}" if self.connection and self.connection.server else ""
                raise EndpointError(f"{gone} Given up after rollout.max_restarts={self.max_restarts}{words}")
            self._on_rank_0(lambda gone=gone: self.connection.recover(gone, self.version))
        rows = [row for i, prompt in enumerate(prompts) for row in rows_of(i, prompt, params, answers[i])]
        return assemble_groups(prompts, rows, params, self.policy)

    def _ask(
        self,
        prompts: list[Prompt],
        params: SamplingParams,
        answers: dict[int, list[Answer]],
        hand_over: HandOver | None,
    ) -> ServerGoneError | None:
        """Fill in the answers that are missing, and return what went wrong if the server is gone."""
        found: dict[int, list[Answer]] = {}

        def work(number: int, stopped: threading.Event) -> list[Answer]:
            return self.client.complete(
                prompts[number].token_ids, first_seed(prompts[number], params), params, self.policy, stopped=stopped
            )

        try:
            missing = [number for number in range(len(prompts)) if number not in answers]
            run_concurrently(work, missing, concurrency=self.concurrency, results=found, on_result=hand_over)
            versions = self.client.versions()
        except ServerGoneError as error:
            # A server has one version from its first answer to its last, so what came before it went is good.
            answers |= found
            return error
        except EndpointError:  # of one request: what the others brought is good
            if hand_over and hand_over.is_right():
                answers |= found
                hand_over.settle()
            raise
        if versions != {self.version}:
            return self._other_weights(versions)
        answers |= found
        return None

    def _other_weights(self, versions: set[str]) -> ServerGoneError:
        """Return that the server has lost this run's weights.

        Raises:
            EndpointError: another run has put its own in their place; to push again would spoil that run's completions.
        """
        found, run = " and ".join(sorted(versions)), self.version.rpartition("-")[0]
        if any(version != "none" and version.rpartition("-")[0] != run for version in versions):
            raise EndpointError(
                f"{self.client.endpoint.url} has the weights {found} of another run instead of {self.version}. A "
                "server serves one run: stop the other, or start a server for this one and name it in rollout.url"
            )
        return ServerGoneError(f"{self.client.endpoint.url} has the weights {found} instead of {self.version}.")

    def _check_lengths(self, prompts: list[Prompt], params: SamplingParams) -> None:
        longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
        if longest + params.max_tokens > self.max_length:
            raise ValueError(
                f"rollout.sampling.max_tokens={params.max_tokens} after a prompt of {longest} tokens is more than the "
                f"{self.max_length} tokens that the vLLM server takes (its max_model_len). Lower max_tokens, or raise "
                "rollout.flags.max_model_len as far as model.max_position_embeddings allows"
            )

    def _note(self) -> None:
        self.client, self.max_length = self.connection.client, self.connection.max_length

    def _on_any_rank(self, here: bool) -> bool:
        if rank_and_world()[1] == 1:
            return here
        found = [False] * rank_and_world()[1]
        dist.all_gather_object(found, here, group=self._group)
        return any(found)

    def _on_rank_0(self, act: Any) -> None:
        """Act on rank 0 and tell the others where the server is and what it has, or why not."""
        rank, world = rank_and_world()
        if world == 1:
            act()
            self._note()
            return
        error: Exception | None = None
        if rank == 0:
            try:
                act()
                self._note()
            except Exception as raised:
                error = raised
        told = [None if self.client is None else (self.client.endpoint.url, self.client.model, self.version), error]
        told += [self.max_length]
        dist.broadcast_object_list(told, src=0, group=self._group)
        if error is not None:
            raise error
        where, failure, self.max_length = told
        if failure is not None:
            raise failure
        if rank > 0:
            self.client = VLLMClient(where[0], model=where[1], **self.endpoint)
            self.version = where[2]
