"""The paper's models: every configuration builds at full size, and every key of the published files has its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from parity import full_size, needs_parity
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.table import build_conditioner
from sfumato.config import parse, read_source, zoo_names
from sfumato.denoiser.table import build_denoiser
from sfumato.errors import UserError
from sfumato.interop.conditioners import map_conditioner
from sfumato.interop.infer import infer_original
from sfumato.interop.original_yaml import Original, parse_original
from sfumato.interop.placement import ema_key, place
from sfumato.interop.published import DIFFUSIONS, FIRST_STAGES, PUBLISHED
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun

FULL_SIZE = ["bsr_sr", "cin256", "ffhq256", "semantic_synthesis256", "text2img256", "kl-f8", "kl-f32", "vq-f4", "vq-f8"]
OURS = {"bsr_sr": "bsr-sr", "semantic_synthesis256": "semantic-synthesis256"}
STEM_CHANNELS = {"imagenet-ldm-1": 3, "celebahq-ldm-1": 3}


def autoencoder_run(name: str) -> AutoencoderRun:
    raw = read_source(f"zoo:ldm/{name}")
    return parse({**raw, "data": {**raw["data"], "path": "/"}}, AutoencoderRun, name)


def diffusion_run(name: str) -> DiffusionRun:
    raw = read_source(f"zoo:ldm/{name}")
    return parse({**raw, "data": {**raw["data"], "path": "/"}}, DiffusionRun, name)


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def networks(name: str) -> tuple[Autoencoder | None, nn.Module, nn.Module | None]:
    """First stage, U-Net and conditioner of a zoo configuration on the meta device."""
    row = next(row for row in DIFFUSIONS if row.name == name)
    run = diffusion_run(name)
    with torch.device("meta"):
        first = None if row.first_stage is None else Autoencoder(autoencoder_run(row.first_stage).model)
        conditioner = run.conditioner
        if conditioner.kind == "text":
            conditioner = conditioner.model_copy(update={"tokenizer": "none"})
        built = build_conditioner(conditioner)
        spec = ConditionSpec() if built is None else built.spec
        channels = 3 if first is None else first.latent_channels
        return first, build_denoiser(run.denoiser, channels, spec), built


def test_the_table_and_the_files_agree() -> None:
    assert {f"ldm/{row.name}" for row in PUBLISHED} == {name for name in zoo_names() if name.startswith("ldm/")}
    published = [row for row in PUBLISHED if row.origin == "published"]
    assert len(published) == 23
    assert len(PUBLISHED) == 23 + 12 + 2


@pytest.mark.parametrize("row", FIRST_STAGES, ids=lambda row: row.name)
def test_first_stages_have_the_published_size(row: Any) -> None:
    run = autoencoder_run(row.name)
    with torch.device("meta"):
        model = Autoencoder(run.model)
    assert millions(model) == pytest.approx(row.parameters, abs=0.06)
    assert model.factor == row.factor
    kind = row.regulariser[:2].lower()
    assert run.model.bottleneck.kind == kind
    assert f"{model.latent_channels} channels" in row.regulariser
    assert run.loss.reduction == ("sum" if kind == "kl" else "mean")


@pytest.mark.parametrize("row", DIFFUSIONS, ids=lambda row: row.name)
def test_denoisers_have_the_published_size(row: Any) -> None:
    first, denoiser, _ = networks(row.name)
    assert millions(denoiser) == pytest.approx(row.parameters, abs=0.06)
    assert row.factor == (1 if first is None else first.factor)
    run = diffusion_run(row.name)
    assert run.schedule.kind == "scaled-linear"
    if row.scale not in (None, 1.0):
        assert row.name in ("txt2img-1p4B", "rdm768")


@pytest.mark.parametrize(
    ("name", "parameters"), [("text2img256", 166.6), ("txt2img-1p4B", 542.9), ("layout2img-openimages256", 54.7)]
)
def test_text_and_layout_transformers_have_the_published_size(name: str, parameters: float) -> None:
    """Without their unused output heads: 186.2, 582.0 and 58.9 million with them."""
    conditioner = networks(name)[2]
    assert conditioner is not None
    assert millions(conditioner) == pytest.approx(parameters, abs=0.06)


# -- the key lists of published files ---------------------------------------------------------------------------------


def published_shapes(facts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """All keys of a published file; its averaged weights are listed by their rule."""
    shapes = {key: tuple(shape) for key, shape in facts["state_dict"].items()}
    if facts["ema"]["present"]:
        averaged = {ema_key(k.removeprefix("model.")): s for k, s in shapes.items() if k.startswith("model.")}
        shapes |= averaged | {key: tuple(shape) for key, shape in facts["ema"]["scalars"].items()}
    assert len(shapes) == facts["num_keys"]
    return shapes


def parts_of(original: Original) -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, str]]:
    prefixes: dict[str, str] = {}
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"autoencoder": Autoencoder(original.autoencoder)}
        if original.diffusion is not None:
            from pydantic import TypeAdapter

            from sfumato.conditioning.table import ConditionerConfig

            mapped = map_conditioner(original.diffusion, None)
            conditioner = build_conditioner(TypeAdapter(ConditionerConfig).validate_python(mapped.config))
            spec = ConditionSpec() if conditioner is None else conditioner.spec
            modules["denoiser"] = build_denoiser(original.diffusion.unet, original.autoencoder.raw_channels, spec)
            if conditioner is not None:
                modules["conditioner"] = conditioner
            prefixes = mapped.prefixes
    return {name: {k: tuple(t.shape) for k, t in m.state_dict().items()} for name, m in modules.items()}, prefixes


@needs_parity
@pytest.mark.parametrize("name", FULL_SIZE)
@pytest.mark.parametrize("source", ["yaml", "shapes"])
def test_every_key_of_the_published_file_lands(name: str, source: str) -> None:
    facts = full_size(name)
    shapes = published_shapes(facts)
    if source == "yaml":
        original = parse_original({"model": facts["hparams"]})
    else:
        params = facts["hparams"]["params"]

        def load(key: str) -> torch.Tensor:
            assert key == "betas"
            ends = params["linear_start"] ** 0.5, params["linear_end"] ** 0.5
            return torch.linspace(*ends, 1000, dtype=torch.float64).square().float()

        messages: list[str] = []
        original = infer_original(shapes, load, report=messages.append)
        assert messages == [], "published models are known exactly"
    parts, prefixes = parts_of(original)
    placement = place(shapes, parts, prefixes, None, name)
    placed = {theirs for keys in placement.parts.values() for theirs in keys.values()}
    assert placed | set(placement.kept) == set(shapes)
    assert not placed & set(placement.kept)
    assert "unknown" not in placement.kept.values()
    if facts["ema"]["present"]:
        assert all(theirs.startswith("model_ema.") for theirs in placement.parts["denoiser"].values())
    live = place(shapes, parts, prefixes, "live", name)
    assert "unknown" not in live.kept.values()


@needs_parity
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_zoo_agrees_with_the_published_configuration(name: str) -> None:
    facts = full_size(name)
    original = parse_original({"model": facts["hparams"]})
    zoo = OURS.get(name, name)
    if original.diffusion is None:
        assert shape_of(autoencoder_run(zoo).model) == shape_of(original.autoencoder)
        return
    run = diffusion_run(zoo)
    assert run.denoiser.model_dump(exclude={"vector_projection"}) == original.diffusion.unet.model_dump(
        exclude={"vector_projection"}
    )
    assert original.diffusion.schedule.items() <= run.schedule.model_dump().items()
    assert run.objective.loss == original.diffusion.loss
    mapped = map_conditioner(original.diffusion, "bert-base-uncased")
    assert mapped.config.items() <= run.conditioner.model_dump().items()
    row = next(row for row in DIFFUSIONS if row.name == zoo)
    assert row.scale == original.diffusion.scale_factor
    assert row.first_stage is not None
    assert shape_of(autoencoder_run(row.first_stage).model) == shape_of(original.autoencoder)


def shape_of(config: AutoencoderConfig) -> dict[str, Any]:
    return {**config.model_dump(exclude={"embed_channels"}), "raw": config.raw_channels}


def test_keys_are_frozen() -> None:
    """A few names of each kind, so that a rename shows here and not at a user's checkpoint."""
    first, denoiser, conditioner = networks("text2img256")
    assert first is not None
    assert conditioner is not None
    expected = {
        first: [
            "encoder.down.1.downsample.conv.weight",
            "decoder.up.2.upsample.conv.bias",
            "quantize.embedding.weight",
        ],
        denoiser: ["input_blocks.1.0.in_layers.2.weight", "output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"],
        conditioner: ["transformer.attn_layers.layers.63.1.net.0.0.weight", "transformer.pos_emb.emb.weight"],
    }
    for module, keys in expected.items():
        assert set(keys) <= set(module.state_dict())


def test_an_unknown_zoo_name_is_a_sentence() -> None:
    with pytest.raises(UserError, match="did you mean 'ldm/kl-f8'"):
        read_source("zoo:ldm/klf8")


def test_the_zoo_is_shipped() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "zoo/**/*.yaml" in text
