"""Every published topology, and combinations of what they use: a file in the original layout, in and out again.

Keys, shapes and their order come from `original_keys`, which was written from the original's constructors alone.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_keys
import pytest
import torch
import yaml
from published_configs import DIFFUSIONS, IDENTITY, PUBLISHED, full_size, shrunken
from torch import Tensor

import sfumato
from parity import PARITY, needs_parity
from sfumato.conditioning.condition import Condition, stack
from sfumato.errors import UserError
from sfumato.interop.infer import infer_original
from sfumato.interop.original import import_original
from sfumato.interop.original_export import export_original
from sfumato.interop.original_yaml import Original, parse_original
from sfumato.interop.source import open_checkpoint
from sfumato.model import LatentDiffusion
from sfumato.pipeline.denoise import Guidance, guided
from sfumato.pipeline.latents import decode
from sfumato.pipeline.pipeline import network_of
from sfumato.rng import SampleNoise
from sfumato.sampling.ancestral import DDIM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.loop import sample

Config = dict[str, Any]
SIZE_NOT_IN_SHAPES = "semantic_synthesis512"  # of semantic_synthesis256 in every shape


@needs_parity
@pytest.mark.parametrize("file", sorted((PARITY / "scaled").glob("*.json")), ids=lambda path: path.stem)
def test_the_traversal_gives_the_recorded_keys(file: Path) -> None:
    facts = json.loads(file.read_text())
    found = original_keys.shapes_of(facts["config"])
    assert list(found.items()) == [(key, tuple(shape)) for key, (shape, _) in facts["keys"].items()]
    if file.stem in PUBLISHED:
        assert original_keys.shapes_of(shrunken(file.stem)) == found


def inferred(config: Config) -> tuple[Original, list[str]]:
    """Facts that can be inferred from keys and shapes alone."""
    messages: list[str] = []
    shapes = original_keys.shapes_of(config)
    buffers = original_keys.buffers(config["model"]["params"]) if "betas" in shapes else {}
    return infer_original(shapes, buffers.__getitem__, report=messages.append), messages


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_configuration_of_a_published_file_is_inferred(name: str) -> None:
    """At full size nothing is assumed; shrunken, only the heads are, and rightly."""
    for config, notes in ((full_size(name), 0), (shrunken(name), int(name in DIFFUSIONS))):
        found, messages = inferred(config)
        assert len(messages) == notes, messages
        given = parse_original(config)
        if given.diffusion is None or found.diffusion is None:
            assert found == given
            continue
        assert found.autoencoder == given.autoencoder
        if name != SIZE_NOT_IN_SHAPES:
            assert found.resolution in (given.resolution, given.diffusion.latent_size * given.autoencoder.factor)
            assert found.diffusion.latent_size == given.diffusion.latent_size
        for field in ("unet", "in_channels", "latent_channels", "token_dim", "classes", "schedule", "prediction"):
            assert getattr(found.diffusion, field) == pytest.approx(getattr(given.diffusion, field)), field
        for field in ("loss", "scale_factor", "averaged"):
            assert getattr(found.diffusion, field) == getattr(given.diffusion, field), field
        assert found.diffusion.conditioning.mode == given.diffusion.conditioning.mode
        assert found.diffusion.conditioning.kind == given.diffusion.conditioning.kind


# -- whole files ------------------------------------------------------------------------------------------------------


def tiny(name: str, **unet: Any) -> Config:
    """The published topology with a block a level and a shallow text transformer: quick to write and to call."""
    config = shrunken(name)
    p = config["model"]["params"]
    first = p["first_stage_config"]["params"] if "first_stage_config" in p else p
    first["ddconfig"]["num_res_blocks"] = 1
    if "n_embed" in first:
        first["n_embed"] = 64
    if "unet_config" in p:
        p["unet_config"]["params"] |= {"num_res_blocks": 1, **unet}
        if isinstance(p["cond_stage_config"], dict) and "n_layer" in p["cond_stage_config"].get("params", {}):
            p["cond_stage_config"]["params"]["n_layer"] = 2
    return config


def combined(name: str, unet: Config | None = None, **params: Any) -> Config:
    config = tiny(name, **(unet or {}))
    config["model"]["params"] |= copy.deepcopy(params)
    return config


TOKENS = {"in_channels": 6, "use_spatial_transformer": True, "transformer_depth": 2, "context_dim": 64}
FILES: dict[str, tuple[Config, dict[str, Callable[[int, int, int], Any]]]] = {
    "lsun_churches256": (tiny("lsun_churches256"), {}),
    "cin256-v2": (tiny("cin256-v2"), {"label": lambda n, h, w: torch.arange(n) + 7}),
    "layout2img-openimages256": (
        tiny("layout2img-openimages256"),
        {"layout_tokens": lambda n, h, w: torch.arange(92 * n).reshape(n, 92)},
    ),
    "inpainting_big": (
        tiny("inpainting_big"),
        {
            "masked_latent": lambda n, h, w: torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(1)),
            "mask": lambda n, h, w: torch.ones(n, 1, h, w),
        },
    ),
    "rdm768x768": (
        tiny("rdm768x768"),
        {"embeddings": lambda n, h, w: torch.randn(n, 5, 96, generator=torch.Generator().manual_seed(2))},
    ),
    "hybrid": (
        combined("ffhq256", TOKENS, conditioning_key="hybrid", cond_stage_config=IDENTITY, cond_stage_key="image"),
        {
            "concat": lambda n, h, w: torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(3)),
            "embeddings": lambda n, h, w: torch.randn(n, 4, 64, generator=torch.Generator().manual_seed(4)),
        },
    ),
    "adm": (
        combined("ffhq256", {"num_classes": 9}, conditioning_key="adm", cond_stage_config=IDENTITY),
        {"label": lambda n, h, w: torch.arange(n) + 2},
    ),
    "options": (
        combined(
            "ffhq256",
            {"conv_resample": False, "use_new_attention_order": True, "use_scale_shift_norm": True},
            beta_schedule="cosine",
            parameterization="x0",
            learn_logvar=True,
        ),
        {},
    ),
}  # fmt: skip
HEADS = {"lsun_churches256": 8, "cin256-v2": 1, "inpainting_big": 8}
SCALES = {"lsun_churches256": 0.2271, "rdm768x768": 0.22765929}


@pytest.fixture(params=FILES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, Tensor]]:
    name = request.param
    state = original_keys.state_dict(FILES[name][0])
    torch.save({"epoch": 7, "global_step": 123456, "state_dict": state}, tmp_path / "x.ckpt")
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(FILES[name][0], sort_keys=False))
    return name, tmp_path / "x.ckpt", state


def test_a_file_goes_in_samples_and_comes_out_the_same(written: tuple[str, Path, dict[str, Tensor]]) -> None:
    name, path, state = written
    result = import_original(path, path.parent / "model", config=path.with_name("given.yaml"))
    assert not any("no known use" in note or "differs from" in note for note in result.notes), result.notes
    model = sfumato.load(result.folder)
    assert model.second is not None
    assert model.scaling.scale.tolist() == pytest.approx([SCALES.get(name, 1.0)] * model.autoencoder.latent_channels)
    if name in HEADS:
        assert model.second.config.denoiser.heads == HEADS[name]
    averaged(state, model)
    sampled(model, FILES[name][1])
    back = open_checkpoint(export_original(result.folder, path.with_name("back.ckpt")).checkpoint)
    assert list(back.tensors) == list(state)
    for key, value in state.items():
        assert torch.equal(back.tensors[key].load(), value), key


@pytest.mark.parametrize("name", ["hybrid", "options"])
def test_a_topology_that_was_never_published_asks_for_its_configuration(name: str) -> None:
    with pytest.raises(UserError, match="attention heads: give its original configuration with --config"):
        inferred(FILES[name][0])


def averaged(state: dict[str, Tensor], model: LatentDiffusion) -> None:
    """The U-Net's weights are the averaged ones where the file has any."""
    assert model.second is not None
    for key, value in model.second.denoiser.state_dict().items():
        twin = "model_ema.diffusion_model" + key.replace(".", "")
        assert torch.equal(value, state[twin] if twin in state else state[f"model.diffusion_model.{key}"]), key


def sampled(model: LatentDiffusion, fields: dict[str, Callable[[int, int, int], Any]]) -> None:
    """Two steps with the condition of this model, guided where it can be; `sample_tensor` gives the same images."""
    second = model.second
    assert second is not None
    side = 2 ** (len(second.config.denoiser.channel_multipliers) - 1)
    shape = (model.autoencoder.latent_channels, side, 2 * side)
    given, null = Condition(), None
    with torch.no_grad():
        if second.conditioner is not None:
            given = second.conditioner({field: make(2, *shape[1:]) for field, make in fields.items()})
            null = second.conditioner.null(2, shape[1:]) if second.config.condition_dropout > 0 else None
        grid = build_grid(GridConfig(kind="leading"), second.schedule, 2)
        runs = []
        for scale in (1.0, 3.0):
            guide = guided(network_of(model), given, null, Guidance(scale))
            noise = SampleNoise([0, 1])
            with torch.no_grad():
                x = noise((2, *shape))
                runs.append(sample(DDIM(), second.schedule, guide, x, grid, noise))
        images = decode(model.autoencoder, model.scaling, runs[1])
    assert bool(torch.isfinite(images).all())
    assert (null is not None) == (not torch.equal(*runs))
    size = (model.autoencoder.factor * side, 2 * model.autoencoder.factor * side)
    ready = given if second.conditioner is not None else None
    by_the_model = model.sample_tensor(condition=ready, count=2, seed=0, steps=2, sampler="ddim", size=size)
    torch.testing.assert_close(by_the_model, images, rtol=1e-4, atol=1e-4)


def test_a_null_condition_of_fewer_tokens_can_share_a_batch() -> None:
    """Zeros attended once or five times are the same; so are no tokens beyond a mask."""
    generator = torch.Generator().manual_seed(0)
    given = Condition(tokens=torch.randn(2, 5, 8, generator=generator))
    null = Condition(tokens=torch.randn(2, 1, 8, generator=generator))
    both = stack([null, given])
    assert both.tokens is not None
    assert both.mask is not None
    assert both.tokens.shape == (4, 5, 8)
    assert both.mask.sum(1).tolist() == [1, 1, 5, 5]
    assert torch.equal(both.tokens[:2, :1], null.tokens)
    assert stack([given, given]).mask is None
