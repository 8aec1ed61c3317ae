"""Trainings that the page starts: `sfumato fit` as a process of its own, which goes on when the studio ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfumato.checkpoint import write_text
from sfumato.errors import UserError
from sfumato.locks import writer
from sfumato.plain_json import to_json
from sfumato.studio.look import quiet_environment

INDEX = "trainings.json"
PLAN, REPORT = "plan.json", "report.html"
"""What `sfumato fit` writes into its folder at the start and at the end."""
SHOWN_BYTES = 20_000
PLAN_SECONDS = 300.0


@dataclass(frozen=True)
class FitSettings:
    """What the page asks of a training: a folder of images, where the run goes, about how long, further settings."""

    data: Path
    out: Path
    minutes: float
    settings: tuple[str, ...] = ()

    def command(self, *further: str) -> list[str]:
        """The words after `sfumato`."""
        words = ["fit", str(self.data), "--out", str(self.out), "--minutes", f"{self.minutes:g}"]
        return [*words, *further, *self.settings]


class Trainings:
    """The trainings started from the page, by the folder of their run; remembered in a file over a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._known = _read(folder / INDEX)

    def listed(self) -> list[dict[str, Any]]:
        """Each training as JSON, newest first: its run, command, state, the end of its output."""
        with self._lock:
            rows = [self._described(path, known) for path, known in self._known.items()]
        return sorted(rows, key=lambda one: -float(one["started"]))

    def start(self, wanted: FitSettings) -> dict[str, Any]:
        """Starts the command. Raises UserError where a process writes to that run already."""
        return self._start(str(wanted.out), wanted.command())

    def resume(self, out: Path) -> dict[str, Any]:
        """Starts the same command again, which continues the run. Raises UserError where that is not known."""
        known = self._known.get(str(out))
        command = known["command"] if known is not None else _command_of_fit(out)
        if command is None:
            raise UserError(f"{str(out)!r} was not started by `sfumato fit`: run its command again in the terminal")
        return self._start(str(out), list(command))

    def stop(self, out: Path) -> None:
        """Asks the process that trains in the run, whoever started it, to save and stop, as Ctrl-C does."""
        with self._lock:
            process = self._running.get(str(out))
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGINT)
                return
        pid = writer(out)
        if pid is None:
            known = self._known.get(str(out), {})
            pid = known.get("pid") if _is_ours(known.get("pid")) else None
        if pid is None or not _is_ours(pid):
            raise UserError(f"no process trains in {str(out)!r} now")
        os.kill(pid, signal.SIGINT)

    def _start(self, out: str, command: Sequence[str]) -> dict[str, Any]:
        with self._lock:
            process = self._running.get(out)
            if (process is not None and process.poll() is None) or writer(Path(out)) is not None:
                raise UserError(f"a training in {out!r} is running already: stop it first, or name another folder")
            with self._output(out).open("ab") as stream:
                stream.write(f"\n$ sfumato {' '.join(command)}\n".encode())
                stream.flush()
                started = subprocess.Popen(
                    [sys.executable, "-m", "sfumato", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=quiet_environment(),
                    start_new_session=True,
                )
            self._running[out] = started
            self._known[out] = {"command": list(command), "started": time.time(), "pid": started.pid}
            write_text(self._folder / INDEX, to_json(self._known, indent=1))
            return self._described(out, self._known[out])

    def _described(self, path: str, known: dict[str, Any]) -> dict[str, Any]:
        process = self._running.get(path)
        code = None if process is None else process.poll()
        running = code is None if process is not None else _is_ours(known.get("pid"))
        text = _tail(self._output(path))
        report = Path(path) / REPORT
        failed = code is not None and code not in (0, 130, 143, -signal.SIGINT)
        return {
            "path": path,
            "command": "sfumato " + " ".join(known["command"]),
            "started": known["started"],
            "state": "running" if running else "failed" if failed else "ended",
            "output": text,
            "report": str(report) if report.is_file() else None,
        }

    def _output(self, path: str) -> Path:
        return self._folder / f"{path.strip('/').replace('/', '-')[-120:]}.txt"


def can_train() -> bool:
    """Whether this installation has the command that the page starts."""
    return find_spec("sfumato.cli.fit") is not None


def plan(wanted: FitSettings) -> dict[str, Any]:
    """What `sfumato fit --dry-run` prints. Raises UserError with the command's own sentence."""
    command = [sys.executable, "-m", "sfumato", *wanted.command("--dry-run")]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PLAN_SECONDS, env=quiet_environment())
    except subprocess.TimeoutExpired:
        raise UserError("the plan took over five minutes: use `sfumato fit --dry-run` in the terminal") from None
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(lines[-1].removeprefix("sfumato: "))
    return {"text": ended.stdout.strip(), "command": "sfumato " + " ".join(wanted.command())}


def _command_of_fit(out: Path) -> list[str] | None:
    """The command that goes on with a fit of the terminal, from the plan in its folder; None where there is none."""
    try:
        plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
        data, settings = plan["data"], list(plan["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(data, str) or not all(isinstance(one, str) and "=" in one and one[0] != "-" for one in settings):
        return None
    return ["fit", data, "--out", str(out), *settings]


def _is_ours(pid: Any) -> bool:
    """Whether a process of this number runs sfumato; numbers are used again."""
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # no such file system: the number must do
    except OSError:
        return False
    return b"sfumato" in words


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - SHOWN_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        out: one
        for out, one in (known.items() if isinstance(known, dict) else ())
        if isinstance(one, dict) and isinstance(one.get("command"), list) and "started" in one
    }
