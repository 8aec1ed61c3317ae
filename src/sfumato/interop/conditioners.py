"""The original's conditioners as sfumato configurations that compute the same, and the location of their weights."""

from dataclasses import dataclass, field
from typing import Any

from sfumato.errors import UserError
from sfumato.interop.infer import CONDITIONER, TEXT_VOCABULARY, UNET
from sfumato.interop.original_yaml import Conditioning, Diffusion

LAYOUT_CLASSES = 601  # of OpenImages' boxes; only bounds user input, no weight depends on it
CROP_TOKENS = 2
TOKENS_AN_OBJECT = 3
NULL_CLASS = 1001  # rows of the ImageNet table that has a class for "none" (cin256-v2)


@dataclass(frozen=True)
class Mapped:
    """sfumato's conditioner configuration as plain data, and the original's prefix for each prefix of its keys.

    guidable: it was trained unconditionally too. text_model: "clip" or "open-clip" where the weights are a text
    encoder's that is stored next to the model in its own library's form.
    """

    config: dict[str, Any]
    prefixes: dict[str, str] = field(default_factory=dict)
    guidable: bool = False
    text_model: str | None = None


def map_conditioner(diffusion: Diffusion, tokenizer: str | None) -> Mapped:
    """Raises UserError for a conditioner without counterpart. `tokenizer`: source of the text tokenizer, if known."""
    try:
        return _map(diffusion, tokenizer)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"cond_stage_config.params lacks the parameter {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"cond_stage_config.params has a value of the wrong kind ({error})") from None


def _map(diffusion: Diffusion, tokenizer: str | None) -> Mapped:
    conditioning = diffusion.conditioning
    extra = diffusion.in_channels - diffusion.latent_channels
    if conditioning.mode == "none":
        if extra:
            raise UserError(f"the U-Net has {extra} input channels besides the latent, but no conditioning")
        return Mapped({"kind": "none"})
    if conditioning.mode == "adm":
        return _adm(diffusion)
    if conditioning.mode == "hybrid":
        return _hybrid(diffusion, extra, tokenizer)
    if conditioning.mode == "concat" and conditioning.kind in ("identity", "first-stage"):
        return _concat(conditioning, diffusion, extra)
    return _encoder(conditioning, diffusion, tokenizer)


def _adm(diffusion: Diffusion) -> Mapped:
    if not isinstance(diffusion.classes, int):
        raise UserError(f"conditioning adm with num_classes {diffusion.classes!r} is not supported; only a class table")
    width = 4 * diffusion.unet.channels
    config = {"kind": "class", "classes": diffusion.classes, "dim": width, "null": "none", "output": "vector"}
    return Mapped(config, {"embedding.": f"{UNET}label_emb."})


def _image(name: str, channels: int) -> dict[str, Any]:
    return {"kind": "image", "field": name, "channels": channels}


def _concat(conditioning: Conditioning, diffusion: Diffusion, extra: int) -> Mapped:
    if conditioning.kind == "first-stage":
        # the masked image's latent, then the mask; the encoder's copy is the first stage
        masked = diffusion.latent_channels
        if extra != masked + 1:
            return Mapped(_image("masked_latent", extra))
        parts = {"masked_image": _image("masked_latent", masked), "mask": _image("mask", 1)}
        return Mapped({"kind": "composite", "parts": parts})
    return Mapped(_image("low_resolution" if conditioning.key in ("LR_image", "image") else conditioning.key, extra))


def _hybrid(diffusion: Diffusion, extra: int, tokenizer: str | None) -> Mapped:
    """Channels and tokens; in Stable Diffusion's inpainting models the mask precedes the masked image's latent."""
    conditioning = diffusion.conditioning
    tokens = _encoder(conditioning, diffusion, tokenizer)
    if tokens.text_model and extra == diffusion.latent_channels + 1:
        spatial = {"mask": _image("mask", 1), "masked_image": _image("masked_latent", extra - 1)}
    else:
        spatial = {"concat": _image("concat", extra)}
    prefixes = {f"parts.tokens.{ours}": theirs for ours, theirs in tokens.prefixes.items()}
    config = {"kind": "composite", "parts": {**spatial, "tokens": tokens.config}}
    return Mapped(config, prefixes, tokens.guidable, tokens.text_model)


def _encoder(conditioning: Conditioning, diffusion: Diffusion, tokenizer: str | None) -> Mapped:
    p = conditioning.params
    match conditioning.kind:
        case "class":
            rows, dim = int(p.get("n_classes", 1000)), int(p["embed_dim"])
            null = rows == NULL_CLASS
            config = {"kind": "class", "classes": rows - null, "dim": dim, "null": "learned" if null else "none"}
            return Mapped(config, {"embedding.": f"{CONDITIONER}embedding."}, guidable=null)
        case "bert" | "transformer":
            return _bert(conditioning, tokenizer)
        case "semantic":
            return _semantic(conditioning)
        case "identity":
            width = diffusion.token_dim
            return Mapped({"kind": "embeddings", "field": "embeddings", "dim": width}, guidable=True)
        case "clip" | "open-clip":
            layer = p.get("layer", "last" if conditioning.kind == "clip" else "penultimate")
            if layer == "hidden" and int(p.get("layer_idx", -1)) in (-1, -2):
                layer = "last" if int(p.get("layer_idx", -1)) == -1 else "penultimate"
            if layer not in ("last", "penultimate"):
                raise UserError(f"the text encoder's layer {layer!r} is not supported; known are last and penultimate")
            config = {"kind": "pretrained-text", "layer": layer, "mask_padding": False}
            config["max_tokens"] = int(p.get("max_length", 77))
            return Mapped(config, {}, guidable=True, text_model=conditioning.kind)
    raise UserError(f"conditioning by {conditioning.kind!r} in mode {conditioning.mode!r} is not supported")


def _bert(conditioning: Conditioning, tokenizer: str | None) -> Mapped:
    p = conditioning.params
    dim, depth = int(p["n_embed"]), int(p["n_layer"])
    vocabulary, length = int(p.get("vocab_size", TEXT_VOCABULARY)), int(p.get("max_seq_len", 77))
    prefixes = {"transformer.": f"{CONDITIONER}transformer."}
    if conditioning.kind == "bert" and p.get("use_tokenizer", True):
        config: dict[str, Any] = {"kind": "text", "dim": dim, "depth": depth, "max_tokens": length}
        config |= {"vocabulary": vocabulary, "mask_padding": False, "tokenizer": tokenizer or "none"}
        return Mapped(config, prefixes, guidable=True)
    if (length - CROP_TOKENS) % TOKENS_AN_OBJECT:
        raise UserError(f"a layout of {length} tokens is not 3 an object and 2 for the crop; that is not supported")
    objects = (length - CROP_TOKENS) // TOKENS_AN_OBJECT
    config = {"kind": "layout", "classes": min(LAYOUT_CLASSES, vocabulary // 2), "objects": objects}
    config |= {"vocabulary": vocabulary, "dim": dim, "depth": depth, "mask_padding": False}
    return Mapped(config, prefixes)


def _semantic(conditioning: Conditioning) -> Mapped:
    p = conditioning.params
    for key, harmless in (("method", "bilinear"), ("multiplier", 0.5), ("bias", False)):
        if p.get(key, harmless) != harmless:
            raise UserError(f"SpatialRescaler.params.{key} = {p[key]!r} has no counterpart here (only {harmless!r})")
    if not p.get("out_channels"):
        raise UserError("SpatialRescaler.params.out_channels must be given; a map without projection is not supported")
    config = {"kind": "semantic", "classes": int(p.get("in_channels", 3)), "channels": int(p["out_channels"])}
    config["stages"] = int(p.get("n_stages", 1))
    return Mapped(config, {"channel_mapper.": f"{CONDITIONER}channel_mapper."})
