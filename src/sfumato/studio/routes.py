"""The studio's own routes below /studio: kept images, runs, folders, trainings, cards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from sfumato import __version__
from sfumato.errors import UserError
from sfumato.shipped import samples
from sfumato.studio.cards import PAGE_FILE, find_cards, images_of
from sfumato.studio.gallery import Gallery
from sfumato.studio.look import Looks, data_folders, thumbnail
from sfumato.studio.places import Places
from sfumato.studio.runs import describe, find_runs, log_after
from sfumato.studio.trainings import REPORT, FitSettings, Trainings, can_train, plan

SHOWN_AS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
"""For pages of cards: they show themselves, and run and load nothing."""
CACHED = {"Cache-Control": "private, max-age=3600"}
PathText = Annotated[str, Query(max_length=4096)]


class FitBody(BaseModel):
    """The body of a request to plan or start a training."""

    data: str = Field(max_length=4096)
    out: str = Field(max_length=4096)
    minutes: float = Field(60, gt=0, le=100_000)
    settings: list[str] = Field(default_factory=list, max_length=50)


class RunBody(BaseModel):
    """A run that is stopped or continued."""

    path: str = Field(max_length=4096)


@dataclass(frozen=True)
class Room:
    """The objects that the routes use.

    Attributes:
        adopt: brings the images of finished jobs into the gallery.
        discover: registers models that appeared below the folders.
    """

    places: Places
    state: Path
    gallery: Gallery
    trainings: Trainings
    looks: Looks
    adopt: Callable[[], None]
    discover: Callable[[], None]


def image_routes(room: Room) -> APIRouter:
    """Kept images, and files below the studio's folders that the page shows."""
    router = APIRouter(prefix="/studio", include_in_schema=False)

    @router.get("/state")
    def state() -> dict[str, Any]:
        room.discover()
        folders = [str(one) for one in room.places.folders]
        return {"version": __version__, "folders": folders, "state": str(room.state), "trains": can_train()}

    @router.get("/images")
    def images(limit: Annotated[int, Query(ge=1, le=5000)] = 120) -> dict[str, Any]:
        room.adopt()
        listed = room.gallery.listed(limit)
        shown = [_with_addresses(one, room.gallery.folder) for one in listed["images"]]
        return {"images": shown, "total": listed["total"]}

    @router.get("/images/{name}")
    def image(name: str) -> FileResponse:
        return FileResponse(room.gallery.path(name), media_type="image/png", headers=CACHED)

    @router.delete("/images/{name}", status_code=204)
    def forget(name: str) -> Response:
        room.gallery.remove(name)
        return Response(status_code=204)

    @router.get("/file")
    def file(path: PathText) -> FileResponse:
        found = room.places.below(path)
        if found.name in (PAGE_FILE, REPORT) and found.is_file():
            return FileResponse(found, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})
        kind = SHOWN_AS.get(found.suffix.lower())
        if kind is None or not found.is_file():
            raise UserError(f"{found.name!r} is not an image that the page shows")
        return FileResponse(found, media_type=kind, headers=CACHED)

    @router.get("/shipped/{name}")
    def shipped(name: str) -> FileResponse:
        found = samples(name)
        if found is None:
            raise UserError(f"there is no shipped model {name[:100]!r}")
        return FileResponse(found, media_type="image/png", headers=CACHED)

    @router.get("/thumbnail")
    def small(path: PathText) -> Response:
        content = thumbnail(room.places.below(path))
        return Response(content, media_type="image/png" if content[:4] == b"\x89PNG" else "image/jpeg", headers=CACHED)

    return router


def run_routes(room: Room) -> APIRouter:
    """Runs, folders of images, trainings, cards."""
    router = APIRouter(prefix="/studio", include_in_schema=False)

    @router.get("/runs")
    def runs() -> dict[str, Any]:
        folders = find_runs(room.places)
        found = [describe(folder, room.places) for folder in folders]
        named = [str(one.resolve()) for one in room.places.folders if one.resolve() != room.state.resolve()]
        return {"runs": found, "trainings": room.trainings.listed(folders), "folders": named}

    @router.get("/log")
    def log(path: PathText, after: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        folder = room.places.below(path)
        return {**log_after(folder, after), "run": describe(folder, room.places)}

    @router.get("/folders")
    def folders() -> dict[str, Any]:
        return {"folders": data_folders(room.places, room.state.resolve())}

    @router.post("/look")
    def look(body: RunBody) -> dict[str, Any]:
        return room.looks.look(room.places.below(body.path))

    @router.post("/plan")
    def planned(body: FitBody) -> dict[str, Any]:
        return plan(_wanted(body, room.places))

    @router.post("/trainings", status_code=201)
    def start(body: FitBody) -> dict[str, Any]:
        return room.trainings.start(_wanted(body, room.places))

    @router.post("/trainings/stop")
    def stop(body: RunBody) -> dict[str, Any]:
        room.trainings.stop(room.places.new(body.path))
        return {"stopping": body.path}

    @router.post("/trainings/resume")
    def resume(body: RunBody) -> dict[str, Any]:
        return room.trainings.resume(room.places.new(body.path))

    @router.get("/cards")
    def cards() -> dict[str, Any]:
        return {"cards": find_cards(room.places)}

    @router.get("/cards/images")
    def card_images(path: PathText) -> dict[str, Any]:
        return {"images": images_of(room.places.below(path))}

    return router


def _wanted(body: FitBody, places: Places) -> FitSettings:
    for setting in body.settings:
        if setting.startswith("-") or "=" not in setting:
            raise UserError(f"the setting {setting[:80]!r} is not of the form a.b=c")
    return FitSettings(places.below(body.data), places.new(body.out), body.minutes, tuple(body.settings))


def _with_addresses(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An image of the gallery with the address that shows it and the reference that a request takes."""
    return {**one, "url": f"/studio/images/{one['name']}", "ref": f"file:{folder / one['name']}"}
