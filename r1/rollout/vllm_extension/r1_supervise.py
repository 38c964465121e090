"""Runs a command for as long as the process that started it lives: a server must not outlive its trainer.

    python r1_supervise.py PARENT_PID FOLDER command ...

It leads a session of its own, so that whatever the command started ends with it, also when the trainer was killed;
the command's folder is then removed too.
"""

import os
import shutil
import signal
import subprocess
import sys
import time


def main() -> None:
    """Start the command, wait for its end or the parent's, and end the whole session."""
    parent, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends the server itself
    child = subprocess.Popen(command)
    while child.poll() is None and os.getppid() == parent:
        time.sleep(0.2)
    group = os.getpgid(0)
    if os.getppid() != parent and os.fork() == 0:  # outside the session, so that somebody is left to clean up
        os.setsid()
        _clean_up(group, folder)
        return
    if os.getppid() != parent:
        time.sleep(10)  # until the child ends this process with the others
    os.killpg(group, signal.SIGKILL)


def _clean_up(group: int, folder: str) -> None:
    """End a process group and remove the folder that it worked in."""
    deadline = time.monotonic() + 10
    try:
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)
    except ProcessLookupError:
        pass
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
