"""The service's own protocol: jobs with events, uploads, models, options."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from sfumato.plain_json import from_json
from sfumato.service import answers
from sfumato.service.bodies import BODIES
from sfumato.service.errors import RefusedError
from sfumato.service.events import Event
from sfumato.service.service import Service
from sfumato.service.store import UPLOADS

PAUSE = 15.0
"""Seconds without an event after which a comment keeps the connection."""
MOST_SCALE = 16
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": text}
    for status, text in {
        400: "The request is wrong: one sentence explains why.",
        401: "The token is missing or wrong.",
        403: "The host, or the page that calls, is not allowed.",
        404: "It is not here.",
        413: "The body is too large.",
    }.items()
}
BUSY: dict[int | str, dict[str, Any]] = {
    429: {"model": answers.ErrorAnswer, "description": "The queue is full; Retry-After has the seconds."},
    503: {"model": answers.ErrorAnswer, "description": "The service is stopping."},
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}
}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "A PNG."}
}
JobId = Annotated[str, Path(max_length=64, description="A job's id.")]
UploadId = Annotated[str, Path(max_length=64, description="An upload's id.")]


def router(service: Service) -> APIRouter:
    """The routes of a service."""
    routes = APIRouter(responses=REFUSALS)
    _add_models(routes, service)
    _add_jobs(routes, service)
    _add_events(routes, service)
    _add_uploads(routes, service)
    return routes


def _add_models(routes: APIRouter, service: Service) -> None:
    @routes.get("/v1/models", response_model=answers.ModelsAnswer)
    def models() -> Any:
        """All models, and what they take."""
        return JSONResponse({"object": "list", "data": service.models()})

    @routes.get("/v1/models/{model:path}", response_model=answers.ModelAnswer)
    def model(model: Annotated[str, Path(max_length=200)]) -> Any:
        """One model."""
        return JSONResponse(service.model(model))

    @routes.get("/v1/options", response_model=answers.OptionsAnswer)
    def options() -> Any:
        """The fields of every task: types, ranges, defaults, help."""
        return JSONResponse(service.options())


def _add_jobs(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/jobs",
        status_code=202,
        response_model=answers.JobAnswer,
        responses=BUSY,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": bodies_schema()}}}},
    )
    async def submit(request: Request) -> Any:
        """Queues a job."""
        body = await json_of(request)
        job = await run_in_threadpool(service.submit, body, lasting=True)
        headers = {"Location": f"/v1/jobs/{job.id}"}
        return JSONResponse(service.view(job.id), status_code=202, headers=headers)

    @routes.get("/v1/jobs", response_model=answers.JobsAnswer)
    def jobs(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Any:
        """The jobs, the newest first."""
        return JSONResponse({"jobs": service.views(limit)})

    @routes.get("/v1/jobs/{job}", response_model=answers.JobAnswer)
    def job(job: JobId) -> Any:
        """One job."""
        return JSONResponse(service.view(job))

    @routes.post("/v1/jobs/{job}/cancel", response_model=answers.JobAnswer)
    def cancel(job: JobId) -> Any:
        """Cancels a job; one that is finished stays as it is."""
        return JSONResponse(service.cancel(job))

    @routes.delete("/v1/jobs/{job}", status_code=204)
    def remove(job: JobId) -> Response:
        """Cancels and forgets a job, and removes its images."""
        service.remove(job)
        return Response(status_code=204)

    @routes.get("/v1/jobs/{job}/images/{index}", responses=PNG, response_class=Response)
    def image(
        job: JobId,
        index: Annotated[int, Path(ge=0, le=999_999)],
        scale: Annotated[int, Query(ge=1, le=MOST_SCALE, description="Enlarges by whole pixels.")] = 1,
    ) -> Response:
        """A finished image, with its settings inside."""
        path = service.image(job, index)
        if scale == 1:
            return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})
        return Response(_enlarged(path, scale, service.settings.pixels), media_type="image/png")


def _enlarged(path: Any, scale: int, pixels: int) -> bytes:
    with Image.open(path) as image:
        if image.width * image.height * scale**2 > 4 * pixels:
            raise RefusedError(400, f"scale {scale} makes more than the {4 * pixels:,} pixels allowed here", "scale")
        large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    large.save(buffer, format="PNG")
    return buffer.getvalue()


def _add_events(routes: APIRouter, service: Service) -> None:
    @routes.get("/v1/jobs/{job}/events", responses=EVENTS, response_class=StreamingResponse)
    async def events(job: JobId) -> StreamingResponse:
        """The events of a job, as they happen; ends with the job."""
        service.view(job)
        return _stream(_events_of(service, job))

    @routes.get("/v1/events", responses=EVENTS, response_class=StreamingResponse, include_in_schema=False)
    async def all_events() -> StreamingResponse:
        """The events of all jobs; never ends."""
        return _stream(_all_events(service))


def _stream(events: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events_of(service: Service, name: str) -> AsyncIterator[str]:
    if service.news.full:
        yield event_text("state", service.view(name))
        return
    with service.news.listening(name) as listener:
        view = service.view(name)
        if view["state"] in ("done", "failed", "cancelled"):
            yield event_text("end", view)
            return
        yield event_text("state", view)
        async for event in listener.events(PAUSE):
            yield ": still here\n\n" if event is None else event_text(event.kind, event.data)
            if event is not None and event.kind == "end":
                return


async def _all_events(service: Service) -> AsyncIterator[str]:
    if service.news.full:
        return
    with service.news.listening(None) as listener:
        yield ": listening\n\n"
        async for event in listener.events(PAUSE):
            yield ": still here\n\n" if event is None else _of_job(event)


def _of_job(event: Event) -> str:
    return event_text(event.kind, {**event.data, "job": event.job})


def event_text(kind: str, data: dict[str, Any]) -> str:
    """An event as it is sent."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _add_uploads(routes: APIRouter, service: Service) -> None:
    @routes.post("/v1/uploads", status_code=201, response_model=answers.UploadAnswer)
    async def upload(file: UploadFile) -> Any:
        """Stores an image for later requests, and reads the settings inside it."""
        content = await file.read()
        return JSONResponse(await run_in_threadpool(service.upload_view, content), status_code=201)

    @routes.get("/v1/uploads/{upload}", responses=PNG, response_class=Response)
    def uploaded(upload: UploadId) -> Response:
        """An uploaded image, as PNG."""
        service.uploaded(upload)
        image = service.references.values(f"upload:{upload}", "upload")
        buffer = io.BytesIO()
        (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")).save(
            buffer, "PNG"
        )
        return Response(buffer.getvalue(), media_type="image/png")

    @routes.delete("/v1/uploads/{upload}", status_code=204)
    def forget(upload: UploadId) -> Response:
        """Removes an uploaded image."""
        service.uploaded(upload)
        service.store.remove(UPLOADS, upload)
        return Response(status_code=204)


async def json_of(request: Request) -> Any:
    """The JSON of a body. Raises RefusedError for another type, and for anything that is not JSON."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise RefusedError(415, f"the body is {kind[:80]!r}: send application/json")
    content = await request.body()
    try:
        return await asyncio.to_thread(_parsed, content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise RefusedError(400, "the body is not JSON") from None
    except ValueError as error:
        raise RefusedError(400, f"the body is not valid JSON: it {error}") from None


def _parsed(content: bytes) -> Any:
    return from_json(content.decode(json.detect_encoding(content)))


def bodies_schema() -> dict[str, Any]:
    """The schema of a request: one of the tasks' bodies."""
    return {"oneOf": [{"$ref": f"#/components/schemas/{each.__name__}"} for each in BODIES.values()]}
