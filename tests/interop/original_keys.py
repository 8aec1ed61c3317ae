"""Keys and shapes of original checkpoints, derived from the original's configuration without our code.

Everything is in the order in which the original registers it, so that a file made from it looks as a published one.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.schedule import CosineConfig, LinearConfig, ScaledLinearConfig, SqrtConfig, betas_of
from sfumato.interop.buffers import schedule_buffers

Params = Mapping[str, Any]
Entry = tuple[str, tuple[int, ...]]


def _affine(name: str, *weight: int) -> Iterator[Entry]:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def _below(name: str, entries: Iterator[Entry]) -> Iterator[Entry]:
    for key, shape in entries:
        yield f"{name}.{key}", shape


# -- first stage ------------------------------------------------------------------------------------------------------


def _residual(inner: int, outer: int) -> Iterator[Entry]:
    yield from _affine("norm1", inner)
    yield from _affine("conv1", outer, inner, 3, 3)
    yield from _affine("norm2", outer)
    yield from _affine("conv2", outer, outer, 3, 3)
    if inner != outer:
        yield from _affine("nin_shortcut", outer, inner, 1, 1)


def _attention(kind: str, width: int) -> Iterator[Entry]:
    if kind == "linear":
        yield "to_qkv.weight", (3 * width, width, 1, 1)
        yield from _affine("to_out", width, width, 1, 1)
    elif kind == "vanilla":
        yield from _affine("norm", width)
        for name in ("q", "k", "v", "proj_out"):
            yield from _affine(name, width, width, 1, 1)


def _middle(kind: str, width: int) -> Iterator[Entry]:
    yield from _below("mid.block_1", _residual(width, width))
    yield from _below("mid.attn_1", _attention(kind, width))
    yield from _below("mid.block_2", _residual(width, width))


def _level(kind: str | None, inner: int, outer: int, blocks: int, resample: str | None) -> Iterator[Entry]:
    for i in range(blocks):
        yield from _below(f"block.{i}", _residual(outer if i else inner, outer))
    for i in range(blocks if kind else 0):
        yield from _below(f"attn.{i}", _attention(str(kind), outer))
    if resample:
        yield from _affine(f"{resample}.conv", outer, outer, 3, 3)


def first_stage(params: Params) -> Iterator[Entry]:
    """Of `AutoencoderKL` or `VQModel`, without prefix."""
    dd, embed, z = params["ddconfig"], params["embed_dim"], params["ddconfig"]["z_channels"]
    widths, last = [dd["ch"] * m for m in dd["ch_mult"]], len(dd["ch_mult"]) - 1
    kind, blocks = dd.get("attn_type", "vanilla"), dd["num_res_blocks"]
    attends = [kind if dd["resolution"] // 2**i in dd["attn_resolutions"] else None for i in range(last + 1)]
    double = 2 if dd["double_z"] else 1
    yield from _affine("encoder.conv_in", dd["ch"], dd["in_channels"], 3, 3)
    for i, width in enumerate(widths):
        level = _level(attends[i], widths[i - 1] if i else dd["ch"], width, blocks, "downsample" if i < last else None)
        yield from _below(f"encoder.down.{i}", level)
    yield from _below("encoder", _middle(kind, widths[-1]))
    yield from _affine("encoder.norm_out", widths[-1])
    yield from _affine("encoder.conv_out", double * z, widths[-1], 3, 3)
    yield from _affine("decoder.conv_in", widths[-1], z, 3, 3)
    yield from _below("decoder", _middle(kind, widths[-1]))
    for i, width in enumerate(widths):
        level = _level(attends[i], widths[min(i + 1, last)], width, blocks + 1, "upsample" if i else None)
        yield from _below(f"decoder.up.{i}", level)
    yield from _affine("decoder.norm_out", widths[0])
    yield from _affine("decoder.conv_out", dd["out_ch"], widths[0], 3, 3)
    if "n_embed" in params:
        yield "quantize.embedding.weight", (params["n_embed"], embed)
    yield from _affine("quant_conv", double * embed, double * z, 1, 1)
    yield from _affine("post_quant_conv", z, embed, 1, 1)


# -- U-Net ------------------------------------------------------------------------------------------------------------


def _res_block(inner: int, outer: int, embedding: int, scale_shift: bool) -> Iterator[Entry]:
    yield from _affine("in_layers.0", inner)
    yield from _affine("in_layers.2", outer, inner, 3, 3)
    yield from _affine("emb_layers.1", 2 * outer if scale_shift else outer, embedding)
    yield from _affine("out_layers.0", outer)
    yield from _affine("out_layers.3", outer, outer, 3, 3)
    if inner != outer:
        yield from _affine("skip_connection", outer, inner, 1, 1)


def _cross_attention(name: str, width: int, context: int) -> Iterator[Entry]:
    yield f"{name}.to_q.weight", (width, width)
    yield f"{name}.to_k.weight", (width, context)
    yield f"{name}.to_v.weight", (width, context)
    yield from _affine(f"{name}.to_out.0", width, width)


def _attention_of(p: Params, width: int) -> Iterator[Entry]:
    yield from _affine("norm", width)
    if not p.get("use_spatial_transformer"):
        yield from _affine("qkv", 3 * width, width, 1)
        yield from _affine("proj_out", width, width, 1)
        return
    yield from _affine("proj_in", width, width, 1, 1)
    for i in range(p.get("transformer_depth", 1)):
        block = f"transformer_blocks.{i}"
        yield from _cross_attention(f"{block}.attn1", width, width)
        yield from _affine(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from _affine(f"{block}.ff.net.2", width, 4 * width)
        yield from _cross_attention(f"{block}.attn2", width, p["context_dim"])
        for norm in ("norm1", "norm2", "norm3"):
            yield from _affine(f"{block}.{norm}", width)
    yield from _affine("proj_out", width, width, 1, 1)


def _resampling(p: Params, width: int, name: str) -> Iterator[Entry]:
    if p.get("resblock_updown"):
        yield from _res_block(width, width, 4 * p["model_channels"], bool(p.get("use_scale_shift_norm")))
    elif p.get("conv_resample", True):
        yield from _affine(name, width, width, 3, 3)


def unet(p: Params) -> Iterator[Entry]:
    """Of `UNetModel`, without prefix."""
    base, mult, last = p["model_channels"], p["channel_mult"], len(p["channel_mult"]) - 1
    embedding, shift = 4 * base, bool(p.get("use_scale_shift_norm"))
    yield from _affine("time_embed.0", embedding, base)
    yield from _affine("time_embed.2", embedding, embedding)
    if p.get("num_classes"):
        yield "label_emb.weight", (p["num_classes"], embedding)
    yield from _affine("input_blocks.0.0", base, p["in_channels"], 3, 3)
    width, skips, block = base, [base], 1
    for level, m in enumerate(mult):
        for _ in range(p["num_res_blocks"]):
            yield from _below(f"input_blocks.{block}.0", _res_block(width, m * base, embedding, shift))
            width = m * base
            if 2**level in p["attention_resolutions"]:
                yield from _below(f"input_blocks.{block}.1", _attention_of(p, width))
            skips.append(width)
            block += 1
        if level < last:
            yield from _below(f"input_blocks.{block}.0", _resampling(p, width, "op"))
            skips.append(width)
            block += 1
    yield from _below("middle_block.0", _res_block(width, width, embedding, shift))
    yield from _below("middle_block.1", _attention_of(p, width))
    yield from _below("middle_block.2", _res_block(width, width, embedding, shift))
    block = 0
    for level, m in reversed(list(enumerate(mult))):
        for i in range(p["num_res_blocks"] + 1):
            yield from _below(f"output_blocks.{block}.0", _res_block(width + skips.pop(), m * base, embedding, shift))
            width, place = m * base, 1
            if 2**level in p["attention_resolutions"]:
                yield from _below(f"output_blocks.{block}.1", _attention_of(p, width))
                place = 2
            if level and i == p["num_res_blocks"]:
                yield from _below(f"output_blocks.{block}.{place}", _resampling(p, width, "conv"))
            block += 1
    yield from _affine("out.0", base)
    yield from _affine("out.2", p["out_channels"], base * mult[0], 3, 3)


# -- conditioners, and all together -----------------------------------------------------------------------------------

BERT = (8, 64)


def _transformer(params: Params) -> Iterator[Entry]:
    width, inner = params["n_embed"], math.prod(BERT)
    words = params.get("vocab_size", 30522)
    yield "token_emb.weight", (words, width)
    yield "pos_emb.emb.weight", (params.get("max_seq_len", 77), width)
    for i in range(params["n_layer"]):
        attention, forward = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        yield from _affine(f"{attention}.0", width)
        for name in ("to_q", "to_k", "to_v"):
            yield f"{attention}.1.{name}.weight", (inner, width)
        yield from _affine(f"{attention}.1.to_out", width, inner)
        yield from _affine(f"{forward}.0", width)
        yield from _affine(f"{forward}.1.net.0.0", 4 * width, width)
        yield from _affine(f"{forward}.1.net.2", width, 4 * width)
    yield from _affine("norm", width)
    yield from _affine("to_logits", words, width)


def _conditioner(stage: Any, first: Params) -> Iterator[Entry]:
    if stage == "__is_first_stage__":
        yield from first_stage(first)
    if not isinstance(stage, dict):
        return
    name, params = stage["target"].rsplit(".", 1)[-1], stage.get("params", {})
    if name == "ClassEmbedder":
        yield "embedding.weight", (params.get("n_classes", 1000), params["embed_dim"])
    elif name == "BERTEmbedder":
        yield from _below("transformer", _transformer(params))
    elif name == "SpatialRescaler":
        yield "channel_mapper.weight", (params["out_channels"], params["in_channels"], 1, 1)


def buffers(p: Params) -> dict[str, Tensor]:
    """The schedule of a LatentDiffusion's parameters."""
    steps, start, end = p["timesteps"], p.get("linear_start", 1e-4), p.get("linear_end", 2e-2)
    configs = {
        "linear": ScaledLinearConfig(steps=steps, start=start, end=end),
        "sqrt_linear": LinearConfig(steps=steps, start=start, end=end),
        "sqrt": SqrtConfig(steps=steps, start=start, end=end),
        "cosine": CosineConfig(steps=steps),
    }
    return schedule_buffers(betas_of(configs[p.get("beta_schedule", "linear")]))


def shapes_of(config: Params) -> dict[str, tuple[int, ...]]:
    """Every key of a checkpoint of this original configuration (the YAML as plain data)."""
    model = config["model"]
    if "Autoencoder" in model["target"] or "VQModel" in model["target"]:
        return dict(first_stage(model["params"]))
    p = model["params"]
    first, network = p["first_stage_config"]["params"], p["unet_config"]["params"]
    found = {"logvar": (p["timesteps"],)} if p.get("learn_logvar") else {}
    found |= {key: tuple(value.shape) for key, value in buffers(p).items()}
    if p.get("scale_by_std"):
        found["scale_factor"] = ()
    found |= dict(_below("model.diffusion_model", unet(network)))
    if p.get("use_ema", True):
        found |= {"model_ema.decay": (), "model_ema.num_updates": ()}
        found |= {f"model_ema.diffusion_model{k.replace('.', '')}": shape for k, shape in unet(network)}
    found |= dict(_below("first_stage_model", first_stage(first)))
    return found | dict(_below("cond_stage_model", _conditioner(p["cond_stage_config"], first)))


def state_dict(config: Params, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a usual size for every key: no layer is zero, no two sets are alike, copies are copies."""
    generator = torch.Generator().manual_seed(seed)
    p = config["model"]["params"]
    fixed = buffers(p) if "timesteps" in p else {}
    fixed |= {"model_ema.decay": torch.tensor(0.9999), "scale_factor": torch.tensor(0.2271)}
    fixed["model_ema.num_updates"] = torch.tensor(4321, dtype=torch.int32)
    state: dict[str, Tensor] = {}
    copied = p.get("cond_stage_config") == "__is_first_stage__"
    for key, shape in shapes_of(config).items():
        twin = key.replace("cond_stage_model.", "first_stage_model.")
        if key in fixed:
            state[key] = fixed[key]
        elif copied and key != twin:
            state[key] = state[twin].clone()
        elif len(shape) < 2:
            state[key] = float(key.endswith("weight")) + 0.1 * torch.randn(shape, generator=generator)
        else:
            state[key] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    return state
