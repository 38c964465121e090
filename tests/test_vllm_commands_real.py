"""`r1.evaluate` and `r1.sample` with vLLM itself, where R1_VLLM_PYTHON is an interpreter that has it."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from r1.evaluation.samples import SampleFolder
from r1.models import tiny_llama
from r1.rollout.vllm_server import start_command

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("R1_VLLM_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="R1_VLLM_PYTHON names no interpreter with vLLM")]

VLLM = ("rollout=vllm", f"rollout.python={PYTHON}")
BENCHMARK = ("benchmark=[chain]", "limit=100", "k=2", "max_tokens=200")
# Few requests at a time: the evaluation lasts long enough to be interrupted.
SLOWLY = ("rollout.concurrency=4",)
DRAWN = ("index", "sample", "completion", "num_tokens", "finish_reason", "verdict")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The run directory of an untrained model with heads that vLLM has kernels for on CPUs."""
    run = tmp_path_factory.mktemp("run")
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 96}
    tiny_llama(**sizes, initializer_range=0.2).save(run / "model")
    (run / "config.yaml").write_text("prompt: {name: plain, prefill: ''}\n")
    return str(run)


@pytest.fixture
def temporary():
    """A folder for temporary files with a short path, in which nothing may be left."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


class Command:
    """One of r1's commands at work."""

    def __init__(self, name, folder, model, *overrides, temporary=None):
        self.folder = folder
        argv = [sys.executable, "-m", f"r1.{name}", f"model={model}", "device=cpu", "num_threads=1", *overrides]
        env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"TMPDIR": str(temporary)} if temporary else {})
        folder.mkdir(exist_ok=True)
        self.log = folder / "output.txt"
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [*argv, f"hydra.run.dir={folder}"], cwd=ROOT, env=env, stdout=output, stderr=output
            )

    def ends(self, code=0):
        assert self.process.wait(400) == code, self.log.read_text()
        return self

    def server(self):
        """Return the session of its server, once there is one."""
        return until(lambda: next(iter(supervisors(self.process.pid)), None), self)

    def draws(self, num_bytes=0):
        """Wait until more than so many bytes of samples are there."""
        until(lambda: self.num_bytes() > num_bytes, self)

    def num_bytes(self):
        return sum(path.stat().st_size for path in self.folder.glob("samples/*/samples.jsonl"))

    @property
    def rows(self):
        return SampleFolder(self.folder / "samples" / "chain").rows()


def until(condition, command=None, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert command is None or command.process.poll() is None, command.log.read_text()
        time.sleep(0.02)
    return found


def processes():
    """Yield (pid, parent, session) of every process that is no zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            yield int(path.parent.name), int(fields[1]), int(fields[3])


def supervisors(parent):
    return [pid for pid, above, _ in processes() if above == parent and b"r1_supervise" in command_line(pid)]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def check_gone(session, temporary):
    until(lambda: all(found != session for _, _, found in processes()) and not list(temporary.iterdir()), seconds=30)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    return Command("evaluate", tmp_path_factory.mktemp("whole"), model, *BENCHMARK, *VLLM, *SLOWLY).ends()


def test_greedy_samples_and_verdicts_are_the_local_engines(model, tmp_path, temporary):
    argv = (*BENCHMARK, "temperature=0", "limit=50", "k=2", "max_tokens=24")
    mine = Command("evaluate", tmp_path / "vllm", model, *argv, *VLLM, temporary=temporary).ends()
    theirs = Command("evaluate", tmp_path / "local", model, *argv).ends()
    assert not list(temporary.iterdir())
    one, other = ([{key: row[key] for key in DRAWN} for row in command.rows] for command in (mine, theirs))
    assert one == other and len(one) == 100
    one, other = (json.loads((command.folder / "evaluation.json").read_text()) for command in (mine, theirs))
    assert one["benchmarks"] == other["benchmarks"]


def test_a_server_that_is_killed_amid_an_evaluation_costs_nothing(model, whole, tmp_path, temporary):
    command = Command("evaluate", tmp_path / "run", model, *BENCHMARK, *VLLM, *SLOWLY, temporary=temporary)
    first = command.server()
    command.draws()
    os.killpg(first, signal.SIGKILL)
    second = until(lambda: next((pid for pid in supervisors(command.process.pid) if pid != first), None), command)
    command.ends()
    check_gone(first, temporary)
    check_gone(second, temporary)
    assert command.rows == whole.rows and "is started again" in command.log.read_text()


def test_an_evaluation_that_is_interrupted_and_killed_ends_as_an_unbroken_one(model, whole, tmp_path, temporary):
    num_bytes = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)):
        command = Command("evaluate", tmp_path / "run", model, *BENCHMARK, *VLLM, *SLOWLY, temporary=temporary)
        session = command.server()
        command.draws(num_bytes)
        command.process.send_signal(number)
        command.ends(code)
        check_gone(session, temporary)
        num_bytes = command.num_bytes()
    command = Command("evaluate", tmp_path / "run", model, *BENCHMARK, *VLLM, *SLOWLY, temporary=temporary).ends()
    assert command.rows == whole.rows
    assert not list(temporary.iterdir())


def test_nothing_is_left_after_ctrl_c_while_the_server_starts(model, tmp_path, temporary):
    command = Command("sample", tmp_path / "run", model, "task=chain", *VLLM, temporary=temporary)
    session = command.server()
    command.process.send_signal(signal.SIGINT)
    command.ends(130)
    check_gone(session, temporary)


def test_a_server_that_cannot_start_leaves_its_reason_and_nothing_else(model, tmp_path, temporary):
    argv = ("task=chain", "+rollout.flags.no_such_flag=1", *VLLM)
    command = Command("evaluate", tmp_path / "run", model, *argv, temporary=temporary).ends(1)
    assert "error: the vLLM server did not start: its log says: error: unrecognized arguments" in (
        command.log.read_text()
    )
    assert not list(temporary.iterdir())


@contextmanager
def serving(folder, model):
    """Start a server by the command line that r1 tells its users, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = shlex.split(start_command())
    env = dict(word.split("=", 1) for word in words[:2])
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)}
    argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", f"{model}/model", "--port", str(port)]
    argv += ["--dtype", "float32", "--enforce-eager", *words[5:]]
    with (folder / "vllm.log").open("w") as output:
        process = subprocess.Popen(
            [PYTHON, *argv], env=os.environ | env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        until(lambda: "Application startup complete" in (folder / "vllm.log").read_text())
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_runs_already_serves_one_command_after_another(model, whole, tmp_path, temporary):
    with serving(temporary, model) as url:
        argv = ("rollout=vllm", f"rollout.url={url}")
        command = Command("evaluate", tmp_path / "run", model, *BENCHMARK, *argv, *SLOWLY)
        command.draws()
        command.process.send_signal(signal.SIGINT)
        command.ends(130)
        assert Command("evaluate", tmp_path / "run", model, *BENCHMARK, *argv, *SLOWLY).ends().rows == whole.rows
        filters = [f"filters.{key}=null" for key in ("correct", "well_formed", "language", "unique", "max_repetition")]
        sampling = ("task=chain", "num_problems=6", "k=2", "max_tokens=24", "temperature=0", *filters)
        Command("sample", tmp_path / "a", model, *sampling, f"out={tmp_path / 'a.jsonl'}", *argv).ends()
    Command("sample", tmp_path / "b", model, *sampling, f"out={tmp_path / 'b.jsonl'}").ends()
    mine, theirs = ([json.loads(line) for line in (tmp_path / name).open()] for name in ("a.jsonl", "b.jsonl"))
    assert [row["messages"] for row in mine] == [row["messages"] for row in theirs] and len(mine) == 12
