"""A job: a request on its way from the queue to its images."""

import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from sfumato.service.declarations import TaskName
from sfumato.service.registry import KnownModel
from sfumato.service.store import new_id

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED = ("done", "failed", "cancelled")
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")


@dataclass
class Result:
    """A finished image: its place in the job, its size, its seed, and the settings that make it again."""

    index: int
    width: int
    height: int
    seed: int
    settings: dict[str, Any]


@dataclass(eq=False)
class Job:
    """A request and what has become of it.

    Attributes:
        request: the checked body of the request with its defaults.
        images: the images that the request names, by field; released when they are no longer needed.
        coarse: jobs of equal values may go together; what follows from the request alone.
        count: images in all.
        seeds: one for each image.
    """

    task: TaskName
    known: KnownModel
    request: dict[str, Any]
    count: int
    seeds: list[int]
    coarse: tuple[Any, ...] = ()
    images: Mapping[str, Image.Image] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    state: State = "queued"
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    allowed: float = 0.0
    """Seconds that it may run; 0: any."""
    deadline: float = 0.0
    """On the monotonic clock, once it runs."""
    step: int = 0
    steps: int = 0
    done_share: float = 0.0
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    user_error: bool = False
    cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in FINISHED

    @property
    def stopping(self) -> bool:
        """Whether its images are no longer wanted: cancelled, failed, or out of time."""
        return self.cancelled or self.over

    @property
    def progress(self) -> float:
        """0 to 1 of the whole job."""
        return 1.0 if self.state == "done" else min(1.0, self.done_share)

    @property
    def seconds_left(self) -> float | None:
        """From the time its share so far has taken."""
        if self.state != "running" or self.started is None or self.progress < 0.02:
            return None
        elapsed = time.time() - self.started
        return round(elapsed * (1 - self.progress) / self.progress, 2)

    def view(self, place: int | None) -> dict[str, Any]:
        """The job as JSON."""
        return {
            "id": self.id,
            "task": self.task,
            "model": self.known.id,
            "state": self.state,
            "place": place,
            "created": self.created,
            "started": self.started,
            "finished": self.finished,
            "step": self.step,
            "steps": self.steps,
            "count": self.count,
            "progress": round(self.progress, 4),
            "seconds_left": self.seconds_left,
            "images": [image_view(self.id, one) for one in list(self.results)],
            "error": self.error,
            "notes": list(self.notes),
            "request": self.request,
        }


class Packed:
    """A job that is over, as it is remembered: its JSON, compressed, a tenth of what the objects take."""

    def __init__(self, view: dict[str, Any]) -> None:
        self._packed = zlib.compress(json.dumps(view).encode(), 1)

    @property
    def view(self) -> dict[str, Any]:
        """The job as JSON."""
        made: dict[str, Any] = json.loads(zlib.decompress(self._packed))
        return made


def image_view(job: str, one: Result) -> dict[str, Any]:
    """A finished image as JSON."""
    return {
        "index": one.index,
        "url": f"/v1/jobs/{job}/images/{one.index}",
        "width": one.width,
        "height": one.height,
        "seed": one.seed,
        "settings": one.settings,
    }
