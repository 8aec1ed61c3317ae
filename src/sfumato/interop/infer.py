"""Architecture from a checkpoint's keys and shapes alone, without a configuration.

Everything with parameters is visible in the shapes. The rest (heads, scale factor, kind of prediction) comes from the
table of published models; if that has no row, the error requests the configuration.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from sfumato.autoencoder.model import AutoencoderConfig, KLConfig, VQConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.errors import UserError
from sfumato.interop.known import KNOWN, SD_SCALE, Known
from sfumato.interop.original_yaml import Conditioning, Diffusion, Original
from sfumato.interop.recognise import unusual_input
from sfumato.interop.stored_schedule import infer_stored

Shapes = Mapping[str, tuple[int, ...]]
FIRST_STAGE = "first_stage_model."
UNET = "model.diffusion_model."
CONDITIONER = "cond_stage_model."
EMA = "model_ema."
BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
V_MARK = "v_pred"
"""An empty tensor of this name is how merging tools mark a model that predicts v."""
V_STEPS = {875_000: "eps"}  # Stable Diffusion 2's base model; every other published step predicts v
SD2 = "stable-diffusion-2"


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The keys under a prefix, without it."""
    return {key[len(prefix) :]: shape for key, shape in shapes.items() if key.startswith(prefix)}


def infer_original(
    shapes: Shapes,
    load: Callable[[str], Tensor],
    prediction: str | None = None,
    steps: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Original:
    """The configuration of an original checkpoint from its keys.

    Args:
        shapes: every key of the state dict.
        load: reads one tensor (used for the schedule and the scale factor).
        prediction: "eps" or "v", for models that exist with both; None decides by `steps`, the checkpoint's training
            step.
        report: called with a note on everything that was assumed.

    Raises UserError where the keys have no known layout or do not determine the architecture.
    """
    if any(key.startswith(UNET) for key in shapes):
        first = below(shapes, FIRST_STAGE)
        if not first:
            raise UserError(f"the checkpoint has a U-Net but no first stage ({FIRST_STAGE}...); both are needed")
        autoencoder = infer_autoencoder(first)
        diffusion = _infer_diffusion(shapes, load, autoencoder, prediction, steps, report)
        return Original(autoencoder, diffusion.latent_size * autoencoder.factor, diffusion)
    if "encoder.conv_in.weight" in shapes:
        return Original(infer_autoencoder(shapes), 256, averaged_autoencoder=f"{EMA}decay" in shapes)
    if any(key.startswith(FIRST_STAGE) for key in shapes):
        return Original(infer_autoencoder(below(shapes, FIRST_STAGE)), 256)
    example = sorted(shapes)[0]
    raise UserError(
        f"no known layout: neither {UNET}... nor encoder.conv_in.weight is among the {len(shapes)} keys "
        f"(the first is {example!r})"
    )


def _size(shapes: Shapes, key: str, axis: int) -> int:
    if key not in shapes:
        raise UserError(f"the checkpoint lacks the key {key!r}")
    if len(shapes[key]) <= axis:
        raise UserError(f"the key {key!r} has shape {shapes[key]}, which no weight of this layout has")
    return shapes[key][axis]


def _indices(shapes: Shapes, pattern: str) -> set[int]:
    matcher = re.compile(pattern)
    return {int(found.group(1)) for key in shapes if (found := matcher.match(key))}


def infer_autoencoder(shapes: Shapes) -> AutoencoderConfig:
    """First stage from its keys (without prefix)."""
    channels = _size(shapes, "encoder.conv_in.weight", 0)
    levels = sorted(_indices(shapes, r"encoder\.down\.(\d+)\."))
    if levels != list(range(len(levels))) or not levels:
        raise UserError("the first stage's levels encoder.down.N are not complete")
    widths = [_size(shapes, f"encoder.down.{level}.block.0.conv1.weight", 0) for level in levels]
    if any(width % channels for width in widths):
        raise UserError(f"the first stage's widths {widths} are not multiples of {channels}; give --config")
    kinds = {"softmax": "encoder.mid.attn_1.q.weight", "linear": "encoder.mid.attn_1.to_qkv.weight"}
    attention = next((kind for kind, key in kinds.items() if key in shapes), "none")
    codebook = "quantize.embedding.weight"
    return AutoencoderConfig.model_validate(
        {
            "image_channels": _size(shapes, "encoder.conv_in.weight", 1),
            "channels": channels,
            "channel_multipliers": [width // channels for width in widths],
            "blocks_per_level": len(_indices(shapes, r"encoder\.down\.0\.block\.(\d+)\.")),
            "attention_levels": sorted(_indices(shapes, r"encoder\.down\.(\d+)\.attn\.")),
            "attention": attention,
            "latent_channels": _size(shapes, "post_quant_conv.weight", 0),
            "embed_channels": _size(shapes, "post_quant_conv.weight", 1),
            "bottleneck": VQConfig(codes=_size(shapes, codebook, 0)) if codebook in shapes else KLConfig(),
        }
    )


# -- U-Net ------------------------------------------------------------------------------------------------------------


def infer_unet(shapes: Shapes, conditioner: str, report: Callable[[str], None]) -> tuple[UNetConfig, Known, Known]:
    """U-Net from its keys (without prefix): configuration, the properties visible in its shapes, the published model of
    its kind.

    `conditioner` is the kind of its conditioner, which distinguishes two of the published models.
    """
    channels = _size(shapes, "time_embed.0.weight", 1)
    blocks_out = len(_indices(shapes, r"output_blocks\.(\d+)\."))
    residual = _indices(shapes, r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    learned = _indices(shapes, r"output_blocks\.(\d+)\.[12]\.conv\.")
    entries = _indices(shapes, r"input_blocks\.(\d+)\.")
    gaps = max(entries, default=0) + 1 - len(entries)
    resample = "residual" if residual else "conv" if learned or not gaps else "pool"
    levels = 1 + (len(residual) or len(learned) or gaps)
    if not blocks_out or blocks_out % levels or not entries:
        raise UserError(f"{blocks_out} output blocks do not fit {levels} levels; the U-Net is incomplete")
    per_level = blocks_out // levels - 1
    firsts = [1 + level * (per_level + 1) for level in range(levels)]
    widths = [_size(shapes, f"input_blocks.{first}.0.out_layers.3.weight", 0) for first in firsts]
    attended = tuple(2**i for i, first in enumerate(firsts) if _indices(shapes, rf"input_blocks\.({first})\.1\."))
    depth = len(_indices(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\."))
    key = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    token_dim = _size(shapes, key, 1) if depth else None
    in_channels, out_channels = _size(shapes, "input_blocks.0.0.weight", 1), _size(shapes, "out.2.weight", 0)
    first_out = _size(shapes, "input_blocks.1.0.out_layers.3.weight", 0)
    shown = Known(
        "this checkpoint",
        channels,
        tuple(width // channels for width in widths),
        attended,
        in_channels,
        out_channels,
        token_dim,
        max(depth, 1),
        resample,
        _size(shapes, "input_blocks.1.0.emb_layers.1.weight", 0) == 2 * first_out,
        linear=depth > 0 and len(shapes.get("middle_block.1.proj_in.weight", ())) == 2,
    )
    unusual = unusual_input(in_channels, out_channels, token_dim is not None)
    if unusual is not None:
        raise UserError(f"this is {unusual}, which no command here supports; with --config it is read as it is")
    known = _lookup(shown, conditioner, report)
    config = UNetConfig.model_validate(
        {
            "channels": channels,
            "channel_multipliers": shown.multipliers,
            "blocks_per_level": per_level,
            "attention_factors": attended,
            "heads": known.heads,
            "head_channels": known.head_channels,
            "transformer_depth": shown.depth,
            "resample": resample,
            "scale_shift_norm": shown.scale_shift,
            "linear_projections": shown.linear,
            "vector_projection": "mlp" if "label_emb.0.0.weight" in shapes else "none",
        }
    )
    return config, shown, known


def _lookup(shown: Known, conditioner: str, report: Callable[[str], None]) -> Known:
    """The published model of this topology; with other widths only if all matches agree, with a note."""
    same = [known for known in KNOWN if known.topology() == shown.topology()]
    exact = [k for k in same if (k.channels, k.token_dim) == (shown.channels, shown.token_dim)]
    if exact:
        return exact[0]
    same = [k for k in same if k.conditioner in ("", conditioner)]
    answers = {(k.heads, k.head_channels, k.scale_factor, k.prediction) for k in same}
    if len(answers) == 1:
        heads = (
            f"{same[0].heads} head{'s' * (same[0].heads > 1)}"
            if same[0].heads
            else f"{same[0].head_channels} channels a head"
        )
        report(f"the shapes do not determine the attention heads: using {heads}, as the published {same[0].name} has")
        return same[0]
    raise UserError(
        f"a U-Net of {shown.channels} channels, multipliers {shown.multipliers}, attention at {shown.attended} is not "
        "a published model, and shapes do not determine its attention heads: give its original configuration with "
        "--config"
    )


# -- second stage -----------------------------------------------------------------------------------------------------


def _infer_diffusion(
    shapes: Shapes,
    load: Callable[[str], Tensor],
    autoencoder: AutoencoderConfig,
    prediction: str | None,
    steps: int | None,
    report: Callable[[str], None],
) -> Diffusion:
    unet_shapes = below(shapes, UNET)
    conditioning = infer_conditioning(below(shapes, CONDITIONER), unet_shapes, autoencoder)
    unet, shown, known = infer_unet(unet_shapes, conditioning.kind, report)
    label = unet_shapes.get("label_emb.weight")
    if conditioning.mode == "none" and label is not None:
        conditioning = Conditioning("adm", "identity", {}, "class_label")
    factor = 2 ** (len(unet.channel_multipliers) - 1)
    marked = "v" if V_MARK in shapes else ""
    predicted = prediction or marked or known.prediction or V_STEPS.get(steps or 0, "v" if steps else "")
    if not predicted:
        raise UserError(
            "Stable Diffusion 2 checkpoints predict eps (512 base) or v (768), and this one does not show which: "
            "give --prediction eps or --prediction v"
        )
    if marked and prediction is None:
        report(f"the key {V_MARK!r} marks a model that predicts v")
    schedule = infer_stored(shapes, load, report) or _default_schedule(known, report)
    if schedule.get("zero_terminal_snr") and predicted == "eps" and prediction is None:
        raise UserError(
            "the checkpoint's schedule has zero terminal SNR, at whose end eps determines no image, and its keys do "
            "not show what it predicts: give --prediction v, or --prediction eps if it was trained so"
        )
    nominal = 768 if known.name == SD2 and predicted == "v" else known.size
    return Diffusion(
        unet=unet,
        in_channels=shown.in_channels,
        latent_channels=shown.out_channels,
        token_dim=shown.token_dim,
        classes=label[0] if label else None,
        latent_size=max(nominal // autoencoder.factor, factor),
        conditioning=conditioning,
        schedule=schedule,
        prediction=predicted,
        loss=known.loss,
        scale_factor=None if "scale_factor" in shapes else known.scale_factor,
        elbo_weight=0.0,
        averaged=f"{EMA}decay" in shapes,
    )


def _default_schedule(known: Known, report: Callable[[str], None]) -> dict[str, object]:
    """A checkpoint stripped of its buffers: Stable Diffusion's schedule is fixed, the others' are not."""
    if known.scale_factor != SD_SCALE:
        raise UserError("the checkpoint lacks its schedule (the key betas): give its configuration with --config")
    report("the checkpoint lacks its schedule (the key betas): using Stable Diffusion's, 0.00085 to 0.012")
    return {"kind": "scaled-linear", "steps": 1000, "start": 0.00085, "end": 0.012}


# -- conditioner ------------------------------------------------------------------------------------------------------

TEXT_VOCABULARY = 30522  # BERT's; any other belongs to layouts


def infer_conditioning(shapes: Shapes, unet: Shapes, autoencoder: AutoencoderConfig) -> Conditioning:
    """The conditioning of the U-Net, from the conditioner's and the U-Net's keys (without prefixes)."""
    concat = _size(unet, "input_blocks.0.0.weight", 1) > _size(unet, "out.2.weight", 0)
    tokens = "middle_block.1.transformer_blocks.0.attn2.to_k.weight" in unet
    mode = "hybrid" if concat and tokens else "concat" if concat else "crossattn" if tokens else "none"
    if "embedding.weight" in shapes:
        rows, dim = shapes["embedding.weight"]
        return Conditioning(mode, "class", {"n_classes": rows, "embed_dim": dim}, "class_label", True)
    if "transformer.token_emb.weight" in shapes:
        return _infer_bert(shapes, mode)
    if "channel_mapper.weight" in shapes:
        out, classes = shapes["channel_mapper.weight"][:2]
        stages = autoencoder.factor.bit_length() - 1
        params = {"n_stages": stages, "in_channels": classes, "out_channels": out}
        return Conditioning(mode, "semantic", params, "segmentation", True)
    if "encoder.conv_in.weight" in shapes:
        return Conditioning(mode, "first-stage", {}, "masked_image")
    if any(key.startswith("transformer.text_model.") for key in shapes):
        return Conditioning(mode, "clip", {}, "txt")
    if any(key.startswith("model.transformer.resblocks.") for key in shapes):
        return Conditioning(mode, "open-clip", {}, "txt")
    if shapes:
        raise UserError(f"the conditioner's keys are of no known kind (such as {sorted(shapes)[0]!r}): give --config")
    if mode == "none":
        return Conditioning()
    return Conditioning(mode, "identity", {}, "LR_image" if mode == "concat" else "image")


def _infer_bert(shapes: Shapes, mode: str) -> Conditioning:
    vocabulary, dim = shapes["transformer.token_emb.weight"]
    layers = len(_indices(shapes, r"transformer\.attn_layers\.layers\.(\d+)\."))
    text = vocabulary == TEXT_VOCABULARY
    params = {
        "n_embed": dim,
        "n_layer": layers // 2,
        "vocab_size": vocabulary,
        "max_seq_len": _size(shapes, "transformer.pos_emb.emb.weight", 0),
        "use_tokenizer": text,
    }
    return Conditioning(mode, "bert", params, "caption" if text else "coordinates_bbox", True)
