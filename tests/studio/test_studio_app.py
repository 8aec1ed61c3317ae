"""The studio's app without a browser: who is let in, headers, kept images, the page's own files."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient

from command_line import Command
from sfumato.errors import UserError
from sfumato.shipped import WEIGHTS
from sfumato.studio.app import STATIC, add_page
from sfumato.studio.gallery import Gallery
from sfumato.studio.guard import kept_token
from sfumato.studio.look import Looks, data_folders
from sfumato.studio.places import Places
from sfumato.studio.routes import Room
from sfumato.studio.studio import Studio, StudioSettings
from sfumato.studio.trainings import Trainings

if TYPE_CHECKING:
    from starlette.requests import Request

TOKEN = "a-token-of-the-test"
SHIPPED = ["zoo:toy", "zoo:emoji"]
"""In the order in which they are listed: the first is the one that a page without others opens with."""


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (600, 300), (200, 0, 0)).save(tmp_path / "images" / "a.png")
    places, kept = Places((tmp_path,)), tmp_path / "kept"
    room = Room(
        places, kept, Gallery(kept / "images"), Trainings(kept / "trainings"), Looks(), lambda: None, lambda: None
    )
    app = FastAPI()

    @app.exception_handler(UserError)
    async def told(request: "Request", error: UserError) -> object:
        from fastapi.responses import JSONResponse

        return JSONResponse({"error": {"message": str(error)}}, 400)

    return TestClient(add_page(app, room, TOKEN), base_url="http://127.0.0.1")


def test_only_the_printed_address_lets_a_browser_in(client: TestClient) -> None:
    for path in ("/", "/static/js/main.js", "/studio/runs", "/studio/images"):
        assert client.get(path).status_code == 401, path
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").status_code == 200
    assert client.get("/studio/runs").status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    policy = client.get(f"/?token={TOKEN}").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy


def test_the_files_of_the_page_name_no_other_host_and_each_other_rightly() -> None:
    files = [path for path in STATIC.rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert len(files) > 20
    for path in files:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path
        assert "innerHTML" not in text, path
        for name in re.findall(r'from "(\.[^"]+)"', text):
            assert (path.parent / name).is_file(), f"{path} imports {name}"
        for name in re.findall(r'(?:href|src)="/static/([^"]+)"', text):
            assert (STATIC / name).is_file(), f"{path} names {name}"


def test_files_are_shown_only_below_the_folders_and_only_images(client: TestClient, tmp_path: Path) -> None:
    client.get(f"/?token={TOKEN}")
    path = str(tmp_path / "images" / "a.png")
    assert client.get("/studio/file", params={"path": path}).headers["content-type"] == "image/png"
    small = client.get("/studio/thumbnail", params={"path": path})
    assert small.headers["content-type"] == "image/jpeg"
    assert len(small.content) < 20_000
    (tmp_path / "notes.txt").write_text("x")
    for refused in ("/etc/passwd", str(tmp_path / "notes.txt"), str(tmp_path)):
        for route in ("file", "thumbnail"):
            assert client.get(f"/studio/{route}", params={"path": refused}).status_code == 400


def test_kept_images_survive_a_restart(client: TestClient, tmp_path: Path) -> None:
    folder, made = tmp_path / "kept" / "images", tmp_path / "images" / "a.png"
    gallery = Gallery(folder)
    for index in (0, 1, 1):
        gallery.keep("job", index, made, {"seed": 7, "settings": {}, "created": 5.0})
    listed = Gallery(folder).listed(10)["images"]
    assert [(one["index"], one["width"]) for one in listed] == [(0, 600), (1, 600)]
    Gallery(folder).remove(listed[0]["name"])
    (folder / listed[1]["name"]).unlink()  # by hand
    assert Gallery(folder).listed(10) == {"images": [], "total": 0}
    for name in ("../images.jsonl", "x.png"):
        with pytest.raises(UserError, match="there is no image"):
            gallery.path(name)


def test_folders_of_images_are_found_but_not_those_of_runs(tmp_path: Path) -> None:
    for name in ("set/cats", "set/dogs", "run/previews", "kept/images"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    (tmp_path / "run" / "config.yaml").write_text("a: 1")
    (tmp_path / "run" / "log.jsonl").write_text("")
    found = {one["name"]: one["images"] for one in data_folders(Places((tmp_path,)), tmp_path / "kept")}
    assert found == {"set": 2, "set/cats": 1, "set/dogs": 1}


def test_the_token_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    token = kept_token(tmp_path / "kept")
    assert kept_token(tmp_path / "kept") == token
    assert (tmp_path / "kept" / ".token").stat().st_mode & 0o077 == 0


def test_bad_input_is_one_sentence(command: Command, tmp_path: Path) -> None:
    for arguments, told in (
        ((tmp_path / "nowhere",), "does not exist: give a folder with runs"),
        ((Path(__file__),), "is not a folder: give"),
        ((tmp_path, "--port", "70000"), "--port is 70000"),
    ):
        outcome = command("studio", *arguments, "--no-browser")
        assert outcome.code == 2
        assert told in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1


def test_a_studio_without_models_has_those_of_the_package(tmp_path: Path) -> None:
    made = Studio(StudioSettings((tmp_path,), tmp_path / "kept", 0, "cpu", "float32"))
    client = TestClient(made.app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {made.token}"})
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == SHIPPED
    assert [model["example"] for model in models] == ["a large red circle on a white background", "red heart"]
    for name in ("toy", "emoji"):
        assert client.get(f"/studio/shipped/{name}").headers["content-type"] == "image/png"
    assert client.get("/studio/shipped/..").status_code == 404
    assert client.get("/studio/shipped/nope").status_code == 400


def test_a_shipped_model_below_the_folders_is_listed_once(tmp_path: Path) -> None:
    studio = Studio(StudioSettings((WEIGHTS.parent,), tmp_path / "kept", 0))
    assert [str(one.path) for one in studio.service.registry.list()] == SHIPPED
