"""Runs `r1.train` in fresh processes without paying for its imports each time: they are done once, then it forks.

Reads one JSON object a line: argv, cwd, env, stdout, stderr, file_limit. Answers {"pid"} at once and {"pid", "code"}
when the process ends. A process ends with the status and the output that `python -m r1.train` would have.
"""

import json
import os
import resource
import select
import signal
import sys
import traceback


def child(request):
    import r1.train

    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdin = open(os.devnull)
    sys.path[:0] = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["r1/train.py", *request["argv"]]
    if request.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        r1.train.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(**message):
    print(json.dumps(message), flush=True)


def main():
    import r1.train  # noqa: F401

    running = set()
    buffer = ""
    while True:
        readable, _, _ = select.select([0], [], [], 0.05)
        if readable:
            data = os.read(0, 1 << 16).decode()
            if not data:
                return
            buffer += data
            *lines, buffer = buffer.split("\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    child(json.loads(line))
                running.add(pid)
                answer(pid=pid)
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.remove(pid)
                answer(pid=pid, code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
