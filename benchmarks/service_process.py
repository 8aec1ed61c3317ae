"""`sfumato serve` as a process of its own, for the measurements of the service."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(
    model: Path, out: Path, *options: object, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address and the process of a service on a free port, which SIGTERM ends after the block."""
    words = ["serve", model, "--port", 0, "--out", out, *options]
    command = [sys.executable, "-m", "sfumato", *(str(word) for word in words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    assert process.stdout is not None
    try:
        yield process.stdout.readline().rsplit(" ", 1)[-1].strip(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
