"""Processes of their own that begin with sfumato imported: a server imports it, and forks for each that a test starts.

An import of torch takes seconds, a fork none. So do imports that only happen while a training goes on: torch's
optimisers import `torch._dynamo`, the tracker imports TensorBoard.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from sfumato.cli import main; main(sys.argv[1:])"
"""The code of a process that is `sfumato` with its arguments."""
LAUNCHER = """
import atexit, os, runpy, signal, subprocess, sys, time
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.run import main

class Worker:
    def __init__(self, pid):
        self.pid, self.returncode = pid, None
    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode
    def wait(self, timeout):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a worker", timeout)
            time.sleep(0.01)
        return self.returncode

def work(words, environment):
    os.setsid()
    atexit._clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    assert words[1] == "-u", words
    if words[2] == "-m":
        sys.argv = list(words[3:])
        runpy.run_module(words[3], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words[2:])
        runpy.run_path(words[2], run_name="__main__")

def forked(handler, words, environment):
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Worker(pid)
    code = 1
    try:
        work(words, environment)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

SubprocessHandler._popen = forked
main(sys.argv[1:])
"""
"""The code of a process that is `torchrun` with its arguments; its workers are forks of it instead of new Pythons."""
SERVER = """
import gc, importlib, json, os, sys
gc.disable()
import torch
import torch._dynamo
import torch.utils.tensorboard
import runs
import sfumato.cli.training_runs
from sfumato.training import previews

torch.set_num_threads(1)
previews.PREVIEW_STEPS = 2  # as in conftest.py
gc.freeze()
gc.enable()
for line in sys.stdin:
    asked = json.loads(line)
    if "import" in asked:
        for name in asked["import"]:
            importlib.import_module(name)
        gc.freeze()
        print("imported", flush=True)
        continue
    if "poll" in asked:
        pid, status = os.waitpid(asked["poll"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else "running", flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(asked["environment"])
        sys.argv = ["-c", *asked["arguments"]]
        exec(compile(asked["code"], "<test>", "exec"), {"__name__": "__main__"})
        break
    print(pid, flush=True)
"""


def ranks(world: int = 2) -> list[dict[str, str]]:
    """The environments of processes that are to meet, as a launcher makes them."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    met = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**met, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


class Forked:
    """A process that a test started, with the usual methods of one."""

    def __init__(self, server: "Forks", pid: int, out: Path) -> None:
        self._server, self.pid, self._out = server, pid, out
        self.returncode: int | None = None

    @property
    def output(self) -> str:
        """Its output so far, errors included."""
        return self._out.read_text() if self._out.exists() else ""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            answer = self._server.ask({"poll": self.pid})
            self.returncode = None if answer == "running" else int(answer)
        return self.returncode

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit code. Fails with what it printed where it does not end."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                pytest.fail(f"no end in {timeout:g} s: {self.output[-2000:]}")
            time.sleep(0.01)
        return code

    def wait_for(self, text: str, timeout: float = 90.0) -> None:
        """Waits until it has printed the text. Fails with what it printed where it ends without."""
        end = time.monotonic() + timeout
        while text not in self.output:
            if self.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{text!r} was never printed: {self.output[-2000:]}")
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The server, started with the first process."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        self._server: subprocess.Popen[str] | None = None

    def start(self, code: str, arguments: Sequence[object] = (), **environment: str) -> Forked:
        """Runs Python code with these arguments in sys.argv; `environment` is added to that of the tests."""
        self._started += 1
        out = self._folder / f"{self._started}.txt"
        asked = {"code": code, "arguments": [*map(str, arguments)], "out": str(out), "environment": environment}
        return Forked(self, int(self.ask(asked)), out)

    def preload(self, *modules: str) -> None:
        """Imports modules in the server, for processes that need more than a training in one process does."""
        assert self.ask({"import": modules}) == "imported"

    def ask(self, asked: object) -> str:
        """The server's answer."""
        if self._server is None:
            paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
            environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes)  # type: ignore[call-overload]
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().strip()

    def end(self) -> None:
        """Ends the server, which ends no other process."""
        if self._server is not None:
            self._server.communicate()
