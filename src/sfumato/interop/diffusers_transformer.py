"""The diffusion transformer of diffusers (DiTPipeline): its configuration, its keys, and its table of classes.

DiTTransformer2DModel, in older folders Transformer2DModel with ada_norm_zero, is the network of Peebles and Xie 2023
(arXiv 2212.09748) with two differences, which are settings here: time is embedded at other frequencies, and the norm
before a feed-forward branch has another epsilon. Each block has a copy of the embeddings of time and class. Positions
are counted over the training size, whatever the latent's. DiTPipeline takes class 1000 as the unconditional one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.dit import DiT, DiTConfig
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.diffusers_component import Component, convert, shapes_of
from sfumato.interop.diffusers_config import TRANSFORMERS, Config, demand, whole
from sfumato.interop.diffusers_keys import Entry
from sfumato.interop.expressible_transformer import MOST_CLASSES
from sfumato.interop.transformer import check_positions, halves
from sfumato.nn.init import without_weights

NAME, OLD_NAME = TRANSFORMERS
NORM = "ada_norm_zero"
EPS = 1e-5
"""diffusers' default of the norm before a feed-forward branch."""
TABLE = "embedding.weight"
"""Our key of the table of classes, in the conditioner."""
LAST = "final_layer.linear"
STORED_POSITIONS = "pos_embed.pos_embed"
"""The fixed positions, which a file need not have."""


@dataclass(frozen=True)
class ReadTransformer:
    """A transformer of diffusers: its configuration here, channels of the latent, classes without the unconditional
    one, the side of the training latents, and whether it also predicts a variance."""

    config: DiTConfig
    channels: int
    classes: int
    side: int
    variance: bool


@dataclass(frozen=True)
class Transformer:
    """The network with its weights, its table of classes (the last row: unconditional), and the rows of its last layer
    that predict a variance, by the end of their key; without rows if it predicts none."""

    read: ReadTransformer
    network: DiT
    table: Tensor
    variance: Mapping[str, Tensor]


# -- configuration ----------------------------------------------------------------------------------------------------


def read_transformer(config: Config) -> ReadTransformer:
    """The configuration of a DiTPipeline's transformer; raises UserError for anything that cannot be expressed."""
    name = str(config.get("_class_name", NAME))
    norm = config.get("norm_type", NORM if name == NAME else "layer_norm")
    if name not in (NAME, OLD_NAME) or norm != NORM:
        raise UserError(
            f"the transformer {short(name)} (norm_type {short(norm)}) is not supported; known is that of DiTPipeline: "
            f"{NAME}, or {OLD_NAME} with norm_type {NORM}"
        )
    demand(config, name, activation_fn="gelu-approximate", attention_bias=True, norm_elementwise_affine=False)
    demand(config, name, cross_attention_dim=None, num_vector_embeds=None, caption_channels=None)
    demand(config, name, only_cross_attention=False, double_self_attention=False, attention_type=("default", None))
    demand(config, name, interpolation_scale=(None, 1), use_additional_conditions=(None, False))

    def number(key: str, default: int) -> int:
        return whole(config.get(key, default), f"{name}: {key}")

    heads, channels = number("num_attention_heads", 16), number("in_channels", 4)
    side, patch = number("sample_size", 32), number("patch_size", 2)
    out = channels if config.get("out_channels") is None else number("out_channels", channels)
    if out not in (channels, 2 * channels):
        raise UserError(
            f"{name}: out_channels is {out}: it must be {channels}, as in_channels, or twice that, with a variance"
        )
    if side % patch:
        raise UserError(f"{name}: patch_size {patch} does not divide sample_size {side}, which is not supported")
    raw = {
        "patch": patch,
        "width": heads * number("attention_head_dim", 72),
        "depth": number("num_layers", 28),
        "heads": heads,
        "position_grid": side // patch,
        "time_frequencies": "closed",
        "feed_forward_eps": config.get("norm_eps", EPS),
        "vector_projection": "none",
        "dropout": config.get("dropout") or 0.0,
    }
    classes = number("num_embeds_ada_norm", MOST_CLASSES)
    return ReadTransformer(DiTConfig.model_validate(raw), channels, classes, side, out != channels)


def write_transformer(config: DiTConfig, channels: int, side: int) -> dict[str, Any]:
    """config.json of a DiTTransformer2DModel without a variance, with the table that DiTPipeline expects.

    The configuration must be one that `expressible_transformer` does not refuse.
    """
    return {
        "_class_name": NAME,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.width // config.heads,
        "dropout": config.dropout,
        "in_channels": channels,
        "norm_elementwise_affine": False,
        "norm_eps": config.feed_forward_eps,
        "norm_num_groups": 32,  # of no effect
        "norm_type": NORM,
        "num_attention_heads": config.heads,
        "num_embeds_ada_norm": MOST_CLASSES,
        "num_layers": config.depth,
        "out_channels": channels,
        "patch_size": config.patch,
        "sample_size": side,
        "upcast_attention": False,
    }


# -- weights ----------------------------------------------------------------------------------------------------------

_TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    LAST: "proj_out_2",
}
_SHARED = {
    "time_embed.0": "timestep_embedder.linear_1",
    "time_embed.2": "timestep_embedder.linear_2",
    "embedding": "class_embedder.embedding_table",
}
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}


def transformer_entry(key: str, depth: int) -> Entry:
    """The entry of one of a DiT's tensors, or of its table of classes, in DiTTransformer2DModel."""
    module, end = key.rsplit(".", 1)
    if module in _TOP:
        return Entry((f"{_TOP[module]}.{end}",))
    if module in _SHARED:
        return Entry(tuple(f"transformer_blocks.{i}.norm1.emb.{_SHARED[module]}.{end}" for i in range(depth)), "shared")
    _, number, inside = module.split(".", 2)
    place = f"transformer_blocks.{number}."
    if inside == "attn.qkv":
        return Entry(tuple(f"{place}attn1.{name}.{end}" for name in ("to_q", "to_k", "to_v")), "qkv", head_first=False)
    return Entry((f"{place}{_BLOCK[inside]}.{end}",))


def import_transformer(component: Component) -> Transformer:
    """DiTTransformer2DModel with its weights.

    Raises UserError for what cannot be expressed, a missing, misshapen or left-over key, blocks whose embeddings
    differ, and positions other than the fixed ones.
    """
    read = read_transformer(component.config)
    config = read.config
    with without_weights():
        network = DiT(config, read.channels, ConditionSpec(vector_dim=config.width))
    stored = component.tensors.get(STORED_POSITIONS)
    if stored is not None:
        check_positions(stored, STORED_POSITIONS, read.side // config.patch, config.width, component.path)
        component.used.add(STORED_POSITIONS)
    rows = config.patch**2 * read.channels * (1 + read.variance)
    shapes = shapes_of(network) | {TABLE: (read.classes + 1, config.width)}
    shapes |= {f"{LAST}.weight": (rows, config.width), f"{LAST}.bias": (rows,)}
    tensors = convert(component, {key: transformer_entry(key, config.depth) for key in shapes}, shapes)
    table, variance = tensors.pop(TABLE), {}
    if read.variance:
        for end in ("weight", "bias"):
            key = f"{LAST}.{end}"
            tensors[key], variance[end] = halves(tensors[key], config.patch, read.channels)
    network.load_state_dict(tensors, assign=True)
    return Transformer(read, network, table, variance)


def transformer_tensors(
    tensors: Mapping[str, Tensor],
    table: Tensor,
    variance: Mapping[str, Tensor],
    config: DiTConfig,
    channels: int,
    classes: int,
) -> dict[str, Tensor]:
    """diffusers' tensors from a DiT's, its table (the last row: unconditional) and the rows for a variance, if any.

    The table is filled up to `classes` and the unconditional one.
    """
    ours = {**tensors, TABLE: filled_up(table, classes)}
    for end, rows in variance.items():
        mean, other = (part.unflatten(0, (-1, channels)) for part in (tensors[f"{LAST}.{end}"], rows))
        ours[f"{LAST}.{end}"] = torch.cat([mean, other], 1).flatten(0, 1)
    theirs: dict[str, Tensor] = {}
    for key, tensor in ours.items():
        theirs |= transformer_entry(key, config.depth).to_theirs(tensor)
    return theirs


# -- classes ----------------------------------------------------------------------------------------------------------


def filled_up(table: Tensor, classes: int) -> Tensor:
    """A table (N + 1, D) with its last row, the unconditional one, repeated so that it has `classes` + 1 rows."""
    return torch.cat([table, table[-1:].expand(classes + 1 - len(table), -1)])


def without_filling(table: Tensor, least: int) -> Tensor:
    """The table without repetitions of its last row at the end, but with at least `least` classes before it."""
    others = (table != table[-1]).any(1).nonzero()
    classes = max(least, 1, int(others[-1]) + 1 if len(others) else 0)
    return torch.cat([table[:classes], table[-1:]])


def read_names(index: Config, classes: int) -> dict[int, str]:
    """The names of classes by number, from the `id2label` of model_index.json.

    Raises UserError for a value of another kind, and for a class that is not there.
    """
    given = index.get("id2label")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"id2label is {short(given)}: it must map the numbers of classes to names")
    names = {}
    for key, name in given.items():
        if not (str(key).isascii() and str(key).isdecimal() and len(str(key)) < 9 and isinstance(name, str)):
            raise UserError(f"id2label maps {short(key)} to {short(name)}: it must map the numbers of classes to names")
        if int(key) >= classes:
            raise UserError(f"id2label names the class {int(key)}, the transformer has {classes}: 0 to {classes - 1}")
        names[int(key)] = name
    return names


def all_names(names: Mapping[int, str], classes: int) -> tuple[str, ...] | None:
    """The names of classes 0 .. classes - 1, the number if there is none; None without any name."""
    return tuple(names.get(number, str(number)) for number in range(classes)) if names else None


def write_names(names: tuple[str, ...]) -> dict[str, str]:
    """The `id2label` of these names."""
    return {str(number): name for number, name in enumerate(names)}
