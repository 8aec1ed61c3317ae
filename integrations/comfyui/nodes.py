"""The nodes: loading a model, encoding and decoding, and one node for each task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato import LatentDiffusion, SampleRequest, tasks
from sfumato.cli.options import chosen_device
from sfumato.model_folder import find_folder
from sfumato.service.declarations import TASKS, TaskName
from sfumato.tasks.interpolation import interpolate, stops_of

from .images import from_images, from_tensor, to_images, to_tensor
from .progress import watching
from .widgets import MODEL, described, input_types, options

CATEGORY = "sfumato"
OF_A_TASK = ("prompt", "label", "negative", "feather", "strength", "style_amount", "keep_colours", "boxes", "extend")
"""Options that are arguments of a task's function; the others are options of its sampling."""


class Load:
    """Opens a model folder, the folder of a run, or a model of the package."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (MODEL,), ("model",)
    DESCRIPTION = "Opens a model of sfumato: its folder, the folder of a run, or a name such as zoo:toy."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = {"default": "zoo:toy", "tooltip": "A model folder, the folder of a run, zoo:toy or zoo:emoji."}
        device = {"default": "auto", "tooltip": "auto, cpu, cuda or cuda:1."}
        exact = {"default": False, "tooltip": "Compute in float32 also where the device is faster with bfloat16."}
        return {"required": {"model": ("STRING", text), "device": ("STRING", device), "float32": ("BOOLEAN", exact)}}

    @classmethod
    def IS_CHANGED(cls, model: str, device: str, float32: bool) -> str:
        """A run's model is opened again when its training has saved a new one."""
        folder = find_folder(model)
        stamp = max(path.stat().st_mtime_ns for path in folder.iterdir())
        return f"{folder} {stamp} {device} {float32}"

    def load(self, model: str, device: str, float32: bool) -> tuple[LatentDiffusion]:
        opened = sfumato.load(model if model.startswith("zoo:") else Path(model).expanduser(), chosen_device(device))
        return (opened.for_inference(torch.float32 if float32 else None),)


class Encode:
    """Images -> latents of a model."""

    CATEGORY, FUNCTION = CATEGORY, "encode"
    RETURN_TYPES, RETURN_NAMES = ("LATENT",), ("latent",)
    DESCRIPTION = "The latents of images: zero mean and unit variance in each channel."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (MODEL,), "image": ("IMAGE",)}}

    def encode(self, model: LatentDiffusion, image: Tensor) -> tuple[dict[str, Tensor]]:
        with torch.no_grad():
            return ({"samples": model.encode(to_tensor(image)).cpu()},)


class Decode:
    """Latents -> images of a model."""

    CATEGORY, FUNCTION = CATEGORY, "decode"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("image",)
    DESCRIPTION = "The images of latents that the same model encoded."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": (MODEL,), "latent": ("LATENT",)}}

    def decode(self, model: LatentDiffusion, latent: dict[str, Tensor]) -> tuple[Tensor]:
        with torch.no_grad():
            return (from_tensor(model.decode(latent["samples"].to(model.device))),)


class TaskNode:
    """A task of the service as a node; subclasses name the task."""

    task: ClassVar[TaskName]
    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return input_types(cls.task)

    def run(self, model: LatentDiffusion, **values: Any) -> tuple[Tensor]:
        """Raises UserError, which ComfyUI shows, for options that do not fit the model."""
        given = options(self.task, values)
        images = {name: to_images(value) for name, value in values.items() if isinstance(value, Tensor)}
        own = {name: given.pop(name) for name in OF_A_TASK if name in given and self.task != "sample"}
        callback = watching(given)
        if self.task == "sample":
            return (from_tensor(model.sample_tensor(**given, callback=callback)),)
        if self.task == "interpolate":
            return (self._interpolated(model, own, given, callback),)
        size = {"size": given.pop("size")} if "size" in given else {}
        request = tasks.task_options(**given, callback=callback)
        made = RUN[self.task](model, images, {**own, **size}, request)
        return (from_images(made),)

    def _interpolated(self, model: LatentDiffusion, own: Any, given: Any, callback: Any) -> Tensor:
        texts = [[value] if isinstance(value, str) else value for value in (own.get("prompt"), own.get("label"))]
        stops = stops_of(given.pop("seeds", [0, 1]), *texts)
        return from_tensor(interpolate(model, stops, given.pop("frames"), SampleRequest(**given, callback=callback)))


def _prompts(own: dict[str, Any], count: int) -> list[str] | None:
    prompt = own.pop("prompt", None)
    return None if prompt is None else [prompt] * count


def _inpaint(model: LatentDiffusion, images: Any, own: Any, request: SampleRequest) -> Any:
    masks = images["mask"] if len(images["mask"]) > 1 else images["mask"] * len(images["image"])
    return tasks.inpaint_each(model, images["image"], masks, _prompts(own, len(masks)), **own, options=request)


def _outpaint(model: LatentDiffusion, images: Any, own: Any, request: SampleRequest) -> Any:
    return [done for image in images["image"] for done in tasks.outpaint(model, image, **own, options=request)]


def _edit(model: LatentDiffusion, images: Any, own: Any, request: SampleRequest) -> Any:
    style = images["style"][0] if "style" in images else None
    prompts = _prompts(own, len(images["image"]))
    return tasks.edit_each(model, images["image"], prompts, **own, style=style, options=request)


def _upscale(model: LatentDiffusion, images: Any, own: Any, request: SampleRequest) -> Any:
    return tasks.upscale_each(model, images["image"], _prompts(own, len(images["image"])), **own, options=request)


def _semantic(model: LatentDiffusion, images: Any, own: Any, request: SampleRequest) -> Any:
    maps = [_ids(image) for image in images["map"]]
    return tasks.paint_each(model, maps, _prompts(own, len(maps)), **own, options=request)


def _ids(image: Image.Image) -> Image.Image:
    """A grey image as ids: ComfyUI's images always have three channels."""
    red, *others = image.convert("RGB").split()
    return red if all(other.tobytes() == red.tobytes() for other in others) else image


def _layout(model: LatentDiffusion, images: Any, own: Any, request: SampleRequest) -> Any:
    return tasks.compose_each(model, [own.pop("boxes")], _prompts(own, 1), **own, options=request)


RUN: dict[str, Callable[..., Any]] = {
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "edit": _edit,
    "upscale": _upscale,
    "semantic": _semantic,
    "layout": _layout,
}
TITLES: dict[TaskName, str] = {
    "sample": "Sample",
    "inpaint": "Inpaint",
    "outpaint": "Outpaint",
    "edit": "Edit",
    "upscale": "Upscale",
    "semantic": "Label map to image",
    "layout": "Boxes to image",
    "interpolate": "Interpolate",
}


def _node(task: TaskName) -> type[TaskNode]:
    return type(f"Sfumato{task.capitalize()}", (TaskNode,), {"task": task, "DESCRIPTION": described(task)})


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "SfumatoLoad": Load,
    "SfumatoEncode": Encode,
    "SfumatoDecode": Decode,
    **{f"Sfumato{task.capitalize()}": _node(task) for task in TASKS},
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SfumatoLoad": "Load model (sfumato)",
    "SfumatoEncode": "Encode (sfumato)",
    "SfumatoDecode": "Decode (sfumato)",
    **{f"Sfumato{task.capitalize()}": f"{title} (sfumato)" for task, title in TITLES.items()},
}
