"""The thread that computes: batch after batch of units that go the same way, whoever asked for them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from sfumato.errors import UserError
from sfumato.pipeline import pipeline
from sfumato.pipeline.plan import plan
from sfumato.pipeline.record import SampleRecord
from sfumato.pipeline.recording import record_of
from sfumato.provenance import computed_by
from sfumato.sampling.loop import Step
from sfumato.service import heap
from sfumato.service.jobs import Job, State
from sfumato.service.loading import Loaded, Loader
from sfumato.service.previews import PreviewClock, preview_png
from sfumato.service.queue import Queue
from sfumato.service.registry import Registry
from sfumato.service.units import Unit, units_of
from sfumato.service.widths import Widths
from sfumato.tasks.requests import merged

log = logging.getLogger("sfumato.service")
DECODING = 4 << 30
"""Bytes of feature maps while encoding and decoding, the default of a request."""
DEFECT = "the service failed to compute this job; its log has the details"
NO_MEMORY = "there is not enough memory for this: ask for a smaller size or fewer images"


class Abandoned(Exception):  # noqa: N818 - no error: nobody wants the batch any more
    """Raised between steps when all jobs of a batch are cancelled or out of time."""


@dataclass(frozen=True)
class Watcher:
    """Events of the worker: a job began, a step was done, an image is finished, a job ended."""

    began: Callable[[Job], None]
    stepped: Callable[[Job, Step], None]
    previewed: Callable[[Job, int, int, bytes], None]
    wants_preview: Callable[[Job], bool]
    finished_image: Callable[[Unit, Image.Image, SampleRecord, int, dict[str, Any]], None]
    ended: Callable[[Job, State, str | None, bool], None]


@dataclass(eq=False)
class Worker(threading.Thread):
    """Takes jobs from the queue until it is closed and empty."""

    queue: Queue
    loader: Loader
    registry: Registry
    widths: Widths
    watcher: Watcher
    _units: dict[str, list[Unit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(name="sfumato-worker", daemon=True)

    def run(self) -> None:
        """The loop of the thread."""
        tidy = heap.Sometimes()
        while jobs := self.queue.next():
            try:
                self._serve(jobs)
            except Exception:  # whatever it is, the others go on
                log.exception("a batch failed")
                self.end(jobs[0], "failed", DEFECT, user=False)
            tidy()

    def _serve(self, jobs: Sequence[Job]) -> None:
        """Computes the next batch of the first job, with units of the others as far as they go the same way."""
        first = jobs[0]
        if not self._begun(first):
            return
        differentiable = bool(first.request.get("image_guidance"))
        with _refusing(self, first):
            loaded = self.loader.get(first.known, differentiable)
        if first.over:
            return
        batch = self._gathered(jobs, loaded)
        if batch:
            self._compute(batch, loaded)
        complete = [job for job in jobs if job.over]
        self.queue.served(list({unit.job.id: unit.job for unit in batch}.values()), complete)

    def _begun(self, job: Job) -> bool:
        """Whether a job is still wanted; what is not leaves the queue."""
        if job.stopping:
            self.end(job, "cancelled", None)
            return False
        return True

    def _gathered(self, jobs: Sequence[Job], loaded: Loaded) -> list[Unit]:
        """Units of one way, the first job's first."""
        units: list[Unit] = []
        way = None
        for job in jobs:
            if job.stopping:
                self.end(job, "cancelled", None)
                continue
            own = self._units_of(job, loaded)
            if not own:
                continue
            if way is None:
                way = own[0].way
            units += [unit for unit in own if unit.way == way]
            if len(units) >= max(self.widths.most, self.widths.lanes):
                break
        if not units:
            return []
        width = self.widths.of(units[0], loaded, len(units))
        return units[:width]

    def _units_of(self, job: Job, loaded: Loaded) -> list[Unit]:
        """The units of a job that are not computed yet; its images are encoded at the first call."""
        if job.id not in self._units:
            with _refusing(self, job):
                weaker = None
                if job.request.get("autoguide"):
                    weaker = self.loader.get(self.registry.get(job.request["autoguide"])).model
                self._units[job.id] = units_of(job, loaded.model, DECODING, weaker)
                job.images = {}
                self.watcher.began(job)
        return self._units.get(job.id, [])

    def _compute(self, batch: list[Unit], loaded: Loaded) -> None:
        try:
            self._sample(batch, loaded)
        except Abandoned:
            pass
        except Exception as error:  # whose fault it is shows when each is computed alone
            jobs = {unit.job.id: unit.job for unit in batch}
            if len(jobs) > 1:
                for job in jobs.values():
                    self._compute([unit for unit in batch if unit.job is job], loaded)
                return
            message, user = _reason(error)
            self.end(batch[0].job, "failed", message, user)
        for job in {unit.job.id: unit.job for unit in batch}.values():
            if job.cancelled and not job.over:
                self.end(job, "cancelled", None)
            elif not job.over and not self._units.get(job.id):
                self.end(job, "done", None)

    def _sample(self, batch: list[Unit], loaded: Loaded) -> None:
        """One batch through the pipeline; each finished image is reported before the next."""
        rows = self.widths.rows(batch)
        model = loaded.model
        request = merged(
            [unit.request for unit in rows],
            replace(
                rows[0].request,
                count=None,
                seeds=[unit.seed for unit in rows],
                batch=len(rows),
                callback=_StepReports(self, batch, loaded),
            ),
        )
        planned = plan(model, request)
        record = record_of(model, request, planned)
        computed = computed_by(model, len(rows))
        for made in pipeline.batches(model, request, planned):
            for row, (unit, image) in enumerate(zip(batch, made.images.cpu(), strict=False)):
                if not unit.job.stopping:
                    self.watcher.finished_image(unit, unit.finish(image), record, row, computed)
        for unit in batch:
            left = self._units.get(unit.job.id)
            if left is not None:
                left.remove(unit)

    def end(self, job: Job, state: State, error: str | None, user: bool = True) -> None:
        """Takes a job out of the queue, and reports it once; `user`: whether the request is the cause of the error."""
        self._units.pop(job.id, None)
        job.images = {}
        self.queue.remove(job)
        if not job.over:
            self.watcher.ended(job, state, error, user)


@dataclass
class _StepReports:
    """Called after every step of a batch: cancels, keeps the time, reports, and makes previews."""

    worker: Worker
    batch: list[Unit]
    loaded: Loaded
    clock: PreviewClock = field(default_factory=PreviewClock)

    def __call__(self, step: Step) -> None:
        jobs = list({unit.job.id: unit.job for unit in self.batch}.values())
        for job in jobs:
            if job.stopping:
                continue
            if job.deadline and time.monotonic() > job.deadline:
                self.worker.end(job, "failed", f"the job took longer than the {job.allowed:g} seconds allowed here")
                continue
            share = sum(unit.job is job for unit in self.batch) * (step.index + 1) / step.total
            job.step, job.steps = step.index + 1, step.total
            job.done_share = (len(job.results) + share) / job.count
            self.worker.watcher.stepped(job, step)
        if all(job.stopping for job in jobs):
            raise Abandoned
        self._previews(step)

    def _previews(self, step: Step) -> None:
        watcher = self.worker.watcher
        rows = {unit.job.id: row for row, unit in reversed(list(enumerate(self.batch)))}
        wanted = [self.batch[row] for row in rows.values() if watcher.wants_preview(self.batch[row].job)]
        if not wanted or not self.clock.is_due() or step.index + 1 == step.total:
            return
        t_start = time.monotonic()
        for unit in wanted:
            row = rows[unit.job.id]
            png = preview_png(self.loaded.model, step.x0[row : row + 1])
            watcher.previewed(unit.job, unit.index, step.index + 1, png)
        self.clock.took(time.monotonic() - t_start)


@contextmanager
def _refusing(worker: Worker, job: Job) -> Iterator[None]:
    """Ends a job whose preparation raises, with the reason."""
    try:
        yield
    except Exception as error:
        message, user = _reason(error)
        worker.end(job, "failed", message, user)


def _reason(error: Exception) -> tuple[str, bool]:
    """The sentence for a client, and whether the request is the cause."""
    if isinstance(error, UserError):
        return str(error), True
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return NO_MEMORY, True
    log.error("a job failed", exc_info=error)
    return DEFECT, False
