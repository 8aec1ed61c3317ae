"""Stable Diffusion's text encoders <-> folders that `transformers` reads: CLIP as it is, OpenCLIP renamed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoint import load_tensors, save_tensors, write_text
from sfumato.documents import read_json_object
from sfumato.errors import UserError
from sfumato.plain_json import to_json

FOLDER = "text_encoder"
TOKENIZER_FOLDER = "tokenizer"
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
HEAD_CHANNELS = 64  # of every CLIP text encoder
DEFAULT_TOKENIZERS = {"clip": "openai/clip-vit-large-patch14", "open-clip": "stabilityai/stable-diffusion-2"}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")
_OPEN_TO_CLIP = {
    "ln_1.weight": "layer_norm1.weight",
    "ln_1.bias": "layer_norm1.bias",
    "ln_2.weight": "layer_norm2.weight",
    "ln_2.bias": "layer_norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
    "attn.out_proj.weight": "self_attn.out_proj.weight",
    "attn.out_proj.bias": "self_attn.out_proj.bias",
}
_OPEN_TOP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
Pieces = dict[str, tuple[str, int | None]]
"""CLIP key -> (original key, third of it or None for all of it)."""


def outside_the_folder(source: str) -> UserError:
    """The refusal to export a model whose text encoder `source` is elsewhere."""
    return UserError(
        f"the text encoder {source!r} is not inside the model folder; copy it to {FOLDER} there, set source: {FOLDER}"
    )


def place_of(source: str, folder: Path) -> Path:
    """The text encoder of a model folder: inside it, or a student's in its teacher's folder.

    Raises UserError where it is in neither, such as a name of the hub.
    """
    if not (folder / source).is_dir():
        raise outside_the_folder(source)
    return folder / source


def clip_pieces(keys: Mapping[str, Any], kind: str) -> Pieces:
    """The location of each of CLIP's keys in an original checkpoint, for kind "clip" or "open-clip"."""
    if kind == "clip":
        return {
            key[len(CLIP_PREFIX) :]: (key, None)
            for key in keys
            if key.startswith(CLIP_PREFIX) and not key.endswith(".position_ids")
        }
    pieces: Pieces = {}
    for key in keys:
        if not key.startswith(OPEN_CLIP_PREFIX):
            continue
        name = key[len(OPEN_CLIP_PREFIX) :]
        if name in _OPEN_TOP:
            pieces[_OPEN_TOP[name]] = (key, None)
        elif found := _LAYER.match(name):
            layer, rest = f"text_model.encoder.layers.{found[1]}.", found[2]
            if rest in _OPEN_TO_CLIP:
                pieces[layer + _OPEN_TO_CLIP[rest]] = (key, None)
            elif rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                for third, letter in enumerate("qkv"):
                    pieces[f"{layer}self_attn.{letter}_proj.{rest.removeprefix('attn.in_proj_')}"] = (key, third)
    return pieces


def take(pieces: Pieces, name: str, tensor: Tensor) -> Tensor:
    """One of CLIP's tensors from the original tensor that contains it."""
    third = pieces[name][1]
    return tensor if third is None else tensor.chunk(3)[third]


def text_config(shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, Any]:
    """`config.json` of the encoder, from the shapes of CLIP's keys; raises UserError if they are incomplete."""
    try:
        vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
        positions = shapes["text_model.embeddings.position_embedding.weight"][0]
        inner = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise UserError(f"the text encoder lacks the key {error.args[0]!r}") from None
    layers = {int(name.split(".")[3]) for name in shapes if name.startswith("text_model.encoder.layers.")}
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_CHANNELS),
        "max_position_embeddings": positions,
        "hidden_act": "quick_gelu" if kind == "clip" else "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def read_text_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object in the folder of a text encoder or tokenizer. Raises UserError where it is missing or not an
    object."""
    return read_json_object(folder / name)


def write_as_last_layer(source: Path, target: Path) -> None:
    """A CLIP text encoder whose last layer is its penultimate one: `last_hidden_state` is then the output that was used
    before.

    The last layer is left out of weights and configuration; the norm after it stays, as `PretrainedText` applies it to
    the penultimate layer's output.
    """
    config = read_text_config(source)
    last = int(config["num_hidden_layers"]) - 1
    tensors, _ = load_tensors(source / "model.safetensors")
    remaining = {name: t for name, t in tensors.items() if f".encoder.layers.{last}." not in name}
    save_file({name: t.contiguous() for name, t in remaining.items()}, target / "model.safetensors", {"format": "pt"})
    write_text(target / "config.json", to_json({**config, "num_hidden_layers": last}, indent=2) + "\n")


def write_text_encoder(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes config.json and model.safetensors."""
    save_tensors(folder / "model.safetensors", {name: tensor.to(torch.float32) for name, tensor in tensors.items()})
    write_text(folder / "config.json", to_json(dict(config), indent=2) + "\n")


def original_tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    """The encoder of a folder under its original keys: the other direction of `clip_pieces` and `take`."""
    tensors, _ = load_tensors(folder / "model.safetensors")
    if kind == "clip":
        return {CLIP_PREFIX + name: tensor for name, tensor in tensors.items()}
    top = {ours: theirs for theirs, ours in _OPEN_TOP.items()}
    inner = {ours: theirs for theirs, ours in _OPEN_TO_CLIP.items()}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in top:
            out[OPEN_CLIP_PREFIX + top[name]] = tensor
            continue
        number, rest = name.removeprefix("text_model.encoder.layers.").split(".", 1)
        block = f"{OPEN_CLIP_PREFIX}transformer.resblocks.{number}."
        if rest in inner:
            out[block + inner[rest]] = tensor
        elif rest.startswith("self_attn.q_proj."):
            end = rest.rsplit(".", 1)[1]
            thirds = [tensors[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            out[f"{block}attn.in_proj_{end}"] = torch.cat(thirds)
    return out
