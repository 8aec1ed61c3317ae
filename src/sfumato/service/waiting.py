"""For protocols whose answer is the images: wait for a job, and cancel it when its client goes away."""

import base64
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from sfumato.service.errors import RefusedError
from sfumato.service.jobs import Job
from sfumato.service.service import Service

PAUSE = 0.25
"""Seconds between two looks whether the client is still there."""
CLOSED = 499
"""The status of an answer that nobody reads."""


def new_seed() -> int:
    """A seed for a request that gives none, where a protocol expects another image each time."""
    return secrets.randbelow(2**32)


async def finished(service: Service, body: dict[str, Any], gone: Callable[[], Awaitable[bool]]) -> Job:
    """The job of a body once it is over. Raises RefusedError for one that failed or whose client went away."""
    job = await run_in_threadpool(service.submit, body)
    try:
        with service.news.listening(job.id) as listener:
            events = listener.events(PAUSE)
            while not job.over:
                await anext(events)
                if not job.over and await gone():
                    break
    finally:
        if not job.over:
            service.remove(job.id)
    if not job.over:
        raise RefusedError(CLOSED, "the client has gone away")
    if job.state == "failed":
        status = 400 if job.user_error else 503 if service.stopping else 500
        service.remove(job.id)
        raise RefusedError(status, job.error or "the job failed")
    return job


def files_of(service: Service, job: Job) -> list[bytes]:
    """The finished images of a job, in order."""
    return [service.image(job.id, one.index).read_bytes() for one in job.results]


def encoded(content: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(content).decode()
