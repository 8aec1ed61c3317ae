"""The jobs that wait and run, in order, and who comes next: jobs that go the same way come together."""

import threading
from collections.abc import Sequence

from sfumato.service.jobs import Job


class Queue:
    """Jobs in the order in which they are served. Its methods may be called from any thread.

    A job leaves when its images are complete; between two batches it moves behind the others, so that one of many
    images does not keep one of few waiting.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self.closed = False

    def add(self, job: Job) -> None:
        """Appends a job."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def next(self) -> list[Job]:
        """The job whose turn it is, and those that may go with it, in order; waits for one, empty once closed."""
        with self._changed:
            while not self._jobs and not self.closed:
                self._changed.wait()
            if not self._jobs:
                return []
            first = self._jobs[0]
            return [job for job in self._jobs if job is first or job.coarse == first.coarse]

    def served(self, jobs: Sequence[Job], complete: Sequence[Job]) -> None:
        """Moves the jobs of a batch behind the others, but for those that are complete, which leave."""
        with self._changed:
            later = [job for job in self._jobs if job in jobs and job not in complete]
            self._jobs = [job for job in self._jobs if job not in jobs and job not in complete] + later

    def remove(self, job: Job) -> None:
        """Takes a job out."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def place(self, job: Job) -> int | None:
        """The number of jobs before a job that waits."""
        with self._changed:
            return self._jobs.index(job) if job.state == "queued" and job in self._jobs else None

    def waiting(self) -> list[Job]:
        """The jobs that have not begun."""
        with self._changed:
            return [job for job in self._jobs if job.state == "queued"]

    def unfinished(self) -> list[Job]:
        """All jobs in it."""
        with self._changed:
            return list(self._jobs)

    def close(self) -> None:
        """Ends `next` once the queue is empty."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
