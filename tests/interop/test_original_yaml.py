"""Original configurations that come without a recorded key list, against the zoo; and Stable Diffusion's."""

from typing import Any

import pytest
import torch

from sfumato.conditioning.condition import ConditionSpec
from sfumato.config import parse, read_source
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.interop.conditioners import map_conditioner
from sfumato.interop.infer import infer_unet
from sfumato.interop.original_yaml import Original, parse_original
from sfumato.interop.published import DIFFUSIONS
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun

FIRST: dict[str, tuple[str, int, int | None, list[int], list[int], dict[str, Any]]] = {
    "kl-f8": ("AutoencoderKL", 4, None, [1, 2, 4, 4], [], {}),
    "kl-f16": ("AutoencoderKL", 16, None, [1, 1, 2, 2, 4], [16], {}),
    "vq-f4": ("VQModelInterface", 3, 8192, [1, 2, 4], [], {}),
    "vq-f4-noattn": ("VQModelInterface", 3, 8192, [1, 2, 4], [], {"attn_type": "none"}),
}


def first_stage(name: str) -> dict[str, Any]:
    target, z, codes, mult, attended, more = FIRST[name]
    dd = {"double_z": codes is None, "z_channels": z, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    dd |= {"ch_mult": mult, "num_res_blocks": 2, "attn_resolutions": attended, "dropout": 0.0, **more}
    params: dict[str, Any] = {"embed_dim": z, "ddconfig": dd, "lossconfig": {"target": "torch.nn.Identity"}}
    if codes is not None:
        params["n_embed"] = codes
    return {"target": f"ldm.models.autoencoder.{target}", "params": params}


def model(first: str, unet: dict[str, Any], stage: Any, **params: Any) -> Original:
    settings = {"num_res_blocks": 2, **unet}
    return parse_original(
        {
            "model": {
                "base_learning_rate": 1e-6,
                "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
                "params": {
                    "timesteps": 1000,
                    "linear_start": 0.0015,
                    "log_every_t": 200,
                    "monitor": "val/loss",
                    "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": settings},
                    "first_stage_config": first_stage(first),
                    "cond_stage_config": stage,
                    **params,
                },
            }
        }
    )


def encoder(name: str, **params: Any) -> dict[str, Any]:
    return {"target": f"ldm.modules.encoders.modules.{name}", "params": params}


MODELS: dict[str, Original] = {
    "lsun-churches256": model(
        "kl-f8",
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 192,
            "attention_resolutions": [1, 2, 4, 8],
            "channel_mult": [1, 2, 2, 4, 4],
            "num_heads": 8,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        },
        "__is_unconditional__",
        linear_end=0.0155,
        loss_type="l1",
        scale_by_std=True,
        cond_stage_key="image",
        scheduler_config={"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"warm_up_steps": [10000]}},
    ),
    "cin256-v2": model(
        "vq-f4",
        {
            "image_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 192,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 5],
            "num_heads": 1,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": 512,
        },
        encoder("ClassEmbedder", n_classes=1001, embed_dim=512, key="class_label"),
        linear_end=0.0195,
        conditioning_key="crossattn",
        cond_stage_key="class_label",
        use_ema=False,
    ),
    "txt2img-1p4B": model(
        "kl-f8",
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "attention_resolutions": [4, 2, 1],
            "channel_mult": [1, 2, 4, 4],
            "num_heads": 8,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": 1280,
            "use_checkpoint": True,
            "legacy": False,
        },
        encoder("BERTEmbedder", n_embed=1280, n_layer=32),
        linear_start=0.00085,
        linear_end=0.012,
        conditioning_key="crossattn",
        cond_stage_key="caption",
        scale_factor=0.18215,
        use_ema=False,
    ),
    "layout2img-openimages256": model(
        "vq-f4",
        {
            "image_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 128,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 4],
            "num_head_channels": 32,
            "use_spatial_transformer": True,
            "transformer_depth": 3,
            "context_dim": 512,
        },
        encoder("BERTEmbedder", n_embed=512, n_layer=16, vocab_size=8192, max_seq_len=92, use_tokenizer=False),
        linear_end=0.0205,
        loss_type="l1",
        conditioning_key="crossattn",
        cond_stage_key="coordinates_bbox",
    ),
    "inpainting-big": model(
        "vq-f4-noattn",
        {
            "image_size": 64,
            "in_channels": 7,
            "out_channels": 3,
            "model_channels": 256,
            "attention_resolutions": [8, 4, 2],
            "channel_mult": [1, 2, 3, 4],
            "num_heads": 8,
            "resblock_updown": True,
        },
        "__is_first_stage__",
        linear_end=0.0205,
        loss_type="l1",
        cond_stage_key="masked_image",
    ),
    "rdm768": model(
        "kl-f16",
        {
            "image_size": 48,
            "in_channels": 16,
            "out_channels": 16,
            "model_channels": 448,
            "attention_resolutions": [4, 2, 1],
            "channel_mult": [1, 2, 3, 4],
            "num_head_channels": 32,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": 768,
            "use_checkpoint": True,
        },
        {"target": "torch.nn.Identity"},
        linear_end=0.015,
        conditioning_key="crossattn",
        cond_stage_key="nix",
        scale_factor=0.22765929,
        image_size=48,
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_zoo_agrees(name: str) -> None:
    original = MODELS[name]
    raw = read_source(f"zoo:ldm/{name}")
    run = parse({**raw, "data": {**raw["data"], "path": "/"}}, DiffusionRun, name)
    row = next(row for row in DIFFUSIONS if row.name == name)
    first = read_source(f"zoo:ldm/{row.first_stage}")
    autoencoder = parse({**first, "data": {**first["data"], "path": "/"}}, AutoencoderRun, name).model
    assert original.autoencoder.model_dump(exclude={"embed_channels"}) == autoencoder.model_dump(
        exclude={"embed_channels"}
    )
    diffusion = original.diffusion
    assert diffusion is not None
    fields = {"vector_projection"}
    assert run.denoiser.model_dump(exclude=fields) == diffusion.unet.model_dump(exclude=fields)
    assert diffusion.schedule.items() <= run.schedule.model_dump().items()
    assert run.objective.loss == diffusion.loss
    assert row.scale == diffusion.scale_factor
    mapped = map_conditioner(diffusion, "bert-base-uncased")
    for key, value in mapped.config.items():
        if key == "parts":
            assert list(value) == list(run.conditioner.parts)  # type: ignore[union-attr]
            continue
        assert run.conditioner.model_dump()[key] == value


SD_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "channel_mult": [1, 2, 4, 4],
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "use_checkpoint": True,
    "legacy": False,
}
SD = {"linear_start": 0.00085, "linear_end": 0.012, "conditioning_key": "crossattn", "scale_factor": 0.18215}
SD |= {"first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4, "num_timesteps_cond": 1}


def test_stable_diffusion_1() -> None:
    unet = {**SD_UNET, "num_heads": 8, "context_dim": 768}
    found = model("kl-f8", unet, encoder("FrozenCLIPEmbedder"), **SD, use_ema=False)
    assert found.diffusion is not None
    assert found.diffusion.unet.heads == 8
    assert found.diffusion.latent_size == 64
    config = map_conditioner(found.diffusion, None).config
    assert (config["kind"], config["layer"], config["mask_padding"]) == ("pretrained-text", "last", False)


def test_stable_diffusion_2() -> None:
    unet = {
        **SD_UNET,
        "num_head_channels": 64,
        "context_dim": 1024,
        "use_linear_in_transformer": True,
        "use_fp16": True,
    }
    stage = encoder("FrozenOpenCLIPEmbedder", freeze=True, layer="penultimate")
    found = model("kl-f8", unet, stage, **SD, parameterization="v")
    assert found.diffusion is not None
    assert found.diffusion.prediction == "v"
    assert found.diffusion.unet.linear_projections
    assert map_conditioner(found.diffusion, None).config["layer"] == "penultimate"


def test_class_table_inside_the_unet() -> None:
    """The original's adm conditioning: num_classes, added to the time embedding."""
    unet = {**SD_UNET, "use_spatial_transformer": False, "num_heads": 8, "num_classes": 10}
    params = {**SD, "conditioning_key": "adm", "cond_stage_key": "class_label"}
    found = model("kl-f8", unet, {"target": "torch.nn.Identity"}, **params)
    assert found.diffusion is not None
    mapped = map_conditioner(found.diffusion, None)
    assert mapped.config == {"kind": "class", "classes": 10, "dim": 1280, "null": "none", "output": "vector"}
    assert mapped.prefixes == {"embedding.": "model.diffusion_model.label_emb."}


@pytest.mark.parametrize("resample", ["conv", "pool", "residual"])
@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_unets_topology_shows_in_its_shapes(resample: Any, levels: int, blocks: int) -> None:
    config = UNetConfig(
        channels=32,
        channel_multipliers=(1, 2, 1, 3, 2)[:levels],
        blocks_per_level=blocks,
        attention_factors=(1, 4) if levels > 1 else (1,),
        head_channels=32,
        resample=resample,
        scale_shift_norm=levels == 3,
        vector_projection="none",
    )
    with torch.device("meta"):
        shapes = {
            key: tuple(t.shape) for key, t in UNet(config, 4, ConditionSpec(spatial_channels=2)).state_dict().items()
        }
    try:
        infer_unet(shapes, "", lambda text: None)
    except ValueError as error:
        message = str(error)
    expected = config.attention_factors if levels > 1 else (1,)
    reached = tuple(f for f in expected if f < 2**levels)
    assert f"multipliers {config.channel_multipliers}, attention at {reached}" in message
