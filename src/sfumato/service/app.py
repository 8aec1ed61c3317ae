"""The HTTP application of a service: routes, errors as one sentence, the OpenAPI description."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sfumato import __version__
from sfumato.errors import UserError
from sfumato.service import answers, openai_api, own_api, webui_api
from sfumato.service.bodies import BODIES
from sfumato.service.checking import sentence_of
from sfumato.service.errors import RefusedError, error_body
from sfumato.service.guard import Guard
from sfumato.service.service import Service

SENTENCES = {
    404: "there is nothing at this address: /openapi.json lists what there is",
    405: "this address does not accept the method",
}


def build_app(service: Service) -> FastAPI:
    """The application. Its lifespan runs the service's worker; further pages may be added to it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = service.running()
        await run_in_threadpool(context.__enter__)
        try:
            yield
        finally:
            await run_in_threadpool(context.__exit__, None, None, None)

    app = FastAPI(title="sfumato", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    for protocol in (own_api, openai_api, webui_api):
        app.include_router(protocol.router(service))
    _add_operation(app, service)
    _add_errors(app)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=answers.StatusAnswer)
    def health() -> Any:
        """Whether the process answers."""
        return {"status": "ok"}

    busy: Mapping[int | str, dict[str, Any]] = {503: {"model": answers.ErrorAnswer, "description": "It is stopping."}}

    @app.get("/ready", response_model=answers.StatusAnswer, responses={**own_api.REFUSALS, **busy})
    def ready() -> Any:
        """Whether jobs are taken."""
        if service.stopping or not service.worker.is_alive():
            raise RefusedError(503, "the service takes no jobs: it is starting or stopping", retry_after=5)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **own_api.REFUSALS})
    def metrics() -> Response:
        """Numbers for Prometheus."""
        loader = service.loader
        waiting, models = len(service.queue.waiting()), len(loader.digests())
        page = service.metrics.page(waiting, models, loader.size, service.store.size)
        return Response(page, media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse(error_body(error.status, str(error), error.param), error.status, headers)

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse(error_body(400, str(error)), 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        location = [part for part in problem["loc"] if part not in ("query", "path", "header")]
        message, name = sentence_of({**problem, "loc": location})
        return JSONResponse(error_body(400, message, name), 400)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        message = SENTENCES.get(error.status_code, str(error.detail))
        return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with the tasks' bodies, and without the framework's own answer to a wrong request."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for body in BODIES.values():
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[body.__name__] = schema
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = made
    return app.openapi_schema
