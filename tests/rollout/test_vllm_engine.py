"""The vLLM engine against a server on the loopback interface that holds the weights it is really sent."""

import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vllm_stand_in import change, greedy, prompts_of, stand_in, token_ids

from r1.config import compose_config, plain
from r1.prompts import TEMPLATES
from r1.recipe.parts import build_engine
from r1.rollout import ENGINES, vllm_rows
from r1.rollout.base import mix_seed
from r1.rollout.endpoint import EndpointError
from r1.rollout.vllm_client import VLLMClient
from r1.rollout.vllm_server import server_folder
from r1.types import SamplingParams

PARAMS = SamplingParams(num_generations=3, max_tokens=12, seed=5)
PLAIN = TEMPLATES.build("plain")
SUPERVISOR = Path(__file__).parents[2] / "r1" / "rollout" / "vllm_extension" / "r1_supervise.py"


def engine_of(server, **options):
    return ENGINES.build("vllm", url=server.url, **{"start_timeout": 60.0} | options)


def local_of(policy):
    engine = ENGINES.build("local")
    engine.load_weights(policy)
    return engine


@pytest.mark.parametrize("transfer", ["shared_memory", "socket"])
def test_the_weights_that_answer_are_those_that_were_pushed_last(make_policy, transfer):
    policy = make_policy()
    prompts = prompts_of(policy, PLAIN, 3)
    with stand_in(make_policy(seed=1)) as server:
        engine = engine_of(server, transfer=transfer)
        answers = []
        for _ in range(2):
            engine.load_weights(policy)
            answers.append(token_ids(engine.generate(prompts, greedy(PARAMS))))
            assert answers[-1] == token_ids(local_of(policy).generate(prompts, greedy(PARAMS)))
            change(policy)
        assert answers[0] != answers[1]
        assert server.count("/reset_prefix_cache") == 2
        assert server.version == engine.version


def test_groups_come_back_in_order_with_a_seed_logps_and_text_for_each_completion(make_policy):
    policy = make_policy()
    prompts = prompts_of(policy, PLAIN, 4)
    with stand_in(make_policy()) as server:
        engine = engine_of(server)
        engine.load_weights(policy)
        groups = engine.generate(prompts, PARAMS)
        bodies = {tuple(body["prompt"]): body for path, body in server.requests if path == "/v1/completions"}
        asked = [bodies[prompt.token_ids] for prompt in prompts]
    assert [g.prompt for g in groups] == prompts
    firsts = [mix_seed(5, i) >> 1 for i in range(4)]
    assert [body["seed"] for body in asked] == firsts and [body["n"] for body in asked] == [3] * 4
    assert [[r.completion.seed for r in g.rollouts] for g in groups] == [[f, f + 1, f + 2] for f in firsts]
    for group in groups:
        for rollout in group.rollouts:
            completion = rollout.completion
            assert len(completion.logps) == len(completion.token_ids) <= 12
            ended = completion.token_ids[-1] in policy.eos_token_ids
            assert ended == (completion.finish_reason == "stop")
            spoken = completion.token_ids[:-1] if ended else completion.token_ids
            assert completion.text == policy.tokenizer.decode(list(spoken), skip_special_tokens=True)


def test_weights_keep_the_servers_dtype_and_adapters_are_merged(make_policy):
    policy = make_policy()
    with stand_in(make_policy(seed=1)) as server:
        engine_of(server, dtype="bfloat16").load_weights(policy)
        sent = dict(server.policy.model.named_parameters())
        for name, parameter in policy.model.named_parameters():
            assert torch.equal(sent[name], parameter.bfloat16().float())


def test_greedy_completions_are_drawn_once_and_are_as_many_as_asked_for(make_policy):
    policy = make_policy()
    prompts, params = prompts_of(policy, PLAIN, 2), replace(PARAMS, temperature=0.0)
    with stand_in(make_policy(seed=1)) as server:
        engine = engine_of(server)
        engine.load_weights(policy)
        assert token_ids(engine.generate(prompts, params)) == token_ids(local_of(policy).generate(prompts, params))


# ------------------------------------------------------------------------------------------- a server that goes away


def test_only_what_is_missing_is_asked_again_when_the_server_comes_back(make_policy, caplog):
    policy = make_policy()
    prompts = prompts_of(policy, PLAIN, 4)
    with stand_in(make_policy()) as server:
        engine = engine_of(server, concurrency=1)
        engine.load_weights(policy)
        expected = token_ids(engine.generate(prompts, PARAMS))
        # The third request of the next four meets a broken server, which has lost its weights when it is back.
        server.faults = {("/v1/completions", 6): (503, "")}

        def lose_weights(path, number):
            if path == "/v1/completions" and number == 6:
                server.version = "none"
                change(server.policy)

        server.on_request = lose_weights
        with caplog.at_level(logging.WARNING):
            assert token_ids(engine.generate(prompts, PARAMS)) == expected
        assert server.count("/v1/completions") == 4 + 3 + 2
        assert server.count("/update_weights") == 2
        assert "Waiting for it" in caplog.text


def test_completions_are_handed_over_as_they_come_and_once_each(make_policy, monkeypatch):
    monkeypatch.setattr(vllm_rows, "_EVERY_SECONDS", 0.0)
    policy = make_policy()
    prompts = prompts_of(policy, PLAIN, 4)
    with stand_in(make_policy()) as server:
        engine = engine_of(server, concurrency=1)
        engine.load_weights(policy)
        told = []

        def tell(place, completion):
            told.append((place, completion, server.count("/v1/completions")))

        server.faults = {("/v1/completions", 2): (503, "")}
        groups = engine.generate(prompts, PARAMS, on_completion=tell)
    drawn = [(place, r.completion) for place, group in enumerate(groups) for r in group.rollouts]
    assert [(place, completion) for place, completion, _ in told] == drawn
    assert told[0][2] < 4  # before the last was asked for


def test_what_another_runs_weights_answered_is_not_handed_over(make_policy, monkeypatch):
    policy = make_policy()
    prompts = prompts_of(policy, PLAIN, 3)
    with stand_in(make_policy()) as server:
        engine = engine_of(server, concurrency=1)
        engine.load_weights(policy)
        told = []

        def push(path, number):
            if path == "/v1/completions" and number == 1:
                server.version = "other-1"

        server.on_request = push
        for seconds in (0.0, 60.0):
            monkeypatch.setattr(vllm_rows, "_EVERY_SECONDS", seconds)
            with pytest.raises(EndpointError, match="of another run"):
                engine.generate(prompts, PARAMS, on_completion=lambda *found: told.append(found))
        assert {place for place, _ in told} <= {0}  # what came before


def test_answers_of_a_server_that_was_started_anew_are_thrown_away(make_policy):
    policy = make_policy()
    prompts = prompts_of(policy, PLAIN, 2)
    with stand_in(make_policy()) as server:
        engine = engine_of(server)
        engine.load_weights(policy)
        expected = token_ids(engine.generate(prompts, PARAMS))
        change(server.policy)
        server.version = "none"
        assert token_ids(engine.generate(prompts, PARAMS)) == expected
        assert engine.connection.num_restarts == 1


def test_a_server_that_another_run_uses_is_refused_and_left_to_it(make_policy):
    policy, other = make_policy(), make_policy(seed=5)
    prompts = prompts_of(policy, PLAIN, 2)
    with stand_in(make_policy()) as server:
        first, second = engine_of(server), engine_of(server)
        first.load_weights(policy)

        def push_theirs(path, number):
            # Amid the first run's completions; they are answered while the push is still under way.
            if path == "/v1/completions" and number == 0:
                with pytest.raises(EndpointError, match="stays open"):
                    second.load_weights(other)

        server.faults = {("/finish_weight_update", 1): (400, "stays open")}
        server.on_request = push_theirs
        with pytest.raises(EndpointError, match=r"of another run.*A server serves one run"):
            first.generate(prompts, PARAMS)
        server.faults = {}
        second.load_weights(other)
        second.generate(prompts, PARAMS)
        assert server.count("/update_weights") == 3  # none of them the first run's in vain


def test_a_server_that_stays_broken_ends_in_one_error(make_policy):
    policy = make_policy()
    with stand_in(make_policy()) as server:
        engine = engine_of(server, max_restarts=1)
        engine.load_weights(policy)
        server.faults = {("/v1/completions", number): (500, "no memory") for number in range(100)}
        with pytest.raises(EndpointError, match=r"500.*no memory.*max_restarts=1"):
            engine.generate(prompts_of(policy, PLAIN, 1), PARAMS)


def test_a_server_that_is_away_for_too_long_is_an_error_that_says_so(make_policy):
    policy = make_policy()
    with stand_in(make_policy()) as server:
        engine = engine_of(server, start_timeout=0.2)
        engine.load_weights(policy)
    with nobody_at(server.server_port):
        with pytest.raises(EndpointError, match=r"cannot be reached.*did not come back in rollout.start_timeout=0.2 s"):
            engine.generate(prompts_of(policy, PLAIN, 1), PARAMS)


def test_a_closed_engine_waits_for_no_server(make_policy, caplog):
    policy = make_policy()
    with stand_in(make_policy()) as server:
        engine = engine_of(server, start_timeout=600.0)
        engine.load_weights(policy)
    with nobody_at(server.server_port), caplog.at_level(logging.WARNING):
        future = engine.submit(prompts_of(policy, PLAIN, 1), PARAMS)
        wait_until(lambda: "Waiting for it" in caplog.text)
        engine.close()
        with pytest.raises(EndpointError, match="The engine is closed"):
            future.result(timeout=120)


@contextmanager
def nobody_at(port=0):
    """Keep a port to which nobody listens from other processes, and yield its address."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", port))
        yield f"http://127.0.0.1:{kept.getsockname()[1]}"


def test_a_push_that_a_killed_trainer_left_open_is_taken_over(make_policy):
    policy = make_policy()
    with stand_in(make_policy(seed=1)) as server:
        server.faults = {("/start_weight_update", 0): (500, "start_weight_update called while already active")}
        engine = engine_of(server)
        engine.load_weights(policy)
        assert server.version == engine.version


def executable(folder, text):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def test_a_server_that_does_not_start_leaves_its_reason(make_policy, tmp_path):
    script = '[ "$1" = -c ] && exit 0; echo "INFO fine"; echo "ValueError: no such dtype"; echo "see above"; exit 1'
    engine = ENGINES.build("vllm", python=executable(tmp_path, script), log=str(tmp_path / "vllm.log"))
    with pytest.raises(EndpointError, match=r"did not start: its log says: ValueError: no such dtype \(.*vllm.log\)"):
        engine.load_weights(make_policy())


def test_a_server_that_is_never_ready_is_ended(make_policy, tmp_path, monkeypatch):
    def is_never_ready(client):
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        return False

    monkeypatch.setattr(VLLMClient, "ready", is_never_ready)
    script = f'[ "$1" = -c ] && exit 0; echo $$ > {tmp_path}/pid; exec sleep 600'
    engine = ENGINES.build(
        "vllm", python=executable(tmp_path, script), log=str(tmp_path / "vllm.log"), start_timeout=0.5
    )
    with pytest.raises(EndpointError, match=r"not ready in rollout.start_timeout=0.5 s"):
        engine.load_weights(make_policy())
    wait_until(lambda: has_ended(int((tmp_path / "pid").read_text())))


def test_neither_a_server_nor_its_folder_outlives_its_trainer(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "socket").touch()
    server = [sys.executable, str(SUPERVISOR)]
    code = f"import os, subprocess; subprocess.Popen({server} + [str(os.getpid()), '{folder}', 'sh', '-c', \
        'echo $$ > {tmp_path}/pid; exec sleep 600'], start_new_session=True); input()"
    trainer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    trainer.kill()
    trainer.wait()
    wait_until(lambda: has_ended(pid) and not folder.exists())


def test_the_folder_of_a_server_is_short_enough_for_a_socket_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 25)))
    folder = server_folder()
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(folder / str(uuid.uuid4())))
    finally:
        shutil.rmtree(folder)


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------- what users get wrong


def refusal(engine, policy, error=ValueError):
    with pytest.raises(error) as caught:
        engine.load_weights(policy)
    return str(caught.value)


def test_a_server_that_is_not_there_is_one_error(make_policy):
    with nobody_at() as url:
        message = refusal(ENGINES.build("vllm", url=url), make_policy(), EndpointError)
    assert "cannot be reached: [Errno 111] Connection refused" in message and "Is the server running" in message


def test_a_wrong_model_name_is_one_error(make_policy):
    with stand_in(make_policy()) as server:
        message = refusal(engine_of(server, model="llama"), make_policy())
    assert message == f"rollout.model: {server.url} serves 'stand-in', not 'llama'"


def test_a_server_of_another_model_is_refused_with_the_sizes_that_differ(make_policy):
    with stand_in(make_policy(intermediate_size=64)) as server:
        message = refusal(engine_of(server), make_policy())
    assert message == f"rollout.url: {server.url} serves another model: intermediate_size is 64 there and 48 here"


def test_a_server_with_another_vocabulary_is_refused(make_policy):
    with stand_in(make_policy()) as server:
        server.described["config"]["vocab_size"] = 32000
        assert "vocab_size is 32000 there and 264 here" in refusal(engine_of(server), make_policy())


def test_a_server_that_takes_no_weights_is_refused_with_the_command_that_starts_one(make_policy):
    with stand_in(make_policy()) as server:
        for status in (404, 500):
            server.faults = {("/collective_rpc", number): (status, "{}") for number in range(9)}
            message = refusal(engine_of(server), make_policy())
            assert "answers, but takes no weights. Start it with" in message
            assert "--worker-extension-cls r1_vllm_worker.TrainerWeights" in message


def test_a_server_that_reports_other_logps_is_refused(make_policy):
    with stand_in(make_policy(), logprobs_mode="raw_logprobs") as server:
        assert "has logprobs_mode=raw_logprobs" in refusal(engine_of(server), make_policy())


def test_heads_that_vllm_cannot_run_on_a_cpu_are_refused_before_they_kill_it(make_policy):
    with stand_in(make_policy(), device="cpu") as server:
        message = refusal(engine_of(server), make_policy())
    assert message == (
        "rollout.name=vllm: on a CPU, vLLM cannot serve this model: its attention heads have 16 dimensions, and vLLM "
        "runs multiples of 32, 80 and 112. Use rollout=local"
    )


def test_heads_that_a_cpu_build_cannot_run_are_refused_before_it_is_started(make_policy, tmp_path):
    script = f'[ "$1" = -c ] && exit 3; touch {tmp_path}/started; exit 1'
    engine = ENGINES.build("vllm", python=executable(tmp_path, script), log=str(tmp_path / "vllm.log"))
    assert "its attention heads have 16 dimensions" in refusal(engine, make_policy())
    assert not (tmp_path / "started").exists() and not (tmp_path / "vllm.log").exists()


@pytest.mark.parametrize("text", ["<html>hello</html>", "[1, 2]", '{"data": 3}'])
def test_a_server_that_answers_nonsense_is_one_error(make_policy, text):
    with stand_in(make_policy()) as server:
        server.faults = {("/v1/models", 0): (200, text)}
        message = refusal(engine_of(server), make_policy(), EndpointError)
    assert "answered nonsense: expected" in message and "Is rollout.url an OpenAI-compatible endpoint?" in message


@pytest.mark.parametrize(
    ("change_answer", "message"),
    [
        (lambda a: {"choices": a["choices"][:2]}, "expected 3 completions"),
        (lambda a: {"choices": [{**c, "token_ids": None} for c in a["choices"]]}, "expected token_ids"),
        (lambda a: {"choices": [{**c, "logprobs": None} for c in a["choices"]]}, "their logprobs"),
        (lambda a: {"choices": [{**c, "finish_reason": "abort"} for c in a["choices"]]}, "a finish_reason"),
        (lambda a: {"choices": [{**c, "index": 0} for c in a["choices"]]}, "expected completions 0 to 2"),
        (
            lambda a: {"choices": [{**c, "token_ids": [999] * len(c["token_ids"])} for c in a["choices"]]},
            "tokens that this policy does not have",
        ),
    ],
)
def test_completions_that_are_not_whole_are_one_error(make_policy, change_answer, message):
    policy = make_policy()
    with stand_in(make_policy()) as server:
        engine = engine_of(server)
        engine.load_weights(policy)
        server.changes = change_answer
        with pytest.raises(EndpointError, match=message):
            engine.generate(prompts_of(policy, PLAIN, 1), PARAMS)


def test_a_prompt_too_long_for_the_server_is_an_error_before_anything_is_asked(make_policy):
    policy = make_policy()
    with stand_in(make_policy(), max_model_len=13) as server:
        engine = engine_of(server)
        engine.load_weights(policy)
        with pytest.raises(ValueError, match=r"max_tokens=12 after a prompt of \d+ tokens .* 13 tokens"):
            engine.generate(prompts_of(policy, PLAIN, 1), PARAMS)
        assert server.count("/v1/completions") == 0


def test_an_interpreter_without_vllm_is_one_error(make_policy, tmp_path):
    hint = "scripts/setup_vllm.sh DIR"
    without = executable(tmp_path, "exit 1")
    assert f"{without} has no vLLM; {hint}" in refusal(ENGINES.build("vllm", python=without), make_policy())
    missing = refusal(ENGINES.build("vllm", python="/no/such/python"), make_policy())
    assert "no interpreter '/no/such/python'" in missing and hint in missing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": "nccl"}, "rollout.transfer: found 'nccl'"),
        ({"dtype": "bfloat61"}, "rollout.dtype: found 'bfloat61'. Did you mean 'bfloat16'"),
        ({"url": "localhost:8000"}, "rollout.url: expected an address"),
        ({"url": "http://127.0.0.1:1", "python": "python"}, "takes no python"),
        ({"concurrency": 0}, "rollout.concurrency must be at least 1"),
        ({"max_restarts": -1}, "rollout.max_restarts must be at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ENGINES.build("vllm", **options)


def test_flags_and_variables_of_a_server_can_be_given_as_the_readme_has_them():
    overrides = ["rollout=vllm", "rollout.flags={tensor_parallel_size: 2}", "rollout.env={CUDA_VISIBLE_DEVICES: 1}"]
    engine = build_engine(plain(compose_config(["experiment=r1_zero_qwen2_5_7b", *overrides])))
    assert engine._settings["flags"] == {"tensor_parallel_size": 2}
    assert engine._settings["env"] == {"CUDA_VISIBLE_DEVICES": 1}


def num_open_files(inode):
    found = 0
    for file in os.listdir("/proc/self/fd"):
        try:
            found += os.fstat(int(file)).st_ino == inode
        except OSError:  # of another thread, which has closed it by now
            pass
    return found


def test_closing_gives_the_memory_back_and_the_engine_can_start_anew(make_policy):
    policy = make_policy()
    with stand_in(make_policy()) as server:
        engine = engine_of(server)
        engine.load_weights(policy)
        memory = os.fstat(engine.buffer._file).st_ino
        assert num_open_files(memory) == 2  # the memory, and its mapping
        engine.close()
        engine.close()
        assert num_open_files(memory) == 0
        engine.load_weights(policy)
        assert len(engine.generate(prompts_of(policy, PLAIN, 1), replace(PARAMS, max_tokens=1))) == 1
        engine.close()
