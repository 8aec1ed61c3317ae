"""The models of a service: what each takes, from its configuration alone."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.conditioning.crop import CROP
from sfumato.conditioning.layout import LayoutConfig
from sfumato.conditioning.spatial import ImageConfig, SemanticConfig
from sfumato.conditioning.table import CompositeConfig, class_config
from sfumato.config import load_config
from sfumato.errors import UserError
from sfumato.foreign import reading, short
from sfumato.hub import is_hub
from sfumato.model import LatentDiffusion, build
from sfumato.model_config import ModelConfig
from sfumato.model_folder import find_folder, tokenizer_of, with_own_encoders
from sfumato.nn.init import without_weights
from sfumato.pipeline.conditions import source_of
from sfumato.pipeline.parts import canvas_factor
from sfumato.pipeline.students import default_steps
from sfumato.service.declarations import TaskName
from sfumato.service.errors import RefusedError
from sfumato.shipped import description, example, is_shipped, shipped_name
from sfumato.tasks.inpainting import MASK, MASKED, reads_masks
from sfumato.tasks.parts import condition_parts
from sfumato.tasks.super_resolution import SMALL, enlargement
from sfumato.versions import CONFIG_FILE, TINY_DECODER_FILE

Stamp = tuple[tuple[str, int, int], ...]
"""Names, sizes and times of a model's files: another one is another model."""


@dataclass(frozen=True)
class KnownModel:
    """A model of the service.

    Attributes:
        id: its name in requests.
        path: as it was given; folder: of its files.
        outline: the model without weights, on the meta device: what requests are checked against.
        stamp: of the files that were read.
    """

    id: str
    path: Path
    folder: Path
    outline: LatentDiffusion
    stamp: Stamp
    created: int

    @property
    def config(self) -> ModelConfig:
        """Of its folder."""
        return self.outline.config

    @property
    def weights(self) -> int:
        """Bytes of its weights in memory, in float32 like those of its outline, in however few they are stored."""
        tensors = [tensor for part in self.outline.parts().values() for tensor in part.state_dict().values()]
        own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return own + sum(size for name, size, _ in self.stamp if name == TINY_DECODER_FILE)

    @property
    def tasks(self) -> list[TaskName]:
        """The tasks of the model, the usual one first."""
        return tasks_of(self.outline)


class Registry:
    """The models by id. Its methods may be called from any thread."""

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self._known: dict[str, KnownModel] = {}
        self._lock = threading.RLock()
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> KnownModel:
        """Makes a model known. Raises UserError for what is no diffusion model."""
        folder = find_folder(path)
        with self._lock:
            there = next((one for one in self._known.values() if one.folder == folder), None)
            known = described(there.id if there is not None else self._free_name(path), path)
            self._known[known.id] = known
            return known

    def remove(self, name: str) -> None:
        """Forgets a model; jobs that run with it end as usual."""
        with self._lock:
            self._known.pop(name, None)

    def list(self) -> list[KnownModel]:
        """All of them in the order in which they were added, shipped ones last; changed files are read again."""
        with self._lock:
            return sorted((self._current(name) for name in list(self._known)), key=lambda one: is_shipped(one.path))

    def get(self, name: Any) -> KnownModel:
        """A model by id; the only one for None. Raises RefusedError."""
        with self._lock:
            if name is None:
                if len(self._known) == 1:
                    return self._current(next(iter(self._known)))
                raise RefusedError(
                    400, f"model is missing: give one of {', '.join(self._known) or 'none: there is none'}", "model"
                )
            if not isinstance(name, str) or name not in self._known:
                raise RefusedError(
                    404, f"model {short(name)} is not one of {', '.join(self._known) or 'none: there is none'}", "model"
                )
            return self._current(name)

    def _current(self, name: str) -> KnownModel:
        known = self._known[name]
        try:
            changed = stamp_of(find_folder(known.path)) != known.stamp
            if changed:
                self._known[name] = described(name, known.path)
        except (UserError, OSError):  # it is being replaced, or gone: what was read holds until it is used
            return known
        return self._known[name]

    def _free_name(self, path: Path) -> str:
        if is_shipped(path) or is_hub(path):
            return str(path)
        resolved = path.resolve()
        name = resolved.parent.name if resolved.name == "model" else resolved.name
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "model"
        number, free = 2, name
        while free in self._known:
            free, number = f"{name}-{number}", number + 1
        return free


def described(name: str, path: Path) -> KnownModel:
    """Reads a model's configuration. Raises UserError for what is no diffusion model."""
    folder = find_folder(path)
    stamp = stamp_of(folder)
    with reading(folder):
        config = with_own_encoders(load_config(str(folder / CONFIG_FILE), [], ModelConfig), folder)
        if config.diffusion is None:
            raise UserError(f"{str(path)!r} is an autoencoder only: give a diffusion model to sample from")
        tokenizer = tokenizer_of(folder, config.diffusion.conditioner)
        with without_weights():
            outline = build(config, tokenizer)
    created = int((folder / CONFIG_FILE).stat().st_mtime)
    return KnownModel(name, path, folder, outline, stamp, created)


def stamp_of(folder: Path) -> Stamp:
    """The stamp of a model's files."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".yaml", ".json"))
    found = [(path.name, path.stat()) for path in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def tasks_of(model: LatentDiffusion) -> list[TaskName]:
    """The tasks of a model, the usual one first; one that needs a map, boxes or a small image has that task alone."""
    parts = condition_parts(model)
    found: list[TaskName] = []
    if any(isinstance(part, SemanticConfig) for part in parts):
        found.append("semantic")
    if any(isinstance(part, LayoutConfig) for part in parts):
        found.append("layout")
    if any(isinstance(part, ImageConfig) and part.field == SMALL for part in parts):
        found.append("upscale")
    if found:
        return found
    if reads_masks(model):
        return ["inpaint", "outpaint"]
    return ["sample", "inpaint", "outpaint", "edit", "interpolate"]


def model_view(known: KnownModel, loaded: bool, digest: str | None) -> dict[str, Any]:
    """A model as JSON, in the shape of OpenAI's list with further fields."""
    model, config = known.outline, known.config
    diffusion, data = config.diffusion, config.conditioning_metadata
    assert diffusion is not None
    classes = class_config(diffusion.conditioner)
    parts = condition_parts(model)
    of_map = next((part for part in parts if isinstance(part, SemanticConfig)), None)
    of_boxes = next((part for part in parts if isinstance(part, LayoutConfig)), None)
    small = any(isinstance(part, ImageConfig) and part.field == SMALL for part in parts)
    tasks = known.tasks
    shipped = shipped_name(known.path) if is_shipped(known.path) else None
    dropped = [name for name, rate in diffusion.part_dropout.items() if rate > 0]
    return {
        "id": known.id,
        "object": "model",
        "created": known.created,
        "owned_by": "sfumato",
        "name": known.id,
        "path": str(known.path),
        "tasks": tasks,
        "default_task": tasks[0],
        "takes": [name for name in source_of(model).reads if name not in (MASKED, MASK, CROP)],
        "image_size": list(config.image_size),
        "factor": model.autoencoder.factor,
        "multiple": canvas_factor(model),
        "guidance": diffusion.condition_dropout > 0,
        "student": None if diffusion.student is None else diffusion.student.model_dump(mode="json"),
        "steps": default_steps(diffusion),
        "parts": dropped if isinstance(diffusion.conditioner, CompositeConfig) and dropped else None,
        "classes": None if config.classes is None else list(config.classes),
        "class_count": None if classes is None else classes.classes,
        "map": None
        if of_map is None
        else {
            "names": None if data.map is None else list(data.map.names),
            "palette": None if data.map is None else [list(colour) for colour in data.map.palette],
            "void": of_map.void,
            "classes": of_map.classes,
        },
        "layout": None
        if of_boxes is None
        else {
            "names": None if data.layout is None else list(data.layout.names),
            "categories": of_boxes.classes,
            "objects": of_boxes.objects,
        },
        "enlargement": enlargement(model) if small else None,
        "trained_to_inpaint": reads_masks(model),
        "tiny_decoder": (known.folder / TINY_DECODER_FILE).exists(),
        "loaded": loaded,
        "digest": digest,
        "about": config.about,
        "shipped": shipped,
        "description": description(shipped) if shipped else None,
        "example": example(shipped) if shipped else None,
    }
