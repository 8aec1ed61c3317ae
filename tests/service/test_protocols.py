"""The clients of other protocols against a real server: OpenAI's own, and webuiapi of AUTOMATIC1111's."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from serving import PATIENCE, served, service_of
from test_jobs import noise

from sfumato.service.service import Service

Running = tuple[Service, httpx.Client]


@pytest.fixture(scope="module")
def running(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = service_of([folders["text"], folders["label"]], tmp_path_factory.mktemp("results"))
    with served(service) as client:
        yield service, client


@pytest.fixture
def client(running: Running) -> Any:
    import openai  # here, since collecting the tests should not wait for it

    return openai.OpenAI(base_url=f"{str(running[1].base_url).rstrip('/')}/v1", api_key="any", max_retries=0)


@pytest.fixture
def webui(running: Running) -> Any:
    import webuiapi

    address = urlsplit(str(running[1].base_url))
    return webuiapi.WebUIApi(host=address.hostname, port=address.port, sampler="DDIM", steps=2)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_openai_generates(client: Any, running: Running) -> None:
    assert [model.id for model in client.models.list()] == ["text", "label"]
    extra = {"seed": 5, "steps": 2, "guidance": 2.0, "sampler": "ddim"}
    made = client.images.generate(model="text", prompt="a red apple", n=2, size="24x16", extra_body=extra)
    assert made.data is not None
    files = [base64.b64decode(one.b64_json or "") for one in made.data]
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(24, 16)] * 2
    own = running[1].post("/v1/jobs", json={"model": "text", "prompt": "a red apple", "count": 2, **extra}).json()
    while (view := running[1].get(f"/v1/jobs/{own['id']}").json())["state"] != "done":
        time.sleep(0.02)
    assert [running[1].get(one["url"]).content for one in view["images"]] == files
    again = client.images.generate(model="text", prompt="a", response_format="url", extra_body={"steps": 1})
    assert again.data is not None
    assert httpx.get(str(again.data[0].url)).headers["content-type"] == "image/png"


def test_openai_edits(client: Any) -> None:
    photo = noise(24, 16)
    mask = photo.convert("RGBA")
    mask.paste((0, 0, 0, 0), (4, 4, 12, 10))
    made = client.images.edit(
        model="text", image=("a.png", png(photo)), mask=("m.png", png(mask)), prompt="an apple", extra_body={"steps": 2}
    )
    assert made.data is not None
    result = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json or ""))))
    outside = np.asarray(mask.getchannel("A")) > 0
    assert (result[outside] == np.asarray(photo)[outside]).all()
    assert (result[~outside] != np.asarray(photo)[~outside]).any()
    changed = client.images.edit(
        model="text", image=("a.png", png(photo)), prompt="an apple", n=2, extra_body={"steps": 2, "strength": 0.5}
    )
    assert changed.data is not None
    assert len(changed.data) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "nope"}, "is not one of text, label"),
        ({"size": "17x16"}, "is not a multiple of"),
        ({"extra_body": {"sampler": "nope"}}, "is not one of"),
        ({"extra_body": {"stream": True}}, "is not possible here"),
        ({"extra_body": {"setps": 3}}, "is not a field of this request"),
        ({"n": 1000}, "more than the 64"),
    ],
)
def test_openai_is_told_what_is_wrong(client: Any, options: dict[str, object], sentence: str) -> None:
    import openai

    with pytest.raises(openai.APIStatusError) as refused:
        client.images.generate(**{"model": "text", "prompt": "a", **options})  # type: ignore[arg-type]
    assert refused.value.status_code in (400, 404)
    assert sentence in str(refused.value)


def test_webui_samples_and_reads_its_text(webui: Any) -> None:
    webui.set_options({"sd_model_checkpoint": "text"})
    assert webui.util_get_current_model() == "text"
    assert webui.util_get_model_names() == ["label", "text"]
    assert "DPM++ 2M" in webui.util_get_sampler_names()
    made = webui.txt2img(prompt="a red apple", negative_prompt="a hill", seed=5, width=24, height=16, batch_size=2)
    assert [image.size for image in made.images] == [(24, 16)] * 2
    assert made.info["all_seeds"] == [5, 6]
    assert "Steps: 2, Sampler: ddim" in made.info["infotexts"][0]
    assert webui.png_info(made.image).info == made.info["infotexts"][0]
    one = webui.txt2img(prompt="square", width=24, height=16, override_settings={"sd_model_checkpoint": "label"})
    assert one.info["sd_model_name"] == "label"


def test_webui_changes_images(webui: Any) -> None:
    photo, mask = noise(24, 16), Image.new("L", (24, 16))
    mask.paste(255, (4, 4, 12, 10))
    common = {"images": [photo], "prompt": "a red apple", "width": 24, "height": 16}
    whole = webui.img2img(**common, denoising_strength=0.5)
    assert whole.image.size == (24, 16)
    part = webui.img2img(**common, mask_image=mask, mask_blur=0)
    outside = np.asarray(mask) == 0
    assert (np.asarray(part.image)[outside] == np.asarray(photo)[outside]).all()
    with pytest.raises(RuntimeError, match="enable_hr True is not possible here"):
        webui.txt2img(prompt="a", enable_hr=True)


def test_webui_watches_and_interrupts(webui: Any, running: Running) -> None:
    answers: list[Any] = []
    webui.set_options({"sd_model_checkpoint": "text"})

    def sample() -> None:
        answers.append(webui.txt2img(prompt="a red apple", width=24, height=16, steps=900))

    thread = threading.Thread(target=sample)
    thread.start()
    give_up = time.monotonic() + PATIENCE
    while not (progress := webui.get_progress())["current_image"]:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert 0 < progress["progress"] < 1
    assert progress["state"]["sampling_steps"] == 900
    webui.interrupt()
    thread.join(PATIENCE)
    assert answers[0].images == []
    webui.util_wait_for_ready(0.05)


def test_a_client_that_goes_away_cancels_its_job(running: Running) -> None:
    service, client = running
    body = {"model": "text", "prompt": "a", "steps": 1000}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=body, timeout=0.5)
    give_up = time.monotonic() + PATIENCE
    while service.queue.unfinished():
        assert time.monotonic() < give_up
        time.sleep(0.05)


WRONG: list[tuple[str, dict[str, object], str]] = [
    ("/sdapi/v1/txt2img", {"cfg_scale": "abc"}, "cfg_scale 'abc' is not a number"),
    ("/sdapi/v1/txt2img", {"cfg_scale": [1]}, "cfg_scale [1] is not a number"),
    ("/sdapi/v1/txt2img", {"foo": "\ud800"}, "half of a surrogate pair"),
    ("/sdapi/v1/txt2img", {"override_settings": 5}, "override_settings 5 is not a JSON object"),
    ("/sdapi/v1/img2img", {"denoising_strength": "abc"}, "denoising_strength 'abc' is not a number"),
    ("/sdapi/v1/img2img", {"denoising_strength": []}, "denoising_strength [] is not a number"),
    ("/sdapi/v1/img2img", {"width": "x" * 10_000}, "give whole numbers of at most"),
    ("/v1/images/generations", {"model": [1]}, "model [1] is not one of"),
    ("/v1/images/generations", {"model": {"a": 1}}, "is not one of"),
]


@pytest.mark.parametrize(("path", "fields", "sentence"), WRONG)
def test_values_of_a_wrong_type_are_one_short_sentence(
    running: Running, path: str, fields: dict[str, object], sentence: str
) -> None:
    image = base64.b64encode(png(noise(16, 16))).decode()
    of_path = {"init_images": [image]} if "img2img" in path else {"model": "text"} if "images" in path else {}
    answer = running[1].post(path, content=json.dumps({"prompt": "a", "steps": 1, **of_path, **fields}))
    assert (answer.status_code // 100, len(answer.content) < 1000) == (4, True), answer.text[:300]
    assert sentence in answer.json()["error"]["message"]


def test_a_key_that_stands_twice_is_refused(running: Running) -> None:
    answer = running[1].post("/v1/jobs", content=b'{"model": "text", "prompt": "a", "prompt": "b"}')
    assert answer.status_code == 400
    assert "has the key 'prompt' twice" in answer.json()["error"]["message"]


def test_masks_of_img2img_are_read_as_all_others(running: Running) -> None:
    photo, hole = noise(16, 16), np.zeros((16, 16), np.uint8)
    hole[4:12, 4:12] = 1
    body = {"prompt": "a", "steps": 2, "mask_blur": 0, "init_images": [base64.b64encode(png(photo)).decode()]}
    path = "/sdapi/v1/img2img"
    made = running[1].post(path, json={**body, "mask": base64.b64encode(png(Image.fromarray(hole))).decode()})
    assert made.status_code == 200, made.text
    result = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.json()["images"][0]))))
    assert (result[hole == 0] == np.asarray(photo)[hole == 0]).all()
    swapped = running[1].post(path, json={**body, "mask": base64.b64encode(png(noise(16, 16))).decode()})
    assert swapped.status_code == 400


EDITED = {
    "no facts": '{"format": 1, "model": {}}',
    "a number that is none": '{"format": 1, "model": {}, "facts": {"a": NaN}, "missing": []}',
    "infinite": '{"format": 1, "model": {}, "facts": {"a": 1e999}, "missing": []}',
    "half a character": '{"format": 1, "model": {}, "facts": {"a": "\\ud800"}, "missing": []}',
    "missing 5": '{"format": 1, "model": {}, "facts": {}, "missing": 5}',
    "a list as request": '{"format": 1, "model": {}, "facts": {}, "missing": [], "request": [1]}',
    "a list as name": '{"format": 1, "model": {"name": [1]}, "facts": {}, "missing": []}',
}


@pytest.mark.parametrize("text", EDITED.values(), ids=EDITED.keys())
def test_edited_settings_of_a_png_are_not_read(running: Running, text: str) -> None:
    chunks, buffer = PngInfo(), io.BytesIO()
    chunks.add_itxt("sfumato", text)
    noise(16, 16).save(buffer, "PNG", pnginfo=chunks)
    shown = running[1].post("/sdapi/v1/png-info", json={"image": base64.b64encode(buffer.getvalue()).decode()})
    assert (shown.status_code, shown.json()["parameters"]) == (200, {})
    stored = running[1].post("/v1/uploads", files={"file": ("a.png", buffer.getvalue(), "image/png")})
    assert (stored.status_code, stored.json()["settings"]) == (201, None)
