"""Trainings that the page starts: `sfumato fit` as a process of its own, which continues when the studio ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
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
"""Files that `sfumato fit` writes at the start and at the end."""
PHASE = re.compile(r"^\[\d+/\d+\] (.+)$", re.MULTILINE)
"""The line that it prints when a phase begins."""
SHOWN_BYTES = 20_000
SHOWN_SECONDS = 3600.0
PLAN_SECONDS = 300.0


@dataclass(frozen=True)
class FitSettings:
    """The page's request for a training: a folder of images, where the run goes, about how long, further settings."""

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

    def listed(self, runs: Iterable[Path] = ()) -> list[dict[str, Any]]:
        """Each training as JSON, newest first: its folder, command, state, phase, the end of its output.

        runs: folders of runs; those of a fit that was started in a terminal are listed too.
        """
        with self._lock:
            rows = [self._described(path, known) for path, known in self._known.items()]
            others = {str(run.parent) for run in runs if (run.parent / PLAN).is_file()} - set(self._known)
        rows += [row for out in others if (row := _of_terminal(Path(out))) is not None]
        return sorted(filter(_is_shown, rows), key=lambda one: -float(one["started"]))

    def start(self, wanted: FitSettings) -> dict[str, Any]:
        """Starts the command. Raises UserError where a process writes to that run already."""
        return self._start(str(wanted.out), wanted.command())

    def resume(self, out: Path) -> dict[str, Any]:
        """Starts the same command again, which continues the run. Raises UserError where that is not known."""
        known = self._known.get(str(out))
        if known is not None:
            return self._start(str(out), known["command"], known.get("folder"))
        found = _command_of_fit(out)
        if found is None:
            raise UserError(f"{str(out)!r} was not started by `sfumato fit`: run its command again in the terminal")
        return self._start(str(out), *found)

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

    def _start(self, out: str, command: Sequence[str], folder: str | None = None) -> dict[str, Any]:
        """Starts a command in `folder`, where its relative paths hold; None is the studio's own."""
        with self._lock:
            process = self._running.get(out)
            if (process is not None and process.poll() is None) or writer(Path(out)) is not None:
                raise UserError(f"a training in {out!r} is running already: stop it first, or name another folder")
            with self._output(out).open("ab") as stream:
                stream.write(f"\n$ {shlex.join(['sfumato', *command])}\n".encode())
                stream.flush()
                started = subprocess.Popen(
                    [sys.executable, "-m", "sfumato", *command],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=quiet_environment(),
                    start_new_session=True,
                )
            self._running[out] = started
            known = {"command": list(command), "folder": folder, "started": time.time(), "pid": started.pid}
            self._known[out] = known
            write_text(self._folder / INDEX, to_json(self._known, indent=1))
            return self._described(out, known)

    def _described(self, path: str, known: dict[str, Any]) -> dict[str, Any]:
        process = self._running.get(path)
        code = None if process is None else process.poll()
        running = code is None if process is not None else _is_ours(known.get("pid"))
        failed = code is not None and code not in (0, 130, 143, -signal.SIGINT)
        state = "running" if running else "failed" if failed else "ended"
        return _row(path, known["command"], known["started"], state, _tail(self._output(path)))

    def _output(self, path: str) -> Path:
        return self._folder / f"{path.strip('/').replace('/', '-')[-120:]}.txt"


def can_train() -> bool:
    """Whether this installation has the command that the page starts."""
    return find_spec("sfumato.cli.fit") is not None


def plan(wanted: FitSettings) -> dict[str, Any]:
    """The output of `sfumato fit --dry-run`. Raises UserError with the command's own sentence."""
    command = [sys.executable, "-m", "sfumato", *wanted.command("--dry-run")]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PLAN_SECONDS, env=quiet_environment())
    except subprocess.TimeoutExpired:
        raise UserError("the plan took over five minutes: use `sfumato fit --dry-run` in the terminal") from None
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(lines[-1].removeprefix("sfumato: "))
    return {"text": ended.stdout.strip(), "command": shlex.join(["sfumato", *wanted.command()])}


def _is_shown(row: dict[str, Any]) -> bool:
    """Not for long, if it ended before it wrote anything."""
    return row["state"] == "running" or Path(row["path"]).is_dir() or time.time() - row["started"] < SHOWN_SECONDS


def _row(path: str, command: Sequence[str], started: float, state: str, output: str) -> dict[str, Any]:
    """A training as JSON; `phase` is what a running one does now."""
    report = Path(path) / REPORT
    phases = PHASE.findall(output)
    return {
        "path": path,
        "command": shlex.join(["sfumato", *command]),
        "started": started,
        "state": state,
        "phase": phases[-1] if phases and state == "running" else None,
        "output": output,
        "report": str(report) if report.is_file() else None,
    }


def _of_terminal(out: Path) -> dict[str, Any] | None:
    """A fit that was started in a terminal, as JSON; None where its plan cannot be read."""
    found = _command_of_fit(out)
    if found is None:
        return None
    state = "running" if writer(out) is not None else "ended"
    return _row(str(out), found[0], (out / PLAN).stat().st_mtime, state, "")


def _command_of_fit(out: Path) -> tuple[list[str], str | None] | None:
    """The command that resumes a fit, from the plan in its folder, and the folder in which its paths hold.

    The plan has the folder of images as it was typed, relative to a folder that is not known: the studio's, or one
    above the fit.
    """
    try:
        plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
        data, settings = plan["data"], list(plan["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(data, str) or not all(isinstance(one, str) and "=" in one and one[0] != "-" for one in settings):
        return None
    command = ["fit", data, "--out", str(out), *settings]
    if Path(data).is_dir():
        return command, None
    return command, next((str(folder) for folder in out.parents if (folder / data).is_dir()), None)


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
