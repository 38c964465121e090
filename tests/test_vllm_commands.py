"""`r1.evaluate`, `r1.sample` and `r1.diagnose` with a vLLM server, for which a stand-in answers.

vLLM itself is tried in test_vllm_commands_real.py.
"""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from vllm_stand_in import change, stand_in

from r1.config import compose_config
from r1.diagnose import diagnose
from r1.evaluate import evaluate
from r1.evaluation.samples import SampleFolder
from r1.models import tiny_llama
from r1.rollout import vllm_rows
from r1.rollout.endpoint import EndpointError
from r1.sample import sample

DATA = Path(__file__).parent / "data" / "benchmarks"
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "initializer_range": 0.2}
TASK = ["task=chain", "num_problems=6", "max_tokens=8"]
BENCHMARKS = ["benchmark=[gsm8k]", f"data_dir={DATA}", "limit=8", "k=2", "max_tokens=8"]
DRAWN = ("index", "sample", "completion", "num_tokens", "finish_reason", "verdict")


@contextmanager
def serving(**described):
    """Yield a server whose own weights are others, and the overrides by which it is asked."""
    with stand_in(tiny_llama(**SIZES, seed=3), max_model_len=2048, **described) as server:
        yield server, ["rollout=vllm", f"rollout.url={server.url}", "rollout.start_timeout=60"]


def run(folder, model, *overrides, name="evaluate"):
    command = {"evaluate": evaluate, "sample": sample, "diagnose": diagnose}[name]
    return command(compose_config([f"output_dir={folder}", f"model={model}", "device=cpu", *overrides], name=name))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What an unbroken evaluation returns, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with serving() as (_, vllm):
        return run(folder, model, *BENCHMARKS, *vllm), folder


def drawn(folder, name):
    return [{key: row[key] for key in DRAWN} for row in rows_of(folder, name)]


def rows_of(folder, name="gsm8k"):
    return SampleFolder(folder / "samples" / name).rows()


def test_a_task_is_evaluated_as_with_the_local_engine(tmp_path, model):
    with serving() as (_, vllm):
        mine = run(tmp_path / "vllm", model, *TASK, "temperature=0", *vllm)
    theirs = run(tmp_path / "local", model, *TASK, "temperature=0")
    assert mine["metrics"] == theirs["metrics"] and len(mine["problems"]) == 6
    assert drawn(tmp_path / "vllm", "chain") == drawn(tmp_path / "local", "chain")


def test_benchmarks_are_evaluated_as_with_the_local_engine(tmp_path, model):
    with serving() as (_, vllm):
        mine = run(tmp_path / "vllm", model, *BENCHMARKS, "temperature=0", *vllm)
    theirs = run(tmp_path / "local", model, *BENCHMARKS, "temperature=0")
    assert mine["benchmarks"] == theirs["benchmarks"]
    one, other = (drawn(tmp_path / name, "gsm8k") for name in ("vllm", "local"))
    assert one == other and len(one) == 16


def test_a_server_that_dies_amid_an_evaluation_costs_nothing(tmp_path, model, whole):
    with serving() as (server, vllm):
        server.faults = {("/v1/completions", number): (503, "") for number in (3, 11)}

        def lose_weights(path, number):
            if (path, number) in server.faults:
                server.version = "none"
                change(server.policy)

        server.on_request = lose_weights
        broken = run(tmp_path / "broken", model, *BENCHMARKS, "rollout.concurrency=1", "rollout.max_restarts=1", *vllm)
        assert server.count("/v1/completions") == 16 + 2 and server.count("/update_weights") == 3
    assert broken["benchmarks"] == whole[0]["benchmarks"]
    assert rows_of(tmp_path / "broken") == rows_of(whole[1])


def test_an_evaluation_that_ends_early_has_kept_what_came_and_goes_on_with_another_server(
    tmp_path, model, whole, monkeypatch
):
    with serving() as (server, vllm):
        server.faults = {("/v1/completions", 3): (400, "no")}
        with pytest.raises(EndpointError, match="400"):
            run(tmp_path / "broken", model, *BENCHMARKS, "rollout.concurrency=1", *vllm)
    assert len(rows_of(tmp_path / "broken")) == 3
    monkeypatch.setattr(vllm_rows, "_EVERY_SECONDS", 0.0)
    with serving() as (server, vllm):
        monkeypatch.setattr(SampleFolder, "append", interrupting(SampleFolder.append, after=2))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", model, *BENCHMARKS, "rollout.concurrency=1", *vllm)
        monkeypatch.undo()
    assert len(rows_of(tmp_path / "broken")) == 5
    with serving() as (server, vllm):
        other = ["rollout.timeout=60", "rollout.transfer=socket", "rollout.log=elsewhere", "rollout.max_restarts=0"]
        again = run(tmp_path / "broken", model, *BENCHMARKS, *other, *vllm)
        assert server.count("/v1/completions") == 16 - 5
    assert again["benchmarks"] == whole[0]["benchmarks"]
    assert rows_of(tmp_path / "broken") == rows_of(whole[1])


def interrupting(append, *, after):
    """Return `append` with Ctrl-C after some calls."""
    calls = []

    def call(self, row):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(row)
        append(self, row)

    return call


def test_answers_of_lost_weights_are_not_kept(tmp_path, model, whole, monkeypatch):
    monkeypatch.setattr(vllm_rows, "_EVERY_SECONDS", 0.0)
    with serving() as (server, vllm):

        def lose_weights(path, number):
            if path == "/v1/completions" and number == 3:
                server.version = "none"
                change(server.policy)

        server.on_request = lose_weights
        found = run(tmp_path / "lost", model, *BENCHMARKS, "rollout.concurrency=1", *vllm)
        assert server.count("/v1/completions") > 16  # what came of other weights is drawn again
    assert found["benchmarks"] == whole[0]["benchmarks"]
    assert rows_of(tmp_path / "lost") == rows_of(whole[1])


def test_samples_go_on_with_another_server_in_another_run_directory(tmp_path, model):
    overrides = [*TASK, "k=2", "shard_size=2", "filters.correct=null", "filters.well_formed=null"]
    overrides += ["filters.language=null", "filters.unique=null", "filters.max_repetition=null"]

    def draw(folder, out, *argv):
        return run(tmp_path / folder, model, *overrides, f"out={tmp_path / out}", *argv, name="sample")

    with serving() as (_, vllm):
        draw("whole", "whole.jsonl", *vllm)
    with serving() as (server, vllm):
        server.faults = {("/v1/completions", 4): (400, "no")}
        with pytest.raises(EndpointError, match="400"):
            draw("first", "broken.jsonl", "rollout.concurrency=1", *vllm)
    with serving() as (server, vllm):
        draw("second", "broken.jsonl", *vllm)
        assert server.count("/v1/completions") == 2  # of the last shard
    completions = [
        [json.loads(line)["messages"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("whole.jsonl", "broken.jsonl")
    ]
    assert completions[0] == completions[1] and len(completions[0]) == 12


def test_a_diagnosis_is_that_of_the_local_engine(tmp_path, model):
    overrides = ["task=chain", "num_problems=3", "num_tries=2", "max_tokens=8", "temperature=0"]
    with serving() as (_, vllm):
        mine = run(tmp_path / "vllm", model, *overrides, *vllm, name="diagnose")
    assert mine == run(tmp_path / "local", model, *overrides, name="diagnose") and mine["num_wrong"] == 3
