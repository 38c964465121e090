"""What r1 asks a vLLM server: completions as token ids, new weights, and what model it has."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from r1.rollout.endpoint import Endpoint, EndpointError, ServerGoneError
from r1.rollout.vllm_server import start_command
from r1.types import FinishReason, SamplingParams

Answer = tuple[list[int], list[float], FinishReason]  # token ids, their logps, why it ended


class VLLMClient:
    """Talks to one server.

    Args:
        url: its address, with or without /v1 at the end.
        model: what it calls the model; None takes the only one it has.
        endpoint: further arguments of `Endpoint`.
    """

    def __init__(self, url: str, *, model: str | None = None, **endpoint: Any) -> None:
        self.endpoint = Endpoint(url.rstrip("/").removesuffix("/v1"), **endpoint)
        quick = endpoint | {"timeout": min(10.0, endpoint.get("timeout", 10.0))}
        self._probe = Endpoint(self.endpoint.url, **quick)  # a server that hangs is not ready
        self.model = model
        self._never = threading.Event()

    def ready(self) -> bool:
        """Whether the server answers."""
        try:
            self._probe.get("/v1/models", lambda found: found, stopped=self._never)
        except EndpointError:
            return False
        return True

    def find_model(self) -> None:
        """Find out what the server calls its model.

        Raises:
            ValueError: it has none of the name asked for, or several and none was named.
        """
        names = self.endpoint.get("/v1/models", _model_names, stopped=self._never)
        if self.model is None and len(names) == 1:
            self.model = names[0]
        if self.model not in names:
            raise ValueError(
                f"rollout.model: {self.endpoint.url} serves {', '.join(map(repr, names))}, not {self.model!r}"
            )

    def describe(self) -> dict[str, Any]:
        """Return what the server's worker says of its model: config, dtype, max_model_len, logprobs_mode, device.

        Raises:
            ValueError: a vLLM server that r1 cannot push weights into; the message says how to start one.
        """
        try:
            return self._control("/collective_rpc", {"method": "r1_model"}, _description)
        except ServerGoneError:
            if not self.ready():
                raise
        except EndpointError as error:
            if "404" not in str(error):
                raise
        raise ValueError(
            f"rollout.url: {self.endpoint.url} answers, but takes no weights. Start it with\n    {start_command()}"
        )

    def push(self, update: Mapping[str, Any], version: str) -> None:
        """Have the server fetch new weights, and forget what it had cached of the old ones' work.

        Raises:
            EndpointError: it did not; a ServerGoneError where it is no longer there.
        """
        try:
            self._control("/start_weight_update", {})
        except ServerGoneError:
            # A trainer that was killed amid a push leaves it open: this one then takes its place.
            if not self.ready():
                raise
        self._control("/update_weights", {"update_info": {**update, "version": version}})
        self._control("/finish_weight_update", {"weight_version": version})
        if not self._control("/reset_prefix_cache", {}, lambda found: found["success"]):
            raise EndpointError(f"{self.endpoint.url} is at work for somebody else and keeps its prefix cache")

    def versions(self) -> set[str]:
        """Return the versions of the weights that the workers have, or began to take last; "none" before the first.

        The worker's own word: vLLM's `/weight_info` still names the old weights while new ones are being put in place.
        """
        return self._control("/collective_rpc", {"method": "r1_version"}, _versions)

    def complete(
        self, token_ids: tuple[int, ...], seed: int, params: SamplingParams, policy: Any, *, stopped: threading.Event
    ) -> list[Answer]:
        """Return the completions of one prompt; completion g is drawn from `seed` + g.

        Raises:
            EndpointError: no usable answer, or tokens that the policy does not have.
        """
        size = num_drawn(params)
        body = {
            "model": self.model,
            "prompt": list(token_ids),
            "n": size,
            "seed": seed,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "ignore_eos": True,  # what ends a completion is what the policy says, not the server's files
            "stop_token_ids": list(policy.eos_token_ids),
            "stop": list(params.stop),
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        answers = self.endpoint.post("/v1/completions", body, lambda found: _choices(found, size), stopped=stopped)
        vocab_size = policy.language_model.config.get_text_config(decoder=True).vocab_size
        for ids, _, _ in answers:
            if not all(0 <= token < vocab_size for token in ids) or len(ids) > params.max_tokens:
                raise EndpointError(
                    f"{self.endpoint.url} answered tokens that this policy does not have, or too many: {ids[:20]}"
                )
        return answers * (params.num_generations // size)

    def _control(self, path: str, body: Mapping[str, Any], parse: Any = lambda found: None) -> Any:
        return self.endpoint.post(path, body, parse, stopped=self._never)


def num_drawn(params: SamplingParams) -> int:
    """Return how many completions of a prompt are asked for: vLLM refuses to draw several that are all the same."""
    return 1 if params.temperature == 0 else params.num_generations


def _model_names(found: Any) -> list[str]:
    try:
        return [str(model["id"]) for model in found["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected a list of models, found {str(found)[:120]!r}") from error


def _description(found: Any) -> dict[str, Any]:
    try:
        result = found["results"][0]
        return {**result, "config": dict(result["config"])}
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"expected a model's description, found {str(found)[:120]!r}") from error


def _versions(found: Any) -> set[str]:
    try:
        return set(map(str, found["results"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected the version of each worker, found {str(found)[:120]!r}") from error


def _choices(found: Any, count: int) -> list[Answer]:
    """Return (token ids, logps, finish reason) of each completion, in order."""
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or len(choices) != count:
        raise ValueError(f"expected {count} completions, found {str(found)[:120]!r}")
    answers = {}
    for choice in choices:
        try:
            ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            if len(ids) != len(logps) or not ids or choice["finish_reason"] not in ("stop", "length"):
                raise ValueError
            answers[choice["index"]] = ([int(i) for i in ids], [float(v) for v in logps], choice["finish_reason"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected token_ids, their logprobs and a finish_reason, found {str(choice)[:200]!r}"
            ) from error
    if sorted(answers) != list(range(count)):
        raise ValueError(f"expected completions 0 to {count - 1}, found {sorted(answers)}")
    return [answers[index] for index in range(count)]
