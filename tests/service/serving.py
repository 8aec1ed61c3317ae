"""Shared by the tests of the service: tiny models in folders, a service without HTTP, and one behind a real server."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from sfumato.service.app import build_app
from sfumato.service.jobs import Job
from sfumato.service.server import address_of, bound_socket
from sfumato.service.service import Service
from sfumato.service.settings import ServiceSettings

PATIENCE = 60.0


def service_of(models: Sequence[Path], out: Path, **settings: Any) -> Service:
    """A service of these models in float32, so that no processor's own type decides."""
    return Service(ServiceSettings(models=tuple(models), out=out, **settings), "cpu", "float32")


def done(*jobs: Job) -> list[Job]:
    """Waits for jobs."""
    give_up = time.monotonic() + PATIENCE
    while not all(job.over for job in jobs):
        assert time.monotonic() < give_up, [job.view(None) for job in jobs]
        time.sleep(0.005)
    return list(jobs)


@contextmanager
def served(service: Service) -> Iterator[httpx.Client]:
    """A client of the service behind uvicorn on a free port."""
    listening = bound_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    token = service.settings.token
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=address_of(listening, "127.0.0.1"), headers=headers, timeout=PATIENCE) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
