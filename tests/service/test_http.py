"""The service's own protocol through a real server, and who may call it."""

import json
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import done, served, service_of
from test_jobs import IMAGE, noise

from sfumato.errors import UserError
from sfumato.service.service import Service
from sfumato.service.settings import ServiceSettings


@pytest.fixture(scope="module")
def running(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, httpx.Client]]:
    files = tmp_path_factory.mktemp("files")
    noise(24, 16).save(files / "inside.png")
    secret = tmp_path_factory.mktemp("outside") / "secret.png"
    noise(24, 16).save(secret)
    (files / "link.png").symlink_to(secret)
    (files / "text.png").write_text("no image")
    out = tmp_path_factory.mktemp("results")
    service = service_of([folders["text"], folders["label"]], out, folders=(files,), body=1, pixels=1024, queue=8)
    with served(service) as client:
        yield service, client


def test_a_job_with_its_events(running: tuple[Service, httpx.Client]) -> None:
    _, client = running
    answer = client.post("/v1/jobs", json={"model": "text", "prompt": "a red apple", "count": 2, "steps": 6})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    events: list[tuple[str, dict[str, Any]]] = []
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                events.append((kind, json.loads(value)))
    kinds = [kind for kind, _ in events]
    assert kinds[0] in ("state", "end")
    assert kinds[-1] == "end"
    final = events[-1][1]
    assert final["state"] == "done"
    assert final == client.get(f"/v1/jobs/{job['id']}").json()
    assert final["id"] in [one["id"] for one in client.get("/v1/jobs").json()["jobs"]]
    for image in final["images"]:
        png = client.get(image["url"])
        assert png.headers["content-type"] == "image/png"
        assert client.get(f"{image['url']}?scale=2").status_code == 200
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_previews_form_while_somebody_listens(running: tuple[Service, httpx.Client]) -> None:
    service, client = running
    job = client.post("/v1/jobs", json={"model": "text", "prompt": "a red apple", "steps": 12}).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        lines = list(stream.iter_lines())
    previews = [json.loads(data[6:]) for event, data in pairwise(lines) if event == "event: preview"]
    assert previews
    assert previews[0]["image"].startswith("data:image/png;base64,")
    assert 0 < previews[0]["step"] < 12
    assert not service.news.wanted(job["id"])


def test_models_and_options_say_what_they_take(running: tuple[Service, httpx.Client]) -> None:
    _, client = running
    text, label = client.get("/v1/models").json()["data"]
    assert (text["id"], text["takes"], label["takes"]) == ("text", ["text"], ["label"])
    assert label["classes"] == ["round", "square"]
    assert client.get("/v1/models/text").json()["image_size"] == [16, 24]
    tasks = client.get("/v1/options").json()["tasks"]
    steps = next(field for field in tasks["sample"]["fields"] if field["name"] == "steps")
    assert steps["range"] == {
        "low": 1,
        "high": 10_000,
        "low_excluded": False,
        "high_excluded": False,
        "whole": True,
    }
    assert "Sampling steps" in steps["help"]
    projection = next(field for field in tasks["sample"]["fields"] if field["name"] == "projection")
    assert [field["name"] for field in projection["fields"]] == ["parallel", "limit", "momentum"]
    assert projection["fields"][2]["range"]["low_excluded"]
    required = {task: [f["name"] for f in one["fields"] if f["required"]] for task, one in tasks.items()}
    assert required["inpaint"] == ["image", "mask"]
    assert required["outpaint"] == ["image", "extend"]


def test_uploads(running: tuple[Service, httpx.Client]) -> None:
    service, client = running
    png = (service.settings.folders[0] / "inside.png").read_bytes()
    answer = client.post("/v1/uploads", files={"file": ("a.png", png)})
    assert answer.status_code == 201
    upload = answer.json()
    assert (upload["width"], upload["height"], upload["settings"]) == (24, 16, None)
    assert client.get(upload["url"]).status_code == 200
    body = {"task": "edit", "model": "text", "prompt": "a", "steps": 1}
    for reference in (f"upload:{upload['id']}", "file:inside.png", IMAGE):
        job = service.submit({**body, "image": reference})
        done(job)
        assert job.state == "done"
        sent = client.get(f"/v1/jobs/{job.id}").json()["request"]["image"]
        shortened = f"data:image/png;base64,… ({len(IMAGE) - 22:,} characters)"
        assert sent == (shortened if reference == IMAGE else reference)
    earlier = client.post("/v1/jobs", json={**body, "image": f"image:{job.id}/0"})
    assert earlier.status_code == 202
    assert client.delete(upload["url"]).status_code == 204
    assert client.get(upload["url"]).status_code == 404


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such model": ({"model": "nope"}, "model 'nope' is not one of text, label"),
    "no model": ({"model": None}, "model is missing"),
    "no such task": ({"task": "smaple"}, "did you mean 'sample'"),
    "task of another": ({"task": "upscale", "image": IMAGE}, "does not do 'upscale'"),
    "unknown field": ({"promt": "a"}, "'promt' is not a field of this request"),
    "wrong type": ({"steps": "many"}, "steps 'many'"),
    "out of range": ({"steps": 0}, "steps 0"),
    "too many steps": ({"steps": 5000}, "5,000 steps are more than the 1,000"),
    "too many images": ({"count": 65}, "count is 65"),
    "many seeds": ({"seeds": list(range(100))}, "the number of images is 100"),
    "large": ({"size": [64, 64]}, "pixels allowed here"),
    "no multiple": ({"size": [17, 24]}, "is not a multiple of"),
    "sampler": ({"sampler": "ddmi"}, "is not one of auto"),
    "projection": ({"projection": {"momentum": 1.5}}, "projection"),
    "no such projection": ({"projection": {"eta": 1}}, "projection"),
    "setting": ({"sampler": "ddim:eat=1"}, "eat"),
    "label": ({"label": 1}, "not trained with label"),
    "nan": ({"guidance": [1.0, None]}, "guidance"),
    "surrogate": ({"prompt": "\ud800"}, "surrogate"),
    "nul": ({"prompt": "\0"}, "NUL"),
    "tiny": ({"decoder": "tiny"}, "no tiny decoder"),
    "image": ({"task": "edit", "image": "nothing"}, "is not an image"),
    "outside": ({"task": "edit", "image": "file:../secret.png"}, "is not a file below the folders"),
    "absolute": ({"task": "edit", "image": "file:/etc/passwd"}, "is not a file below the folders"),
    "link": ({"task": "edit", "image": "file:link.png"}, "is not a file below the folders"),
    "not an image": ({"task": "edit", "image": "file:text.png"}, "cannot be read"),
    "data": ({"task": "edit", "image": "data:image/png;base64,!!"}, "is not a data URL"),
    "gone": ({"task": "edit", "image": "upload:0123456789abcdef"}, "is not here (any more)"),
    "mask": ({"task": "inpaint", "image": IMAGE}, "mask is missing"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_wrong_request_is_refused_in_one_sentence(name: str, running: tuple[Service, httpx.Client]) -> None:
    _, client = running
    changes, sentence = BAD[name]
    answer = client.post("/v1/jobs", content=json.dumps({"model": "text", **changes}).encode())
    assert answer.status_code in (400, 404), answer.text
    message = answer.json()["error"]["message"]
    assert sentence in message
    assert "\n" not in message
    assert "Traceback" not in answer.text


def test_bodies_that_are_no_json_or_too_large(running: tuple[Service, httpx.Client]) -> None:
    _, client = running
    assert client.post("/v1/jobs", content=b"{").status_code == 400
    assert client.post("/v1/jobs", content=b"[" * 100_000).status_code == 400
    assert client.post("/v1/jobs", content=b'{"steps": NaN}').status_code == 400
    assert client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    large = b" " * (1 << 20) + b"{}"
    assert client.post("/v1/jobs", content=large).status_code == 413
    assert client.post("/v1/jobs", content=iter([large])).status_code == 413  # without Content-Length
    assert client.get("/nothing").json()["error"]["type"] == "not_found_error"
    assert client.put("/v1/jobs").status_code == 405
    assert client.post("/v1/uploads", files={"file": ("a.png", b"no image")}).status_code == 400
    assert client.post("/v1/uploads", content=b"x").status_code == 400


def test_a_client_that_goes_in_the_middle_of_its_request_is_no_failure(
    running: tuple[Service, httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = running
    failures = lambda: client.get("/metrics").text.count('status="500"')  # noqa: E731
    before = failures()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as half:
        half.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    with socket.create_connection((client.base_url.host, client.base_url.port)) as half:
        half.sendall(b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    for _ in range(20):
        assert client.get("/health").status_code == 200
    assert failures() == before
    assert "a request failed" not in caplog.text


def test_pages_elsewhere_cannot_call(running: tuple[Service, httpx.Client]) -> None:
    _, client = running
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/models", headers={"Origin": own}).status_code == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ):
        assert client.get("/v1/models", headers=headers).status_code == 403, headers


def test_operation(running: tuple[Service, httpx.Client]) -> None:
    _, client = running
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert "sfumato_jobs_submitted_total" in client.get("/metrics").text
    assert client.get("/openapi.json").json()["info"]["title"] == "sfumato"


def test_a_token_is_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a token"):
        ServiceSettings(host="0.0.0.0")
    service = service_of([folders["text"]], tmp_path, token="secret")
    with served(service) as client:
        assert client.get("/v1/models").status_code == 200
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.get("/health", headers={"Authorization": ""}).status_code == 200


def test_two_services_do_not_share_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    first, second = (service_of([folders["text"]], tmp_path) for _ in range(2))
    with first.running(), pytest.raises(UserError), second.running():
        pass
    assert threading.active_count() < 50
