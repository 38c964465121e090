"""A vLLM server of our own: started in its own environment, ended with this process, its log kept."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EXTENSION = Path(__file__).parent / "vllm_extension"
NAME = "r1"  # what the server calls the model
_CAUSE = re.compile(r"(?:\w+Error|error): .+|No module named .+")
_SOCKET_PATH = 100  # bytes that the path of a Unix socket may have on every system (108 on Linux, the end included)
_NOT_A_CAUSE = re.compile(r"\b(?:WARNING|INFO)\b|EngineDeadError|root cause|Engine core initialization failed")


class VLLMServer:
    """One server process and its descendants.

    Args:
        python: interpreter of an environment that has vLLM.
        policy: whose architecture, tokenizer and end-of-sequence tokens it serves; the weights come later.
        flags: of `vllm serve`, name -> value; True is a flag alone, None and False leave it out.
        arguments: further words for its command line.
        env: variables added to its environment.
        log: file that its output is appended to.
    """

    def __init__(
        self,
        *,
        python: str,
        policy: Any,
        flags: Mapping[str, Any],
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log: Path,
    ) -> None:
        self.log = log
        self._folder = server_folder()
        model = self._folder / "model"
        model.mkdir()
        policy.save_without_weights(model)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--model", str(model), "--served-model-name", NAME, *server_words(), *_flag_words(flags)]
        words += list(arguments)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"\n$ {shlex.join(words)}\n".encode())
            output.flush()
            self._start_of_log = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, str(EXTENSION / "r1_supervise.py"), str(os.getpid()), str(self._folder), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(temporary_variables(self._folder) | dict(env or {})),
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _end, self._process, self._folder, os.getpid())

    @property
    def pid(self) -> int:
        """Process that leads the server's session."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        """Return the likely cause of death from the log, and where the log is."""
        with self.log.open("rb") as file:
            file.seek(self._start_of_log)
            text = file.read().decode("utf-8", errors="replace")
        told = [line for line in text.splitlines() if not _NOT_A_CAUSE.search(line)]
        causes = [cause for line in told for cause in _CAUSE.findall(line)]
        if not causes:
            return f"its log names no cause, so that it was perhaps killed ({self.log})"
        words = causes[-1].strip()[:300]
        return f"its log says: {words} ({self.log})"


def server_folder() -> Path:
    """Make a folder for what a server leaves in the folder for temporary files, sockets among them."""
    # A name there is as long as a UUID. Where the usual folder's path is too long for a socket in it, the system's.
    longest = len(os.fsencode(tempfile.gettempdir())) + len("/r1_vllm_12345678/") + 36
    return Path(tempfile.mkdtemp(prefix="r1_vllm_", dir=None if longest <= _SOCKET_PATH else "/tmp"))


def temporary_variables(folder: Path) -> dict[str, str]:
    """Return the environment variables by which vLLM puts sockets and other temporary files into a folder."""
    return {"TMPDIR": str(folder), "VLLM_RPC_BASE_PATH": str(folder)}


def server_words() -> list[str]:
    """Return the words that a `vllm serve` command line needs so that r1 can push weights into it and read logps."""
    transfer, extension = '{"backend":"r1"}', "r1_vllm_worker.TrainerWeights"
    return [
        *("--weight-transfer-config", transfer, "--worker-extension-cls", extension),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        *("--enable-prefix-caching", "--disable-uvicorn-access-log"),
    ]


def start_command() -> str:
    """Return the command by which a user starts a server that r1 can use."""
    words = shlex.join(["vllm", "serve", "MODEL", *server_words()])
    return f"VLLM_SERVER_DEV_MODE=1 PYTHONPATH={EXTENSION} {words}"


def _flag_words(flags: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHONHOME"))}
    # Ranks of the trainer must not look like ranks of the server.
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        own.pop(key, None)
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}
    defaults |= {"PYTHONPATH": str(EXTENSION)}
    return own | defaults | {key: str(value) for key, value in changes.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen[bytes], folder: Path, owner: int) -> None:
    if os.getpid() != owner:  # a forked child has inherited the finalizer, not the server
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
