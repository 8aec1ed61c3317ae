"""OpenAI's images protocol: generations and edits, with seed, steps, guidance and sampler as further fields."""

import io
import re
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from sfumato.foreign import short
from sfumato.service.errors import RefusedError
from sfumato.service.own_api import BUSY, REFUSALS, json_of
from sfumato.service.service import Service
from sfumato.service.waiting import encoded, files_of, finished, new_seed

FURTHER = ("seed", "steps", "guidance", "sampler", "grid", "eta")
"""Fields of the service's own request that a client passes in `extra_body`."""
WITHOUT_EFFECT = ("user", "quality", "style", "background", "moderation", "output_compression", "input_fidelity")
"""Fields of other models, without effect here; they are accepted, as clients send them to every server."""
ONLY: Mapping[str, tuple[Any, ...]] = {
    "output_format": ("png", None),
    "stream": (False, None, "false"),
    "partial_images": (0, None, "0"),
    "response_format": ("b64_json", "url", None),
}
KNOWN = ("prompt", "model", "n", "size", "negative_prompt", "strength", *FURTHER, *WITHOUT_EFFECT, *ONLY)
MOST = 64


class GeneratedImage(BaseModel):
    """One image, as base64 or as an address, and its seed."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImagesAnswer(BaseModel):
    """The images of a request."""

    created: int
    data: list[GeneratedImage]


def router(service: Service) -> APIRouter:
    """The routes of OpenAI's protocol."""
    routes = APIRouter(responses={**REFUSALS, **BUSY}, include_in_schema=False)

    @routes.post("/v1/images/generations", response_model=ImagesAnswer)
    async def generate(request: Request) -> Any:
        """Images of a prompt."""
        given = await json_of(request)
        if not isinstance(given, dict):
            raise RefusedError(400, "the body is not a JSON object")
        _check(given)
        body = {**_common(given, service), "task": "sample", "size": _size(given.get("size"))}
        return await _answer(service, request, body, given)

    @routes.post("/v1/images/edits", response_model=ImagesAnswer)
    async def edit(request: Request) -> Any:
        """An image changed by a prompt; with a mask only where the mask is transparent."""
        async with request.form(max_files=4, max_fields=64) as form:
            given = {name: value for name, value in form.multi_items() if isinstance(value, str)}
            image, mask = await _file(form, "image"), await _file(form, "mask")
        _check(given)
        if image is None:
            raise RefusedError(400, "image is missing: send the file to edit", "image")
        common = _common(_typed(given), service)
        body = await run_in_threadpool(_edit_body, service, common, given, image, mask)
        return await _answer(service, request, body, given)

    return routes


def _check(given: Mapping[str, Any]) -> None:
    """Raises RefusedError for fields that are not known, and for values that are not possible here."""
    for name, value in given.items():
        if name not in KNOWN:
            raise RefusedError(400, f"{short(name)} is not a field of this request: it has {', '.join(KNOWN)}", None)
        if name in ONLY and value not in ONLY[name]:
            possible = ", ".join(str(one) for one in ONLY[name] if one is not None)
            raise RefusedError(400, f"{name} {short(value)} is not possible here: give {possible}", name)


def _typed(given: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a form with numbers as numbers."""
    made: dict[str, Any] = dict(given)
    for name, kind in (
        ("n", int),
        ("seed", int),
        ("steps", int),
        ("guidance", float),
        ("strength", float),
        ("eta", float),
    ):
        if name in given:
            try:
                made[name] = kind(given[name])
            except ValueError:
                raise RefusedError(400, f"{name} {short(given[name])} is not a number", name) from None
    return made


def _common(given: Mapping[str, Any], service: Service) -> dict[str, Any]:
    """The part of a request that both have, as the service's own."""
    known = service.registry.get(given.get("model"))
    body: dict[str, Any] = {"model": known.id, "count": 1 if given.get("n") is None else given["n"]}
    body |= {name: given[name] for name in FURTHER if given.get(name) is not None}
    body.setdefault("seed", new_seed())
    body |= words_of(given.get("prompt"), given.get("negative_prompt"), service, known.id)
    return body


def words_of(prompt: Any, negative: Any, service: Service, model: str) -> dict[str, Any]:
    """The prompt as the model takes it: as a text, or as the name of a class. Raises RefusedError."""
    takes = service.model(model)["takes"]
    if prompt is not None and not isinstance(prompt, str):
        raise RefusedError(400, f"prompt is {short(prompt)}: give a text", "prompt")
    made: dict[str, Any] = {}
    if "text" in takes:
        made["prompt"] = prompt
    elif prompt and "label" in takes:
        made["label"] = prompt
    elif prompt:
        raise RefusedError(400, f"model {model!r} takes no prompt: leave it empty", "prompt")
    if negative:
        made["negative"] = negative
    return made


def _size(text: Any) -> list[int] | None:
    """[height, width] of "WIDTHxHEIGHT"; None for auto."""
    if text in (None, "auto"):
        return None
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text) if isinstance(text, str) else None
    if found is None:
        raise RefusedError(400, f"size {short(text)} is neither auto nor WIDTHxHEIGHT such as 256x256", "size")
    return [int(found[2]), int(found[1])]


async def _file(form: FormData, name: str) -> bytes | None:
    for key in (name, f"{name}[]"):
        files = [one for one in form.getlist(key) if isinstance(one, UploadFile)]
        if len(files) > 1:
            raise RefusedError(400, f"{len(files)} images were sent as {name}: send one", name)
        if files:
            return await files[0].read()
    return None


def _edit_body(
    service: Service, common: dict[str, Any], given: Mapping[str, Any], image: bytes, mask: bytes | None
) -> dict[str, Any]:
    opened = service.references.from_bytes(image, "image")
    size = _size(given.get("size"))
    if size not in (None, [opened.height, opened.width]):
        raise RefusedError(
            400, f"size is {given['size']}: an edited image keeps its own {opened.width}x{opened.height}", "size"
        )
    hole = opened if mask is None else service.references.from_bytes(mask, "mask", values=True)
    body = {**common, "image": data_url_of(image)}
    if mask is None and not hole.has_transparency_data:
        strength = _typed(given).get("strength") if "strength" in given else None
        return {**body, "task": "edit", **({} if strength is None else {"strength": strength})}
    return {**body, "task": "inpaint", "mask": png_url(_transparent(hole))}


def _transparent(image: Image.Image) -> Image.Image:
    """A mask that is white where the image is fully transparent."""
    return image.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)


def data_url_of(content: bytes) -> str:
    """A file as a reference of a request."""
    return f"data:image/png;base64,{encoded(content)}"


def png_url(image: Image.Image) -> str:
    """An image as a reference of a request."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_url_of(buffer.getvalue())


async def _answer(service: Service, request: Request, body: dict[str, Any], given: Mapping[str, Any]) -> JSONResponse:
    job = await finished(service, body, request.is_disconnected)
    if given.get("response_format") == "url":
        base = str(request.base_url).rstrip("/")
        data = [{"url": f"{base}/v1/jobs/{job.id}/images/{one.index}", "seed": one.seed} for one in job.results]
    else:
        files = await run_in_threadpool(files_of, service, job)
        data = [{"b64_json": encoded(one), "seed": made.seed} for one, made in zip(files, job.results, strict=True)]
        service.remove(job.id)
    return JSONResponse({"created": int(time.time()), "data": data})
