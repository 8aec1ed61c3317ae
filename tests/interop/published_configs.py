"""The 23 published configurations in the original's own schema, at full size or shrunken."""

import copy
from typing import Any

Config = dict[str, Any]
ENCODERS = "ldm.modules.encoders.modules."
IDENTITY = {"target": "torch.nn.Identity"}


def _stage(embed: int, mult: list[int], attends: list[int], codes: int | None, kind: str = "vanilla") -> Config:
    dd: Config = {"double_z": codes is None, "z_channels": embed, "resolution": 256, "in_channels": 3, "out_ch": 3}
    dd |= {"ch": 128, "ch_mult": mult, "num_res_blocks": 2, "attn_resolutions": attends, "dropout": 0.0}
    if kind != "vanilla":
        dd["attn_type"] = kind
    params: Config = {"embed_dim": embed} if codes is None else {"embed_dim": embed, "n_embed": codes}
    target = "AutoencoderKL" if codes is None else "VQModel"
    loss = {"target": "ldm.modules.losses.LPIPSWithDiscriminator", "params": {"disc_start": 50001}}
    params |= {"monitor": "val/rec_loss", "ddconfig": dd, "lossconfig": loss}
    return {"target": f"ldm.models.autoencoder.{target}", "params": params}


FIRST_STAGES = {
    "kl-f4": _stage(3, [1, 2, 4], [], None),
    "kl-f8": _stage(4, [1, 2, 4, 4], [], None),
    "kl-f16": _stage(16, [1, 1, 2, 2, 4], [16], None),
    "kl-f32": _stage(64, [1, 1, 2, 2, 4, 4], [16, 8], None),
    "vq-f4": _stage(3, [1, 2, 4], [], 8192),
    "vq-f4-noattn": _stage(3, [1, 2, 4], [], 8192, "none"),
    "vq-f8": _stage(4, [1, 2, 2, 4], [32], 16384),
    "vq-f8-n256": _stage(4, [1, 2, 2, 4], [32], 256),
    "vq-f16": _stage(8, [1, 1, 2, 2, 4], [16], 16384),
}


def _unet(size: int, channels: tuple[int, int], width: int, mult: list[int], attends: list[int], **more: Any) -> Config:
    params = {"image_size": size, "in_channels": channels[0], "out_channels": channels[1], "model_channels": width}
    return params | {"attention_resolutions": attends, "num_res_blocks": 2, "channel_mult": mult} | more


def _tokens(width: int, depth: int = 1) -> Config:
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": width}


def _second(first: str, end: float, unet: Config, stage: Any = "__is_unconditional__", **more: Any) -> Config:
    interface = copy.deepcopy(FIRST_STAGES[first])
    interface["target"] = interface["target"].replace("VQModel", "VQModelInterface")
    interface["params"]["lossconfig"] = dict(IDENTITY)
    params: Config = {"linear_start": 0.0015, "linear_end": end, "log_every_t": 200, "timesteps": 1000}
    params |= {"first_stage_key": "image", "image_size": unet["image_size"], "channels": unet["out_channels"]}
    params |= {"unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet}}
    params |= {"first_stage_config": interface, "cond_stage_config": stage, **more}
    return {"base_learning_rate": 1e-6, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}


def _encoder(name: str, **params: Any) -> Config:
    return {"target": ENCODERS + name, "params": params}


CROSS = {"conditioning_key": "crossattn", "cond_stage_trainable": True}
FACES = _unet(64, (3, 3), 224, [1, 2, 3, 4], [8, 4, 2], num_head_channels=32)
WIDE = _unet(64, (3, 3), 192, [1, 2, 3, 5], [8, 4, 2])
MAPS = _unet(64, (6, 3), 128, [1, 4, 8], [32, 16, 8], num_heads=8)
SEGMENTATION = _encoder("SpatialRescaler", n_stages=2, in_channels=182, out_channels=3)
UNCONDITIONAL = {"cond_stage_key": "class_label", "concat_mode": False}
CONCAT = {"concat_mode": True, "loss_type": "l1"}

DIFFUSIONS = {
    "celebahq256": _second("vq-f4", 0.0195, FACES, **UNCONDITIONAL),
    "ffhq256": _second("vq-f4", 0.0195, FACES, **UNCONDITIONAL),
    "lsun_beds256": _second("vq-f4", 0.0195, FACES, **UNCONDITIONAL),
    "lsun_churches256": _second(
        "kl-f8",
        0.0155,
        _unet(32, (4, 4), 192, [1, 2, 2, 4, 4], [1, 2, 4, 8], num_heads=8, use_scale_shift_norm=True,
              resblock_updown=True),
        cond_stage_key="image",
        concat_mode=False,
        scale_by_std=True,
        loss_type="l1",
        scheduler_config={"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"warm_up_steps": [10000]}},
    ),
    "cin256": _second(
        "vq-f8",
        0.0195,
        _unet(32, (4, 4), 256, [1, 2, 4], [4, 2, 1], num_head_channels=32, **_tokens(512)),
        _encoder("ClassEmbedder", embed_dim=512, key="class_label"),
        cond_stage_key="class_label",
        **CROSS,
    ),
    "cin256-v2": _second(
        "vq-f4",
        0.0195,
        {**WIDE, "num_heads": 1, **_tokens(512)},
        _encoder("ClassEmbedder", embed_dim=512, n_classes=1001, key="class_label"),
        cond_stage_key="class_label",
        use_ema=False,
        **CROSS,
    ),
    "text2img256": _second(
        "vq-f4",
        0.0195,
        {**WIDE, "num_head_channels": 32, **_tokens(640)},
        _encoder("BERTEmbedder", n_embed=640, n_layer=32),
        cond_stage_key="caption",
        **CROSS,
    ),
    "txt2img-1p4B": _second(
        "kl-f8",
        0.012,
        _unet(32, (4, 4), 320, [1, 2, 4, 4], [4, 2, 1], num_heads=8, use_checkpoint=True, legacy=False,
              **_tokens(1280)),
        _encoder("BERTEmbedder", n_embed=1280, n_layer=32),
        cond_stage_key="caption",
        scale_factor=0.18215,
        use_ema=False,
        **CROSS,
    ),
    "layout2img-openimages256": _second(
        "vq-f4",
        0.0205,
        _unet(64, (3, 3), 128, [1, 2, 3, 4], [8, 4, 2], num_head_channels=32, **_tokens(512, 3)),
        _encoder("BERTEmbedder", n_embed=512, n_layer=16, vocab_size=8192, max_seq_len=92, use_tokenizer=False),
        cond_stage_key="coordinates_bbox",
        loss_type="l1",
        **CROSS,
    ),
    "semantic_synthesis256": _second(
        "vq-f4", 0.0205, MAPS, SEGMENTATION, cond_stage_key="segmentation", cond_stage_trainable=True, **CONCAT
    ),
    "semantic_synthesis512": _second(
        "vq-f4",
        0.0205,
        {**MAPS, "image_size": 128},
        SEGMENTATION,
        cond_stage_key="segmentation",
        cond_stage_trainable=True,
        **CONCAT,
    ),
    "bsr_sr": _second(
        "vq-f4",
        0.0155,
        _unet(64, (6, 3), 160, [1, 2, 2, 4], [16, 8], num_head_channels=32),
        dict(IDENTITY),
        cond_stage_key="LR_image",
        concat_mode=True,
        loss_type="l2",
    ),
    "inpainting_big": _second(
        "vq-f4-noattn",
        0.0205,
        _unet(64, (7, 3), 256, [1, 2, 3, 4], [8, 4, 2], num_heads=8, resblock_updown=True),
        "__is_first_stage__",
        cond_stage_key="masked_image",
        **CONCAT,
    ),
    "rdm768x768": _second(
        "kl-f16",
        0.015,
        _unet(48, (16, 16), 448, [1, 2, 3, 4], [4, 2, 1], num_head_channels=32, use_checkpoint=True, **_tokens(768)),
        dict(IDENTITY),
        cond_stage_key="nix",
        conditioning_key="crossattn",
        cond_stage_trainable=False,
        scale_factor=0.22765929,
    ),
}  # fmt: skip
DIFFUSIONS["txt2img-1p4B"]["params"]["linear_start"] = 0.00085

PUBLISHED = {**FIRST_STAGES, **DIFFUSIONS}


def full_size(name: str) -> Config:
    """The configuration of the published model, as its YAML reads."""
    return {"model": copy.deepcopy(PUBLISHED[name])}


def shrunken(name: str) -> Config:
    """The same topology at an eighth of the width, rounded to multiples of 32."""
    config = full_size(name)
    _shrink(config)
    return config


def _shrink(node: Any) -> None:
    named = {"ch", "model_channels", "context_dim"}  # n_embed and embed_dim mean widths in a conditioner alone
    named |= {"n_embed"} if "n_layer" in node else set() if "ddconfig" in node else {"embed_dim"}
    for key, value in node.items():
        if isinstance(value, dict):
            _shrink(value)
        elif key in named:
            node[key] = narrow(value)


def narrow(width: int) -> int:
    """A width of the shrunken models."""
    return max(32, 32 * round(width / 8 / 32))
