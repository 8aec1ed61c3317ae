"""One safetensors or .bin file of diffusers outside its folder: an autoencoder's keys determine everything but its
scale factor."""

import re
from pathlib import Path
from typing import Any

from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import save_tensors, write_text
from sfumato.config import parse, to_yaml
from sfumato.errors import UserError
from sfumato.interop.diffusers_component import Component, modern
from sfumato.interop.diffusers_import import import_autoencoder
from sfumato.interop.known import SD_SCALE
from sfumato.interop.original import Imported
from sfumato.interop.source import Source
from sfumato.model import ModelConfig
from sfumato.versions import replacing_folder

AUTOENCODER = "encoder.down_blocks.0.resnets.0.conv1.weight"
UNET = "down_blocks.0.resnets.0.conv1.weight"


def is_single_autoencoder(source: Source) -> bool:
    """Whether a file contains an AutoencoderKL or VQModel of diffusers. Raises UserError for a U-Net of diffusers."""
    if UNET in source.tensors and "conv_in.weight" in source.tensors:
        raise UserError(
            f"{source.path} is a U-Net of diffusers, whose keys do not determine its attention heads: give its folder, "
            "or that of the whole pipeline"
        )
    return AUTOENCODER in source.tensors


def import_single_autoencoder(source: Source, folder: Path) -> Imported:
    """Writes the model folder. Raises UserError where the keys do not determine the architecture."""
    tensors = {modern(key): tensor for key, tensor in source.tensors.items()}
    component = Component(source.path, _config({key: tensor.shape for key, tensor in tensors.items()}), tensors)
    autoencoder = import_autoencoder(component)
    about = {"imported": source.path.name}
    raw = {"autoencoder": autoencoder.config.model_dump(), "image_size": (256, 256), "about": about}
    config = parse(raw, ModelConfig, str(source.path))
    with replacing_folder(folder) as fresh:
        save_tensors(fresh / "autoencoder.safetensors", autoencoder.state_dict())
        scaling = Scaling.from_factor(autoencoder.latent_channels, SD_SCALE)
        save_tensors(fresh / "scaling.safetensors", scaling.state_dict())
        write_text(fresh / "config.yaml", to_yaml(config))
    assumed = f"the file does not contain the latent's scale factor: using Stable Diffusion's, {SD_SCALE}"
    return Imported(folder, config, (*source.notes, assumed))


def _config(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """diffusers' config.json from the shapes of the keys; KeyError or IndexError where they are incomplete."""
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    attends = [f"encoder.down_blocks.{level}.attentions.0.to_q.weight" in shapes for level in range(levels)]
    codebook = shapes.get("quantize.embedding.weight")
    latent, embedded = shapes["post_quant_conv.weight"][:2]
    config: dict[str, Any] = {
        "_class_name": "VQModel" if codebook else "AutoencoderKL",
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ],
        "down_block_types": [f"{'Attn' * attend}DownEncoderBlock2D" for attend in attends],
        "up_block_types": [f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)],
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": latent,
    }
    return config | ({"num_vq_embeddings": codebook[0], "vq_embed_dim": embedded} if codebook else {})


def _count(shapes: dict[str, tuple[int, ...]], pattern: str) -> int:
    """The number of different values of the pattern's group."""
    return len({found.group(1) for key in shapes if (found := re.match(pattern, key))})
