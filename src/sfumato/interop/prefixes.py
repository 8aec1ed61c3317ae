"""Unwrapping of checkpoints: finds the nested weights, strips known prefixes, and names averaged weights.

Training programs nest a state dict (`{"model": ..., "ema": ...}`) and wrap networks (`module.`, `_orig_mod.`), in any
order. The result has the original's names: `model.diffusion_model.…`, `first_stage_model.…`, `encoder.…`, averages
besides live weights as `model_ema.` without dots, averages alone under the live names.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sfumato.errors import UserError
from sfumato.foreign import short

T = TypeVar("T")
LIVE_NESTS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "params", "weights")
EMA_NESTS = (
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "params_ema",
    "model_ema_state_dict",
    "averaged_model",
    "shadow",
)
MAX_NESTS = 8
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module", "orig_mod"}
"""Names that a wrapper may insert anywhere; no network here has a part of these names."""
LEADING = {"model", "state_dict", "net", "network", "params", "online_model"}
AVERAGED = {"ema", "model_ema", "ema_model", "params_ema", "averaged_model", "shadow"}
EMA = "model_ema."
UNNAMED = "shadow_params"
COUNTERS = ("decay", "num_updates")
_NETWORK = "diffusion_model."
_WORDS = (
    "diffusion_model|time_embed|input_blocks|middle_block|output_blocks|label_emb|in_layers|emb_layers|out_layers|"
    "skip_connection|transformer_blocks|proj_in|proj_out|attn1|attn2|to_qkv|to_out|to_q|to_k|to_v|ff|net|proj|norm1|norm2|"
    "norm3|norm_out|norm|qkv|op|conv_in|conv_out|conv1|conv2|conv|encoder|decoder|down|up|mid|block_1|block_2|attn_1|block|"
    "attn|nin_shortcut|downsample|upsample|quant_conv|post_quant_conv|quantize|embedding|out|weight|bias|q|k|v"
)
_TOKEN = re.compile(rf"({'|'.join(sorted(_WORDS.split('|'), key=len, reverse=True))})|(\d+)")


@dataclass(frozen=True)
class Named(Generic[T]):
    """Values under the original's names, and notes on what was removed or chosen."""

    values: dict[str, T]
    notes: tuple[str, ...] = ()
    averaged: bool = False
    """Whether the weights under the live names are averaged ones, if the file has no others."""


# -- nests ------------------------------------------------------------------------------------------------------------


def unnested(value: dict[Any, Any], is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
    """The mapping of names to tensors in a checkpoint's containers, flattened; other entries are unchanged.

    Where both live and averaged weights are nested, the averaged ones keep their nest's name as a prefix.
    """
    for _ in range(MAX_NESTS):
        if any(isinstance(key, str) and is_tensor(item) for key, item in value.items()):
            break
        live = next((key for key in LIVE_NESTS if _holds(value.get(key))), None)
        averaged = next((key for key in EMA_NESTS if _holds(value.get(key)) and key != live), None)
        if live is None and averaged is None:
            nests = [key for key, item in value.items() if isinstance(item, dict) and _flat(item, is_tensor)]
            live = nests[0] if len(nests) == 1 else None  # under any name, where no other can be meant
        if live is None and averaged is None:
            break
        found = dict(value[live]) if live is not None else {}
        if averaged is not None:
            inner = value[averaged]
            inner = next(
                (
                    inner[key]
                    for key in (*LIVE_NESTS, "shadow")
                    if _holds(inner.get(key)) and not _flat(inner, is_tensor)
                ),
                inner,
            )
            found |= {f"ema.{key}": item for key, item in inner.items() if isinstance(key, str)}
        value = found
    return value


def has_unnamed_averages(value: Mapping[Any, Any]) -> bool:
    """Whether averaged weights are there as a list without names, as torch-ema and diffusers' EMAModel save them."""
    holders = [value, *(item for item in value.values() if isinstance(item, dict))]
    return any(isinstance(holder.get(UNNAMED), list | tuple) for holder in holders)


def _holds(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _flat(value: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> bool:
    return any(is_tensor(item) for item in value.values())


# -- prefixes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A key without its wrappers. mangled: an average's name without dots, as the original stores it."""

    name: str
    averaged: bool
    mangled: bool
    taken: tuple[str, ...]


def _place(key: str) -> _Place:
    parts = key.split(".")
    kept = [part for part in parts[:-1] if part not in WRAPPERS] + parts[-1:]
    taken = [part for part in parts[:-1] if part in WRAPPERS]
    averaged = False
    while len(kept) > 1 and kept[0] in LEADING | AVERAGED:
        if kept[0] == "model_ema" and len(kept) == 2:  # the original's averages have no dots
            return _Place(f"{EMA}{kept[1]}", True, True, tuple(taken))
        averaged |= kept[0] in AVERAGED
        taken.append(kept.pop(0))
    name = ".".join(kept)
    if name.startswith(_NETWORK):
        if "model" in taken:
            taken.remove("model")
        name = f"model.{name}"
    return _Place(name, averaged, False, tuple(taken))


def named(values: Mapping[str, T]) -> Named[T]:
    """Values under the original's names.

    Raises UserError where two keys get the same name.
    """
    places = {key: _place(key) for key in values}
    live = {place.name for place in places.values() if not place.averaged}
    networks = any(name.startswith(("model.diffusion_model.", "encoder.", "decoder.")) for name in live)
    out: dict[str, T] = {}
    taken: dict[str, str] = {}
    alone = 0
    for key, value in values.items():
        place = places[key]
        name = place.name
        if place.averaged and networks and not place.mangled:
            name = name if name in COUNTERS else name.removeprefix("model.").replace(".", "")
            name = EMA + name
        elif place.averaged and not networks:
            name = _alone(place)
            alone += not name.startswith(EMA)
        if name in out:
            raise UserError(
                f"has two keys that mean {short(name)}, one of them {short(key)}: which one is meant is ambiguous"
            )
        out[name] = value
        for prefix in place.taken:
            taken.setdefault(prefix, key)
    notes = [
        f"the prefix {prefix + '.'!r} was removed, as in {short(key)}"
        for prefix, key in taken.items()
        if prefix not in AVERAGED
    ]
    if alone:
        notes.append(f"the file has averaged weights only: {alone} keys are read as the model's weights")
    elif any(prefix in AVERAGED for prefix in taken):
        notes.append(
            "the file has averaged and live weights: the averaged ones are used, unless --weights live is given"
        )
    return Named(out, tuple(notes), bool(alone))


def _alone(place: _Place) -> str:
    """The live name of an average without live weights; counters, and names that cannot be parsed, are unchanged."""
    if not place.mangled:
        return EMA + place.name if place.name in COUNTERS else place.name
    dotted = dotted_name(place.name.removeprefix(EMA))
    if dotted is None:
        return place.name
    return f"model.{dotted}" if dotted.startswith(_NETWORK) else dotted


def dotted_name(mangled: str) -> str | None:
    """`diffusion_modelinput_blocks10in_layers0weight` -> `diffusion_model.input_blocks.1.0.in_layers.0.weight`.

    None for a name that is not of the U-Net or the first stage.
    """
    parts: list[str] = []
    at = 0
    while at < len(mangled):
        found = _TOKEN.match(mangled, at)
        if found is None:
            return None
        word, digits = found.groups()
        if digits and parts and parts[-1] in ("input_blocks", "output_blocks"):
            if len(digits) < 2:
                return None
            parts += [digits[:-1], digits[-1]]  # a block has few members
        elif digits and parts and parts[-1] == "label_emb":
            parts += list(digits)
        elif word in ("attn1", "attn2") and parts and parts[0] in ("encoder", "decoder"):
            parts += [word[:-1], word[-1]]
        else:
            parts.append(word or digits)
        at = found.end()
    return ".".join(parts) if parts and parts[-1] in ("weight", "bias") else None
