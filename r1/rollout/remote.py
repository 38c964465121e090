"""The engine for models behind an OpenAI-compatible endpoint: a vLLM server, or a provider's.

Text goes out and text comes back; token ids are not known here. The server keeps its own weights, so this engine
serves teachers and evaluation, not the policy in training.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from r1.registry import check_options, did_you_mean
from r1.rollout.base import ENGINES, OnCompletion, mix_seed
from r1.rollout.concurrency import run_concurrently
from r1.rollout.endpoint import Endpoint, EndpointError
from r1.shards import WholeWeights
from r1.types import Completion, Prompt, Rollout, RolloutGroup, SamplingParams

__all__ = ["EndpointError", "NoTokenizer", "RemoteEngine", "RemoteModel"]

APIS = ("completions", "chat")
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}
_SEEDS = 1 << 31  # servers differ in how large a seed they take; all take 31 bits


class NoTokenizer:
    """Stands where a tokenizer is expected when a prompt is text alone: it gives no token ids."""

    chat_template = None
    eos_token = None
    eos_token_id = None
    pad_token_id = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return []


class RemoteModel:
    """A model behind an endpoint, where a policy is expected.

    Args:
        name: what the server calls it.
        tokenizer: renders prompts with its chat template, for `api="completions"`; None renders text alone.
    """

    shards = WholeWeights()

    def __init__(self, name: str, tokenizer: Any = None) -> None:
        self.name = name
        self.tokenizer = tokenizer or NoTokenizer()


@ENGINES.register("remote")
class RemoteEngine:
    """Samples over HTTP: one request a completion, each with its own seed, several at once.

    The server's log-probabilities are those at temperature 1; they are kept when that is the sampling temperature (or
    it is greedy). Servers take stop strings off the text; one that says which it was (vLLM) has it put back, and
    `extra_body={include_stop_str_in_output: true}` asks vLLM to leave it.

    Args:
        url: base address, up to and with /v1.
        model: what the server calls the model.
        api: "completions" sends the prompt as text; "chat" sends it as the user's message, and the server applies the
            model's chat template.
        concurrency: requests in flight.
        logprobs: ask for the log-probabilities of the tokens.
        send_seed: send each completion's seed (modulo 2^31); off for servers that refuse it.
        system: system message, for `api="chat"`.
        extra_body: further keys of the request; null takes a key out.
        api_key_env, timeout, max_retries, backoff, max_backoff, requests_per_minute: see `Endpoint`.
    """

    exact_logps = False

    def __init__(
        self,
        *,
        url: str | None,
        model: str | None,
        api: str = "completions",
        concurrency: int = 8,
        logprobs: bool = False,
        send_seed: bool = True,
        system: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **endpoint: Any,
    ) -> None:
        if api not in APIS:
            raise ValueError(f"rollout.api: found {api!r}.{did_you_mean(api, APIS)} Expected one of {', '.join(APIS)}")
        if not isinstance(model, str) or not model:
            raise ValueError(f"rollout.model: expected what the server calls the model, found {model!r}")
        if concurrency < 1:
            raise ValueError(f"rollout.concurrency must be at least 1, found {concurrency}")
        if system is not None and api != "chat":
            raise ValueError("rollout.system goes with rollout.api=chat; with completions, put it in the prompt")
        check_options(Endpoint, endpoint, "rollout")
        self.endpoint = Endpoint(url, **endpoint)
        self.model, self.api, self.concurrency = model, api, concurrency
        self.logprobs, self.send_seed, self.system = logprobs, send_seed, system
        self.extra_body = dict(extra_body or {})

    def load_weights(self, policy: Any) -> None:
        """Accept the endpoint's own model.

        Raises:
            ValueError: a policy of this process, whose weights the server does not have.
        """
        if not isinstance(policy, RemoteModel):
            raise ValueError(
                f"rollout.name=remote samples from the weights that {self.endpoint.url} holds, not from this policy. "
                "Use rollout=local or rollout=transformers to train or evaluate a policy of this process"
            )

    def close(self) -> None:
        """Do nothing: connections last as long as their requests."""

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, on_completion: OnCompletion | None = None
    ) -> list[RolloutGroup]:
        """Draw completions; the first request that fails for good ends the others and is raised as EndpointError."""
        if self.api == "chat" and (prefilled := [p.prefill for p in prompts if p.prefill]):
            raise ValueError(
                f"prompt.prefill={prefilled[0]!r} cannot be sent as a message: leave it out, or use "
                "rollout.api=completions"
            )
        size = params.num_generations
        jobs = [
            (i, mix_seed(params.seed, prompt.problem.index, prompt.first_sample + g))
            for i, prompt in enumerate(prompts)
            for g in range(size)
        ]
        completions: dict[int, Completion] = {}

        def work(number: int, stopped: threading.Event) -> Completion:
            index, seed = jobs[number]
            return self._complete(prompts[index], params, seed, stopped)

        def tell(number: int, completion: Completion) -> None:
            if on_completion is not None:
                on_completion(jobs[number][0], completion)

        run_concurrently(work, range(len(jobs)), concurrency=self.concurrency, results=completions, on_result=tell)
        rollouts = [Rollout(completion=completions[n]) for n in range(len(jobs))]
        return [
            RolloutGroup(prompt=prompt, rollouts=tuple(rollouts[i * size : (i + 1) * size]))
            for i, prompt in enumerate(prompts)
        ]

    def _complete(self, prompt: Prompt, params: SamplingParams, seed: int, stopped: threading.Event) -> Completion:
        body = self._body(prompt, params, seed)
        text, finish, logps = self.endpoint.post(
            _PATHS[self.api], body, lambda found: self._parse(found, params), stopped=stopped
        )
        return Completion(
            text=text,
            logps=logps if params.temperature in (0, 1) else (),
            finish_reason="stop" if finish == "stop" else "length",
            prefill=prompt.prefill,
            seed=seed,
        )

    def _body(self, prompt: Prompt, params: SamplingParams, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": params.max_tokens, "temperature": params.temperature}
        if self.api == "chat":
            system = [{"role": "system", "content": self.system}] if self.system is not None else []
            body["messages"] = [*system, {"role": "user", "content": prompt.text}]
        else:
            body["prompt"] = prompt.text
        if params.top_p < 1:
            body["top_p"] = params.top_p
        if params.top_k > 0:
            body["top_k"] = params.top_k
        if params.stop:
            body["stop"] = list(params.stop)
        if self.send_seed:
            body["seed"] = seed % _SEEDS
        if self.logprobs:
            body["logprobs"] = True if self.api == "chat" else 1
        return {key: value for key, value in (body | self.extra_body).items() if value is not None}

    def _parse(self, found: Any, params: SamplingParams) -> tuple[str, str, tuple[float, ...]]:
        """Return text, finish reason and log-probabilities; ValueError says what an answer lacks."""
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError(f"expected an object with 'choices', found {str(found)[:120]!r}")
        choice = choices[0]
        finish = choice.get("finish_reason")
        if not isinstance(finish, str):
            raise ValueError(f"expected a 'finish_reason', found {str(choice)[:120]!r}")
        text = _message_text(choice) if self.api == "chat" else choice.get("text")
        if not isinstance(text, str):
            raise ValueError(f"expected the text of a completion, found {str(choice)[:120]!r}")
        stopped_by = choice.get("stop_reason")
        if finish == "stop" and stopped_by in params.stop and not text.endswith(stopped_by):
            text += stopped_by
        return _whole(text), finish, _logps(choice.get("logprobs"))


def _whole(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair: it has no UTF-8, so no file could hold it."""
    return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


def _message_text(choice: Mapping[str, Any]) -> str | None:
    """Return a chat message as one turn; servers with a reasoning parser keep the thinking in a field of its own."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str) and reasoning.strip():
        # The content is null when the answer was cut inside the thinking: the block stays open.
        return f"<think>\n{reasoning.strip()}\n" + (f"</think>\n\n{content}" if content else "")
    return content if isinstance(content, str) else None


def _logps(logprobs: Any) -> tuple[float, ...]:
    """Return the log-probabilities that an answer carries, in either API's shape; () without them."""
    if not isinstance(logprobs, dict):
        return ()
    values = logprobs.get("token_logprobs")
    if isinstance(logprobs.get("content"), list):
        values = [item.get("logprob") for item in logprobs["content"] if isinstance(item, dict)]
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return ()
    return tuple(float(v) for v in values)
