"""News of jobs from the worker's thread to the connections that listen."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MOST_WAITING = 256
"""Events of a slow listener; beyond it previews and progress are left out."""
SKIPPED = ("preview", "progress")
LISTENERS_AT_MOST = 256


@dataclass(frozen=True)
class Event:
    """An event of a job; `kind`: state, progress, preview, image or end."""

    job: str
    kind: str
    data: dict[str, Any]


@dataclass(eq=False)
class Listener:
    """The events of one job, or of all, in order."""

    job: str | None
    loop: asyncio.AbstractEventLoop
    queue: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)

    def put(self, event: Event) -> None:
        """Called on the loop's thread."""
        if event.kind not in SKIPPED or self.queue.qsize() < MOST_WAITING:
            self.queue.put_nowait(event)

    async def events(self, pause: float) -> AsyncIterator[Event | None]:
        """The events as they come; None after a pause of `pause` seconds without any."""
        while True:
            try:
                yield await asyncio.wait_for(self.queue.get(), pause)
            except TimeoutError:
                yield None


class News:
    """Distributes events. `publish` may be called from any thread."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()

    @contextmanager
    def listening(self, job: str | None) -> Iterator[Listener]:
        """A listener within the block, which runs on an event loop."""
        listener = Listener(job, asyncio.get_running_loop())
        with self._lock:
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def wanted(self, job: str) -> bool:
        """Whether somebody listens to a job."""
        with self._lock:
            return any(listener.job in (None, job) for listener in self._listeners)

    @property
    def full(self) -> bool:
        """Whether there are as many listeners as may be."""
        with self._lock:
            return len(self._listeners) >= LISTENERS_AT_MOST

    def publish(self, job: str, kind: str, data: dict[str, Any]) -> None:
        """Sends an event to those who listen to the job."""
        event = Event(job, kind, data)
        with self._lock:
            interested = [each for each in self._listeners if each.job in (None, job)]
        for listener in interested:
            if not listener.loop.is_closed():
                try:
                    listener.loop.call_soon_threadsafe(listener.put, event)
                except RuntimeError:  # the loop has just been closed
                    continue
