"""The studio's app: the service's own, with the page and the studio's routes."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from sfumato.studio.guard import Guard
from sfumato.studio.routes import Room, image_routes, run_routes

STATIC = Path(__file__).parent / "static"


def add_page(app: FastAPI, room: Room, token: str, cookie: str = "sfumato") -> FastAPI:
    """Adds the page, the studio's routes and, outermost, the guard to the service's app."""
    app.include_router(image_routes(room))
    app.include_router(run_routes(room))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    app.add_middleware(Guard, token=token, cookie=cookie)
    return app
