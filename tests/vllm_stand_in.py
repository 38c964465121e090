"""A server that speaks vLLM's protocol over real HTTP and answers with the weights that it was really sent.

It takes the weights out of the trainer's memory as r1's extension of vLLM does, puts them into a model of its own, and
lets the local engine complete. vLLM itself is tried in test_vllm_server.py.
"""

import mmap
import os
import socket
from dataclasses import replace

import torch
from http_server import Server, running

from r1.rollout import ENGINES
from r1.types import Problem, Prompt, SamplingParams


class StandIn(Server):
    """Holds a model and answers; `faults` maps (path, number of the request to that path) to a status and a text."""

    def __init__(self, policy, **described):
        super().__init__(self.handle)
        self.policy, self.engine = policy, ENGINES.build("local")
        self.version, self.requests, self.faults = "none", [], {}
        self.on_request = lambda path, number: None
        self.changes = lambda answer: answer
        config = policy.model.config.to_dict()
        self.described = {
            "config": {key: value for key, value in config.items() if isinstance(value, int | str | bool)},
            "dtype": "float32",
            "max_model_len": 200,
            "logprobs_mode": "processed_logprobs",
            "device": "cuda",
            **described,
        }

    def count(self, path):
        return sum(found == path for found, _ in self.requests)

    def load(self, update):
        self.version = update["version"]
        if "path" in update:
            file = os.open(update["path"], os.O_RDONLY)
            buffer = mmap.mmap(file, update["num_bytes"], access=mmap.ACCESS_COPY)
            os.close(file)
        else:
            buffer = bytearray()
            with socket.create_connection(update["address"]) as connection:
                connection.sendall(update["secret"].encode())
                while len(buffer) < update["num_bytes"]:
                    buffer += connection.recv(1 << 20)
        parameters = dict(self.policy.model.named_parameters())
        with self.lock, torch.no_grad():
            for name, dtype, shape, offset in update["tensors"]:
                kind = getattr(torch, dtype)
                count = parameters[name].numel()
                parameters[name].copy_(torch.frombuffer(buffer, dtype=kind, count=count, offset=offset).view(shape))

    def complete(self, body):
        prompt = Prompt(problem=Problem(prompt="", answer=""), text="", token_ids=tuple(body["prompt"]))
        top_k = max(0, body["top_k"])
        params = SamplingParams(
            num_generations=body["n"],
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=top_k,
            stop=tuple(body["stop"]),
            seed=body["seed"],
        )
        with self.lock:
            self.policy.eos_token_ids = tuple(body["stop_token_ids"])
            self.engine.load_weights(self.policy)
            (group,) = self.engine.generate([prompt], params)
        return {
            "choices": [
                {
                    "index": i,
                    "token_ids": list(r.completion.token_ids),
                    "logprobs": {"token_logprobs": list(r.completion.logps)},
                    "finish_reason": r.completion.finish_reason,
                }
                for i, r in reversed(list(enumerate(group.rollouts)))
            ]
        }

    def handle(self, request, body):
        with self.lock:
            number = self.count(request.path)
            self.requests.append((request.path, body))
        self.on_request(request.path, number)
        status, text = self.faults.get((request.path, number), (200, None))
        if request.path == "/v1/completions" and body["temperature"] == 0 and body["n"] > 1:
            status, text = 400, "n must be 1 when using greedy sampling"
        return status, self.say(request.path, body) if text is None else text.encode()

    def say(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": "stand-in"}]}
        if path == "/collective_rpc":
            return {"results": [self.version if body["method"] == "r1_version" else self.described]}
        if path == "/update_weights":
            self.load(body["update_info"])
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/v1/completions":
            return self.changes(self.complete(body))
        return {"message": "done"}


def stand_in(policy, **described):
    """Return a context with a running stand-in around a model of its own."""
    return running(StandIn(policy, **described))


def prompts_of(policy, template, count):
    return [template.render(Problem(prompt=f"q{i}", answer="", index=i), policy.tokenizer) for i in range(count)]


def token_ids(groups):
    return [[r.completion.token_ids for r in group.rollouts] for group in groups]


def greedy(params):
    return replace(params, temperature=0.0, num_generations=1)


def change(policy, seed=0):
    """Move every weight, as an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
