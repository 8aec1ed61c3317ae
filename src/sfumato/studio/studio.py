"""A studio: the service, the folders it shows, what it keeps, and the app with the page."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from sfumato.config import ZOO_PREFIX
from sfumato.engine.precision import Precision
from sfumato.errors import UserError
from sfumato.service.app import build_app
from sfumato.service.errors import RefusedError
from sfumato.service.service import Service
from sfumato.service.settings import ServiceSettings
from sfumato.shipped import WEIGHTS, shipped_models
from sfumato.studio.app import add_page
from sfumato.studio.gallery import Gallery
from sfumato.studio.guard import kept_token
from sfumato.studio.look import Looks
from sfumato.studio.places import INSIDE_RUNS, Places, is_large
from sfumato.studio.routes import Room
from sfumato.studio.trainings import Trainings

IMAGES, RESULTS, TRAININGS = "images", "results", "trainings"
STAGE_1, CONFIG = "autoencoder.safetensors", "config.yaml"
MOST_JOBS = 1000
Stamp = tuple[int, int]


@dataclass(frozen=True)
class StudioSettings:
    """The settings of a studio.

    Attributes:
        folders: what it shows, and all that it reads.
        out: the folder for images, uploads and outputs of trainings.
        port: of 127.0.0.1.
        device, precision: where networks compute.
    """

    folders: tuple[Path, ...]
    out: Path
    port: int
    device: Any = "cpu"
    precision: Precision = "auto"


@dataclass
class Studio:
    """A service whose models are those below the folders, with the page. Raises UserError for folders that are none."""

    settings: StudioSettings
    service: Service = field(init=False)
    app: FastAPI = field(init=False)
    token: str = field(init=False)
    _tried: dict[Path, Stamp] = field(default_factory=dict)
    _adopted: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for folder in self.settings.folders:
            if not folder.is_dir():
                wrong = "is not a folder" if folder.exists() else "does not exist"
                raise UserError(
                    f"{str(folder)!r} {wrong}: give a folder with runs, images or cards, or none for the current folder"
                )
        out = self.settings.out
        self.token = kept_token(out)
        self.places = Places((*self.settings.folders, out))
        self.service = Service(
            ServiceSettings(folders=(*self.settings.folders, out / IMAGES), out=out / RESULTS, port=self.settings.port),
            self.settings.device,
            self.settings.precision,
        )
        self.gallery = Gallery(out / IMAGES)
        room = Room(self.places, out, self.gallery, Trainings(out / TRAININGS), Looks(), self.adopt, self.discover)
        self.discover()
        self.app = add_page(build_app(self.service), room, self.token, f"sfumato-{self.settings.port}")

    def discover(self) -> None:
        """Registers with the service every diffusion model, below the folders or shipped, that it does not know yet."""
        found: list[Path] = []

        def enter(folder: Path, files: list[str], inner: list[str]) -> bool:
            if folder.parent in found or folder == WEIGHTS.resolve():  # in a clone: these are shipped ones
                return False
            if ("model" in inner and (folder / "model" / CONFIG).exists()) or (STAGE_1 in files and CONFIG in files):
                found.append(folder)
            return folder.name not in INSIDE_RUNS and not is_large(files, inner)

        for _ in self.places.folders_in(enter):
            pass
        with self._lock:
            for path in (*found, *(Path(ZOO_PREFIX + name) for name in shipped_models())):
                self._try(path)

    def _try(self, folder: Path) -> None:
        """Adds a model once; one that cannot be served, such as an autoencoder alone, again when it has changed."""
        stamp = _stamp(folder)
        if self._tried.get(folder) == stamp:
            return
        known = folder in self._tried
        self._tried[folder] = stamp
        if known and any(one.path == folder for one in self.service.registry.list()):
            return
        try:
            self.service.registry.add(folder)
        except (UserError, OSError):
            return

    def adopt(self) -> None:
        """Brings the images of finished jobs into the gallery."""
        names = self.service.names(MOST_JOBS)
        self._adopted &= set(names)
        for name in names:
            if name in self._adopted:
                continue
            with suppress(RefusedError):  # it has just been removed
                self._adopt(name, self.service.view(name))

    def _adopt(self, name: str, job: dict[str, Any]) -> None:
        if job["state"] in ("queued", "running"):
            return
        for image in job["images"]:
            with suppress(RefusedError):  # its file has just been removed
                source = self.service.image(name, image["index"])
                self.gallery.keep(name, image["index"], source, facts_of(job, image))
        self._adopted.add(name)


def facts_of(job: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """The gallery's record of an image: its model, its seed, and the settings that make it again."""
    request = {name: value for name, value in job["request"].items() if name != "seeds"}
    own = {"task": job["task"], "model": {"id": job["model"]}, "missing": []}
    settings = image["settings"] or {**own, "request": {**request, "seed": image["seed"], "count": 1}}
    return {
        "model": job["model"],
        "seed": image["seed"],
        "settings": settings,
        "created": job["finished"] or time.time(),
    }


def _stamp(folder: Path) -> Stamp:
    inner = folder / "model" if (folder / "model").is_dir() else folder
    try:
        found = (inner / CONFIG).stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
