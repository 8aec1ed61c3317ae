"""The description of a checkpoint that other programs show: the keys `modelspec.*` in the header of a safetensors file.

They follow the specification of Stability AI, version 1.0.0, which AUTOMATIC1111's web user interface, ComfyUI and
model managers read: title, architecture, resolution, prediction, and the hash of the weights.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sfumato.checkpoint import save_tensors
from sfumato.interop.expressible import parts_of
from sfumato.interop.text_encoders import FOLDER, read_text_config
from sfumato.model_config import ModelConfig

HASH = "modelspec.hash_sha256"
UNKNOWN = "0x" + "0" * 64
PREDICTIONS = {"eps": "epsilon", "v": "v"}
AT_ONCE = 1 << 24


def modelspec(folder: Path, config: ModelConfig) -> dict[str, str]:
    """The entries of a model folder that is written as one file, sorted; the hash is not known yet."""
    height, width = config.image_size
    name = folder.parent.name if folder.name == "model" else folder.name
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": str(config.about.get("title") or name or "sfumato"),
        "modelspec.architecture": _architecture(folder, config),
        "modelspec.implementation": "https://github.com/CompVis/latent-diffusion",
        "modelspec.resolution": f"{width}x{height}",
        HASH: UNKNOWN,
    }
    if config.diffusion is not None and config.diffusion.prediction in PREDICTIONS:
        entries["modelspec.prediction_type"] = PREDICTIONS[config.diffusion.prediction]
    for key in ("author", "description", "license"):
        if isinstance(config.about.get(key), str):
            entries[f"modelspec.{key}"] = config.about[key]
    return dict(sorted(entries.items()))


def _architecture(folder: Path, config: ModelConfig) -> str:
    """The specification's name of a model with CLIP; others are latent diffusion models of their own."""
    if config.diffusion is None:
        return "autoencoder"
    if not any(part.kind == "pretrained-text" for part in parts_of(config.diffusion)):
        return "latent-diffusion"
    first = read_text_config(folder / FOLDER).get("hidden_act") == "quick_gelu"
    if first:
        return "stable-diffusion-v1"
    return "stable-diffusion-v2-768-v" if config.diffusion.prediction == "v" else "stable-diffusion-v2-512"


def save_described(path: Path, tensors: Mapping[str, Tensor], entries: Mapping[str, str]) -> None:
    """Saves tensors with the entries in the header, and the hash of their bytes among them.

    The entries are sorted, so that equal models give equal files: the library writes them in random order.
    """
    save_tensors(path, tensors, entries=entries)
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        digest = hashlib.sha256()
        while part := file.read(AT_ONCE):
            digest.update(part)
        found = {**header["__metadata__"], HASH: f"0x{digest.hexdigest()}"}
        header = {"__metadata__": dict(sorted(found.items())), **{k: v for k, v in header.items() if k[:2] != "__"}}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "sorted entries are as long as unsorted ones"
        file.seek(8)
        file.write(text.ljust(length))
