"""Trace files and their manifests: whole or not there, and a changed file is noticed."""

import errno
import json

import pytest

from r1.data.traces import FileTraces
from r1.models import byte_tokenizer
from r1.prompts import TEMPLATES
from r1.recipe.traces import ManifestError, TraceWriter, manifest_path, trace_row, verify_manifest
from r1.types import Completion, Problem, Prompt, Rollout, RolloutGroup


def one_row(turn="<think>1 and 1</think><answer>2</answer>", **changes):
    problem = Problem(prompt="1+1?", answer="2", index=4, task="sums", metadata={"level": 1})
    rollout = Rollout(
        completion=Completion(text=turn, token_ids=(1, 2), seed=9),
        rewards={"accuracy": 1.0, "format": None},
        reward=1.0,
    )
    group = RolloutGroup(prompt=Prompt(problem=problem, text="1+1?", token_ids=()), rollouts=(rollout,))
    return trace_row(group, rollout, source="teacher@abc", **changes)


def written(path, *rows):
    with TraceWriter(path) as writer:
        for row in rows:
            writer.write(row)
        writer.manifest = {"seed": 7}
    return path


def test_a_row_holds_the_messages_the_parts_of_the_turn_and_what_it_earned():
    assert one_row() == {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "<think>1 and 1</think><answer>2</answer>"},
        ],
        "think": "1 and 1",
        "answer": "2",
        "rewards": {"accuracy": 1.0, "format": None},
        "reward": 1.0,
        "problem": {
            "id": Problem(prompt="1+1?", answer="").id,
            "index": 4,
            "task": "sums",
            "prompt": "1+1?",
            "answer": "2",
            "metadata": {"level": 1},
        },
        "source": "teacher@abc",
        "sample": {"seed": 9, "finish_reason": "stop", "num_tokens": 2},
    }
    assert one_row("<think>a</think>It is \\boxed{2}.")["answer"] == "It is \\boxed{2}."
    assert one_row(refused_by="unique")["refused_by"] == "unique"


def test_what_is_written_is_read_as_traces(tmp_path):
    path = written(tmp_path / "t.jsonl", one_row())
    dataset = FileTraces(byte_tokenizer(), path=str(path), template=TEMPLATES.build("plain"), shape="answer")
    trace = dataset.trace(0)
    assert (trace.prompt, trace.completion) == ("1+1?", "<think>1 and 1</think><answer>2</answer>")
    assert trace.problem == Problem(prompt="1+1?", answer="2", index=4, task="sums", metadata={"level": 1})
    assert (trace.source, trace.rewards) == ("teacher@abc", {"accuracy": 1.0, "format": None})


def test_the_manifest_knows_its_file(tmp_path):
    path = written(tmp_path / "t.jsonl", one_row(), one_row())
    assert manifest_path(path) == tmp_path / "t.manifest.json"
    manifest = verify_manifest(path)
    assert verify_manifest(manifest_path(path)) == manifest
    assert (manifest["seed"], manifest["data"]["num_rows"]) == (7, 2)
    assert manifest["data"]["num_bytes"] == path.stat().st_size
    assert {"version", "time"} <= set(manifest)


def test_a_file_that_was_changed_is_refused_wherever_it_is_read(tmp_path):
    path = written(tmp_path / "t.jsonl", one_row())
    path.write_text(path.read_text().replace("1 and 1", "1 or 1"))
    with pytest.raises(ManifestError, match=r"t\.jsonl does not match t\.manifest\.json.*delete the manifest"):
        verify_manifest(path)
    with pytest.raises(ManifestError, match="does not match"):
        FileTraces(byte_tokenizer(), path=str(path))
    manifest_path(path).unlink()
    assert len(FileTraces(byte_tokenizer(), path=str(path))) == 1


def test_manifests_that_are_missing_or_unreadable_are_named(tmp_path):
    path = written(tmp_path / "t.jsonl", one_row())
    manifest_path(path).write_text("{")
    with pytest.raises(ManifestError, match="not a readable manifest"):
        verify_manifest(path)
    manifest_path(path).write_text('{"data": 3}')
    with pytest.raises(ManifestError, match=r"expected data\.file"):
        verify_manifest(path)
    manifest_path(path).unlink()
    with pytest.raises(ManifestError, match=r"no manifest t\.manifest\.json"):
        verify_manifest(path)
    written(path, one_row())
    path.unlink()
    with pytest.raises(ManifestError, match=r"describes 't\.jsonl', which is not there"):
        verify_manifest(path)


def test_a_failure_leaves_what_was_there_before(tmp_path):
    path = written(tmp_path / "t.jsonl", one_row())
    before = path.read_bytes(), manifest_path(path).read_bytes()
    with pytest.raises(OSError, match="full"), TraceWriter(path) as writer:
        writer.write(one_row())
        raise OSError(errno.ENOSPC, "disk full")
    with TraceWriter(path) as writer:
        writer.discard()
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.jsonl", "t.manifest.json"]


def test_writing_again_gives_the_same_bytes(tmp_path):
    first = written(tmp_path / "a.jsonl", one_row()).read_bytes()
    assert written(tmp_path / "a.jsonl", one_row()).read_bytes() == first
    assert json.loads(first)["answer"] == "2"


def test_only_jsonl_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.jsonl"):
        TraceWriter(tmp_path / "t.json")
