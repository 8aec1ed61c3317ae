"""The protocol of AUTOMATIC1111's web user interface: txt2img, img2img, progress, and what clients ask around them."""

import base64
import binascii
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from sfumato.data.masks import read_mask
from sfumato.foreign import short
from sfumato.provenance import read_settings
from sfumato.sampling.table import SAMPLERS as OURS
from sfumato.service.declarations import grids
from sfumato.service.errors import RefusedError
from sfumato.service.jobs import Job
from sfumato.service.openai_api import png_url, words_of
from sfumato.service.own_api import json_of
from sfumato.service.service import Service
from sfumato.service.waiting import encoded, files_of, finished, new_seed

SAMPLERS = {
    "Euler a": "ddim:eta=1",
    "Euler": "euler",
    "Heun": "heun",
    "DPM++ 2M": "dpmpp-2m",
    "DPM++ 2S": "dpmpp-2s",
    "DPM++ 3M": "dpmpp-3m",
    "DPM++ 2M SDE": "dpmpp-2m-sde",
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "PLMS": "plms",
    "UniPC": "unipc",
    "Automatic": "auto",
}
"""By their names there. Euler's ancestral steps are those of DDIM with all noise renewed."""
SCHEDULERS = {"automatic": None, "karras": "karras", "uniform": "leading", "align_your_steps": "ays"}
DEFAULTS: Mapping[str, Any] = {
    "enable_hr": False,
    "restore_faces": False,
    "tiling": False,
    "subseed_strength": 0,
    "script_name": None,
    "styles": [],
    "refiner_checkpoint": None,
    "inpainting_mask_invert": 0,
    "resize_mode": 0,
}
"""Fields that change the image there and are not possible here, with the values that leave it as it is."""
STRENGTH, FEATHER, SCALE, STEPS = 0.75, 4, 7.0, 50
POLLED = 5.0
"""Seconds after a question for the progress during which previews are made."""


class WebUi:
    """The state of the protocol: the chosen model."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.model: str | None = None

    def current(self) -> str:
        """The chosen model, the first where none was chosen. Raises RefusedError if there is none."""
        known = self.service.registry.list()
        names = [one.id for one in known]
        if self.model in names:
            return str(self.model)
        if not names:
            raise RefusedError(400, "the service has no model")
        return names[0]

    def choose(self, name: Any) -> None:
        """Chooses a model by its title. Raises RefusedError."""
        self.model = self.service.registry.get(name if isinstance(name, str) else str(name)).id

    async def run(self, request: Request, body: dict[str, Any], given: Mapping[str, Any]) -> JSONResponse:
        """The answer of txt2img and img2img."""
        job = await finished(self.service, body, request.is_disconnected)
        files = await run_in_threadpool(files_of, self.service, job)
        texts = [_text_of(self.service, job, one.index) for one in job.results]
        seeds = [one.seed for one in job.results]
        self.service.remove(job.id)
        images = [encoded(one) for one in files] if given.get("send_images", True) else []
        info = {
            "prompt": given.get("prompt") or "",
            "negative_prompt": given.get("negative_prompt") or "",
            "seed": seeds[0] if seeds else body["seed"],
            "all_seeds": seeds,
            "steps": body["steps"],
            "sampler_name": given.get("sampler_name") or given.get("sampler_index") or "Automatic",
            "cfg_scale": body.get("guidance"),
            "sd_model_name": job.known.id,
            "infotexts": texts,
            "notes": job.notes,
        }
        kept = {name: value for name, value in given.items() if name not in ("init_images", "mask")}
        return JSONResponse({"images": images, "parameters": kept, "info": json.dumps(info)})


def _text_of(service: Service, job: Job, index: int) -> str:
    with Image.open(service.image(job.id, index)) as image:
        return read_settings(image)[1] or ""


def router(service: Service) -> APIRouter:
    """The routes of AUTOMATIC1111's protocol."""
    routes = APIRouter(prefix="/sdapi/v1", include_in_schema=False)
    webui = WebUi(service)
    _add_sampling(routes, webui)
    _add_progress(routes, webui)
    _add_choices(routes, webui)
    _add_empty_lists(routes)
    return routes


def _add_sampling(routes: APIRouter, webui: WebUi) -> None:
    @routes.post("/txt2img")
    async def txt2img(request: Request) -> JSONResponse:
        given = await _object(request)
        body = _body(webui, given)
        size = webui.service.model(body["model"])["image_size"]
        body |= {"task": "sample", "size": [given.get("height") or size[0], given.get("width") or size[1]]}
        return await webui.run(request, body, given)

    @routes.post("/img2img")
    async def img2img(request: Request) -> JSONResponse:
        given = await _object(request)
        body = await run_in_threadpool(_image_body, webui, given)
        return await webui.run(request, body, given)

    @routes.post("/png-info")
    async def png_info(request: Request) -> JSONResponse:
        given = await _object(request)
        image = await run_in_threadpool(_image, webui.service, given.get("image"), "image", True)
        settings, text = read_settings(image)
        items = {name: value for name, value in image.info.items() if isinstance(value, str)}
        return JSONResponse(
            {"info": text or "", "items": items, "parameters": {} if settings is None else settings["facts"]}
        )


def _add_progress(routes: APIRouter, webui: WebUi) -> None:
    service = webui.service

    @routes.get("/progress")
    def progress() -> JSONResponse:
        service.previews_until = time.monotonic() + POLLED
        running = [job for job in service.queue.unfinished() if job.state == "running"]
        job = running[0] if running else None
        preview = None if job is None else service.latest_preview(job)
        state = {
            "skipped": False,
            "interrupted": False,
            "job": "" if job is None else job.id,
            "job_count": len(service.queue.unfinished()),
            "job_no": 0,
            "sampling_step": 0 if job is None else job.step,
            "sampling_steps": 0 if job is None else job.steps,
        }
        share, left = (0.0, 0.0) if job is None else (job.progress, job.seconds_left or 0.0)
        image = None if preview is None else encoded(preview)
        return JSONResponse(
            {"progress": share, "eta_relative": left, "state": state, "current_image": image, "textinfo": None}
        )

    @routes.post("/interrupt")
    @routes.post("/skip")
    def interrupt() -> JSONResponse:
        for job in service.queue.unfinished():
            if job.state == "running":
                service.cancel(job.id)
        return JSONResponse({})


def _add_choices(routes: APIRouter, webui: WebUi) -> None:
    """The available choices: samplers, schedulers and models; and the choice of a model."""
    service = webui.service

    @routes.get("/samplers")
    def samplers() -> JSONResponse:
        return JSONResponse([{"name": name, "aliases": [ours], "options": {}} for name, ours in SAMPLERS.items()])

    @routes.get("/schedulers")
    def schedulers() -> JSONResponse:
        names = [*SCHEDULERS, *(one for one in grids() if one not in SCHEDULERS)]
        return JSONResponse([{"name": name, "label": name.replace("_", " ").capitalize()} for name in names])

    @routes.get("/sd-models")
    def models() -> JSONResponse:
        return JSONResponse(
            [
                {
                    "title": one["id"],
                    "model_name": one["id"],
                    "hash": one["digest"],
                    "sha256": None,
                    "filename": one["path"],
                    "config": None,
                }
                for one in service.models()
            ]
        )

    @routes.get("/options")
    def options() -> JSONResponse:
        return JSONResponse({"sd_model_checkpoint": webui.current(), "samples_format": "png"})

    @routes.post("/options")
    async def set_options(request: Request) -> JSONResponse:
        for name, value in (await _object(request)).items():
            if name != "sd_model_checkpoint":
                raise RefusedError(
                    400, f"the option {short(name)} cannot be set here: only sd_model_checkpoint can", name
                )
            webui.choose(value)
        return JSONResponse(None)


def _add_empty_lists(routes: APIRouter) -> None:
    """Features that clients ask for at their start, but that are not here: scripts, embeddings, upscalers and so on."""

    @routes.get("/scripts")
    def scripts() -> JSONResponse:
        return JSONResponse({"txt2img": [], "img2img": []})

    @routes.get("/cmd-flags")
    @routes.get("/embeddings")
    def nothing() -> JSONResponse:
        return JSONResponse({})

    @routes.get("/sd-vae")
    @routes.get("/upscalers")
    @routes.get("/loras")
    @routes.get("/hypernetworks")
    @routes.get("/prompt-styles")
    def none() -> JSONResponse:
        return JSONResponse([])

    @routes.post("/refresh-checkpoints")
    def refresh() -> JSONResponse:
        return JSONResponse(None)


async def _object(request: Request) -> dict[str, Any]:
    given = await json_of(request)
    if not isinstance(given, dict):
        raise RefusedError(400, "the body is not a JSON object")
    return given


def _body(webui: WebUi, given: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a request that txt2img and img2img share, as the service's own. Raises RefusedError."""
    for name, usual in DEFAULTS.items():
        if given.get(name, usual) not in (usual, None, "", False, [], 0) and name in given:
            raise RefusedError(400, f"{name} {short(given[name])} is not possible here: leave it out", name)
    overridden = given.get("override_settings") or {}
    model = webui.current()
    if not isinstance(overridden, dict):
        raise RefusedError(400, f"override_settings {short(overridden)} is not a JSON object", "override_settings")
    if overridden.get("sd_model_checkpoint"):
        model = webui.service.registry.get(str(overridden["sd_model_checkpoint"])).id
    view = webui.service.model(model)
    count = _whole(given, "batch_size", 1) * _whole(given, "n_iter", 1)
    seed = given.get("seed", -1)
    body = {
        "model": model,
        "count": count,
        "seed": new_seed() if seed in (-1, None) else seed,
        "steps": _whole(given, "steps", STEPS),
        "sampler": _sampler(given.get("sampler_name") or given.get("sampler_index") or "Automatic"),
        "grid": _grid(given.get("scheduler")),
        **words_of(given.get("prompt"), given.get("negative_prompt"), webui.service, model),
    }
    conditioned = body.get("prompt") or body.get("label") is not None
    if view["guidance"] and conditioned:
        body["guidance"] = _number(given, "cfg_scale", SCALE)
    return body


def _whole(given: Mapping[str, Any], name: str, usual: int) -> int:
    value = given.get(name)
    if value is None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10**6:
        raise RefusedError(400, f"{name} {short(value)} is not a whole number from 1 on", name)
    return value


def _number(given: Mapping[str, Any], name: str, usual: float) -> float:
    value = given.get(name)
    if value is None:
        return usual
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise RefusedError(400, f"{name} {short(value)} is not a number", name)
    return float(value)


def _sampler(name: Any) -> str:
    ours = SAMPLERS.get(name) if isinstance(name, str) else None
    if ours is None and isinstance(name, str) and name.partition(":")[0] in OURS:
        return name
    if ours is None:
        raise RefusedError(400, f"sampler {short(name)} is not one of {', '.join(SAMPLERS)}", "sampler_name")
    return ours


def _grid(name: Any) -> str | None:
    key = str(name or "automatic").lower().replace(" ", "_")
    if key in SCHEDULERS:
        return SCHEDULERS[key]
    if key in grids():
        return key
    raise RefusedError(400, f"scheduler {short(name)} is not one of {', '.join([*SCHEDULERS, *grids()])}", "scheduler")


def _image_body(webui: WebUi, given: Mapping[str, Any]) -> dict[str, Any]:
    """The body of img2img: an edit, or with a mask an inpainting. Raises RefusedError."""
    body = _body(webui, given)
    images = given.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise RefusedError(400, "init_images is not a list of one image", "init_images")
    image = _image(webui.service, images[0], "init_images", False)
    size = (given.get("width") or image.width, given.get("height") or image.height)
    if not all(isinstance(side, int) and 1 <= side <= 65_536 for side in size) or size[0] * size[1] > _pixels(webui):
        raise RefusedError(
            400,
            f"width and height are {short(size[0])}x{short(size[1])}: give whole numbers of at most "
            f"{_pixels(webui):,} pixels together",
            "width",
        )
    body["image"] = png_url(_resized(image, size, Image.Resampling.LANCZOS))
    if given.get("mask") is None:
        return {**body, "task": "edit", "strength": _number(given, "denoising_strength", STRENGTH)}
    mask = read_mask(_image(webui.service, given["mask"], "mask", True), "mask")
    hole = _resized(Image.fromarray(mask.hole), size, Image.Resampling.NEAREST)
    feather = min(_feather(given), min(size))
    return {**body, "task": "inpaint", "mask": png_url(hole), "feather": feather}


def _pixels(webui: WebUi) -> int:
    return webui.service.settings.pixels


def _feather(given: Mapping[str, Any]) -> int:
    value = given.get("mask_blur", FEATHER)
    if not isinstance(value, int) or value < 0:
        raise RefusedError(400, f"mask_blur {short(value)} is not a whole number from 0 on", "mask_blur")
    return value


def _resized(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, how)


def _image(service: Service, text: Any, name: str, values: bool) -> Image.Image:
    """The image of base64, with or without the head of a data URL. Raises RefusedError."""
    if not isinstance(text, str):
        raise RefusedError(400, f"{name} is {short(text)}: give an image as base64", name)
    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, f"{name} is not base64", name) from None
    return service.references.from_bytes(content, name, values)
