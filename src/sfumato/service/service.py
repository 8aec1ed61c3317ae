"""The service without HTTP: models, jobs, results, and the thread that computes."""

import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sfumato import __version__
from sfumato.engine.precision import Precision, dtype_of
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.images import PNG_MODES, png_file
from sfumato.locks import exclusive
from sfumato.pipeline.record import SampleRecord
from sfumato.plain_json import to_json
from sfumato.provenance import read_settings, settings_of, texts_of
from sfumato.sampling.loop import Step
from sfumato.service import heap
from sfumato.service.checking import job_of
from sfumato.service.declarations import TASKS, declared_fields, grids, samplers
from sfumato.service.errors import RefusedError
from sfumato.service.events import News
from sfumato.service.jobs import Job, Packed, Result, State, image_view
from sfumato.service.loading import Loader
from sfumato.service.metrics import Metrics
from sfumato.service.previews import data_url
from sfumato.service.queue import Queue
from sfumato.service.references import IMAGE, References
from sfumato.service.registry import Registry, model_view
from sfumato.service.reproducing import made_by
from sfumato.service.settings import MEBIBYTE, ServiceSettings
from sfumato.service.store import JOBS, UPLOADS, Store, is_id, new_id
from sfumato.service.units import Unit
from sfumato.service.widths import Widths
from sfumato.service.worker import Watcher, Worker

log = logging.getLogger("sfumato.service")
REMEMBERED = 1000
"""Finished jobs that are kept, at most."""
VIEW = "job.json"
WAITING = "request.json"
"""The body of a job that has not begun, for a later process."""


class Service:
    """Everything a service does; its methods may be called from any thread.

    Args:
        settings: its models, folders and bounds.
        device, precision: where networks compute.

    Raises UserError for a model that cannot be served.
    """

    def __init__(
        self, settings: ServiceSettings, device: torch.device | str = "cpu", precision: Precision = "auto"
    ) -> None:
        self.settings = settings
        self.registry = Registry(settings.models)
        self.store = Store(settings.out, settings.out_bytes, self._removed)
        self.references = References(self.store, settings.folders, settings.pixels)
        self.news = News()
        self.metrics = Metrics()
        device = torch.device(device)
        self.loader = Loader(device, dtype_of(precision, device), settings.memory * MEBIBYTE)
        self.queue = Queue()
        self.stopping = False
        self.previews_until = 0.0
        """On the monotonic clock: somebody asks for the progress without listening to events."""
        self._preview: tuple[str, bytes] = ("", b"")
        self._jobs: OrderedDict[str, Job | Packed] = OrderedDict()
        self._lock = threading.RLock()
        self._seconds = 1.0  # of a job lately
        watcher = Watcher(
            self._began, self._stepped, self._previewed, self._wants_preview, self._finished_image, self._ended
        )
        widths = Widths(settings.batch, settings.lanes)
        self.worker = Worker(self.queue, self.loader, self.registry, widths, watcher)
        self._read_earlier()

    @contextmanager
    def running(self) -> Iterator["Service"]:
        """Computes within the block; at its end what runs is finished and what waits is refused.

        Jobs that waited when an earlier process was killed are queued again.

        Raises UserError where another service uses the same folder of results.
        """
        with exclusive(self.settings.out):
            heap.share_heaps()
            self._take_up()
            self.worker.start()
            try:
                yield self
            finally:
                self.stop()
                self.worker.join()

    def stop(self) -> None:
        """Takes no more jobs, refuses those that wait, and ends the worker once those that run are finished."""
        self.stopping = True
        for job in self.queue.waiting():
            self.worker.end(job, "failed", "the service is stopping: try again when it is back", False)
        self.queue.close()

    # ---- jobs

    def submit(self, body: Any, lasting: bool = False) -> Job:
        """Queues a request. Raises RefusedError: a wrong one (400), a full queue (429), a service that stops (503).

        lasting: whether a later process queues it again where this one is killed before it begins.
        """
        if self.stopping:
            raise RefusedError(503, "the service is stopping: try again when it is back", retry_after=10)
        job = job_of(body, self.registry, self.references, self.settings)
        with self._lock:
            waiting = len(self.queue.waiting())
            if waiting >= self.settings.queue:
                raise RefusedError(
                    429,
                    f"{waiting} jobs are waiting, which is the limit: try again later",
                    retry_after=min(3600, max(1, math.ceil(self._seconds * waiting))),
                )
            if lasting:
                self.store.write(JOBS, job.id, WAITING, to_json(body).encode())
            self._enqueue(job)
        self.metrics.submitted(job.task)
        self._tell_state(job)
        return job

    def _enqueue(self, job: Job) -> None:
        job.allowed = self.settings.seconds
        with self._lock:
            self._jobs[job.id] = job
            self.store.hold(JOBS, job.id)
            self.queue.add(job)

    def job(self, name: str) -> Job | None:
        """A job that is not over."""
        job = self._jobs.get(name)
        return job if isinstance(job, Job) else None

    def view(self, name: str) -> dict[str, Any]:
        """A job as JSON, also of an earlier process. Raises RefusedError (404)."""
        with self._lock:
            job = self._jobs.get(name)
            if isinstance(job, Job):
                return job.view(self.queue.place(job))
        if job is not None:
            return job.view
        raise RefusedError(404, f"job {short(name)} is not here: it is unknown, or its results were removed")

    def views(self, limit: int) -> list[dict[str, Any]]:
        """The jobs, the newest first."""
        with self._lock:
            return [self.view(name) for name in self.names(limit)]

    def names(self, limit: int) -> list[str]:
        """The ids of the jobs, the newest first."""
        with self._lock:
            return list(self._jobs)[::-1][:limit]

    def cancel(self, name: str) -> dict[str, Any]:
        """Cancels a job that is not finished. Raises RefusedError (404)."""
        job = self.job(name)
        if job is not None and not job.over:
            job.cancelled = True
            if job.state == "queued":
                self.worker.end(job, "cancelled", None)
        return self.view(name)

    def remove(self, name: str) -> None:
        """Cancels and forgets a job and its images. Raises RefusedError (404)."""
        self.cancel(name)
        with self._lock:
            self._jobs.pop(name, None)
        self.store.remove(JOBS, name)

    def image(self, name: str, index: int) -> Path:
        """The file of a finished image. Raises RefusedError (404)."""
        path = self.store.path(JOBS, name, f"{index}.png")
        if not is_id(name) or not path.is_file():
            raise RefusedError(404, f"image {short(name)}/{index} is not here")
        return path

    # ---- uploads

    def upload(self, content: bytes) -> tuple[str, Image.Image]:
        """Stores an image. Raises RefusedError for what is none."""
        image = self.references.from_bytes(content, "file")
        name = new_id()
        self.store.write(UPLOADS, name, IMAGE, content)
        return name, image

    def upload_view(self, content: bytes) -> dict[str, Any]:
        """Stores an image; the answer as JSON. Raises RefusedError for what is none."""
        name, image = self.upload(content)
        settings, parameters = read_settings(image)
        if settings is not None:
            there = [one.id for one in self.registry.list() if one.id == settings["model"].get("name")]
            settings["model"]["id"] = there[0] if there else None
        return {
            "id": name,
            "url": f"/v1/uploads/{name}",
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "settings": settings,
            "parameters": parameters,
        }

    def uploaded(self, name: str) -> Path:
        """The file of an upload. Raises RefusedError (404)."""
        path = self.store.path(UPLOADS, name, IMAGE)
        if not is_id(name) or not path.is_file():
            raise RefusedError(404, f"upload {short(name)} is not here")
        return path

    # ---- what it offers

    def models(self) -> list[dict[str, Any]]:
        """The models as JSON."""
        digests = self.loader.digests()
        return [model_view(one, one.id in digests, digests.get(one.id)) for one in self.registry.list()]

    def model(self, name: str) -> dict[str, Any]:
        """A model as JSON. Raises RefusedError (404)."""
        digests = self.loader.digests()
        return model_view(self.registry.get(name), name in digests, digests.get(name))

    def options(self) -> dict[str, Any]:
        """The declarations of all tasks as JSON."""
        bounds = self.settings
        return {
            "version": __version__,
            "limits": {
                "count": bounds.count,
                "pixels": bounds.pixels,
                "steps": bounds.steps,
                "body": bounds.body_bytes,
                "queue": bounds.queue,
            },
            "samplers": samplers(),
            "grids": grids(),
            "tasks": {name: {"help": task.help, "fields": declared_fields(name)} for name, task in TASKS.items()},
        }

    # ---- reports of the worker

    def _began(self, job: Job) -> None:
        job.state, job.started = "running", time.time()
        self.store.discard(JOBS, job.id, WAITING)
        job.deadline = time.monotonic() + job.allowed if job.allowed else 0.0
        self._tell_state(job)
        for other in self.queue.waiting():
            if self.news.wanted(other.id):
                self._tell_state(other)

    def _stepped(self, job: Job, step: Step) -> None:
        if self.news.wanted(job.id):
            data = {"step": job.step, "steps": job.steps, "progress": round(job.progress, 4)}
            self.news.publish(job.id, "progress", {**data, "seconds_left": job.seconds_left})

    def latest_preview(self, job: Job) -> bytes | None:
        """The PNG of the last preview of a job."""
        name, png = self._preview
        return png if name == job.id else None

    def _wants_preview(self, job: Job) -> bool:
        return not job.stopping and (self.news.wanted(job.id) or time.monotonic() < self.previews_until)

    def _previewed(self, job: Job, index: int, step: int, png: bytes) -> None:
        self._preview = (job.id, png)
        self.news.publish(job.id, "preview", {"index": index, "step": step, "image": data_url(png)})

    def _finished_image(
        self, unit: Unit, image: Image.Image, record: SampleRecord, row: int, computed: dict[str, Any]
    ) -> None:
        job = unit.job
        if image.mode not in PNG_MODES:
            image = image.convert("RGB")
        made = made_by(unit, record, row)
        texts = texts_of(**made, computed=computed, size=image.size)
        settings = settings_of(**made, computed=computed)
        self.store.write(JOBS, job.id, f"{unit.index}.png", png_file(image, texts))
        result = Result(unit.index, image.width, image.height, unit.seed, settings)
        with self._lock:
            job.results.append(result)
            job.results.sort(key=lambda one: one.index)
            job.notes += [note for note in record.notes if note not in job.notes]
            job.done_share = len(job.results) / job.count
        self.metrics.finished_image(computed["rows"])
        self.news.publish(job.id, "image", image_view(job.id, result))

    def _ended(self, job: Job, state: State, error: str | None, user: bool) -> None:
        finished = time.time()
        if state == "done":
            self._keep(job, finished)
        with self._lock:
            if job.over:
                return
            job.state, job.error, job.user_error, job.finished = state, error, user, finished
            view = job.view(None)
            present = job.id in self._jobs
            if present:
                self._jobs[job.id] = Packed(view)
        if job.started is not None:
            self._seconds = 0.8 * self._seconds + 0.2 * (finished - job.started)
        self.store.release(JOBS, job.id)
        if not present or not job.results:
            self.store.remove(JOBS, job.id)
        self.metrics.ended(job.task, state, finished - job.created)
        self.news.publish(job.id, "end", view)
        self._forget_oldest()

    def _keep(self, job: Job, finished: float) -> None:
        """Writes a job for a later process, before anybody sees that it is done and may remove it."""
        over = {"state": "done", "finished": finished, "progress": 1.0, "seconds_left": None}
        try:
            self.store.write(JOBS, job.id, VIEW, to_json({**job.view(None), **over}).encode())
        except UserError as problem:  # a full disk: the images are there, and the job is known until the end
            log.warning("%s", problem)

    def _tell_state(self, job: Job) -> None:
        if self.news.wanted(job.id):
            self.news.publish(job.id, "state", job.view(self.queue.place(job)))

    def _forget_oldest(self) -> None:
        with self._lock:
            over = [name for name, job in self._jobs.items() if isinstance(job, Packed)]
            for name in over[: max(0, len(over) - REMEMBERED)]:
                self._jobs.pop(name, None)
                self.store.remove(JOBS, name)

    def _removed(self, kind: str, name: str) -> None:
        if kind == JOBS:
            with self._lock:
                self._jobs.pop(name, None)

    def _read_earlier(self) -> None:
        """The finished jobs of earlier processes."""
        for name in self.store.names(JOBS):
            with suppress(OSError, ValueError):
                self._jobs[name] = Packed(json.loads(self.store.path(JOBS, name, VIEW).read_text(encoding="utf-8")))

    def _take_up(self) -> None:
        """Queues what waited when an earlier process was killed; removes what that process had begun."""
        for name in self.store.names(JOBS):
            if name in self._jobs:
                continue
            path = self.store.path(JOBS, name, WAITING)
            try:
                body = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
                job = None if body is None else job_of(body, self.registry, self.references, self.settings)
            except (OSError, ValueError, UserError) as problem:
                log.warning("the job %s, which waited, cannot be queued again: %s", name, problem)
                job = None
            if job is None:
                self.store.remove(JOBS, name)
            else:
                job.id = name
                self._enqueue(job)
