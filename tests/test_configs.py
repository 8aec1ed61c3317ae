"""Every shipped configuration parses strictly and builds, on the meta device; a slip of the pen is named."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel

import sfumato
from sfumato.autoencoder.discriminator import PatchDiscriminator
from sfumato.autoencoder.model import Autoencoder
from sfumato.baselines.network import CodeTransformer
from sfumato.cli.run_configuration import with_data, with_overrides
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.metadata import ConditioningMetadata, LayoutInput, MapInput
from sfumato.conditioning.table import build_conditioner, text_config
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.config import apply_overrides, parse, read_source, to_yaml, zoo_names
from sfumato.data.folder_config import FolderConfig
from sfumato.denoiser.classifier import NoisyClassifier
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.objective import check_objective
from sfumato.diffusion.schedule import build_schedule
from sfumato.errors import UserError
from sfumato.model import ModelConfig, build
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.classifier import ClassifierRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.joint_run import JointRun, first_stage, second_stage
from sfumato.training.second_stage import fitted
from sfumato.training.transformer import TransformerRun

ZOO = Path(sfumato.__file__).parent / "zoo"
FILES = sorted(ZOO.rglob("*.yaml"))
LATENT_CHANNELS = 4
"""Of the autoencoder that a second stage is tried on: a YAML of stage 2 takes whatever it is given."""


def schema_of(raw: dict[str, Any]) -> type[BaseModel]:
    """By what the file speaks of."""
    if "coupling" in raw:
        return JointRun
    if "denoiser" in raw:
        return DiffusionRun
    if "transformer" in raw:
        return TransformerRun
    if "classifier" in raw:
        return ClassifierRun
    return AutoencoderRun if "model" in raw else ModelConfig


def shipped(file: Path) -> BaseModel:
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    schema = schema_of(raw)
    if schema is not ModelConfig:
        folder = raw.get("data", {}).get("kind", "folder") == "folder"
        alone = schema in (AutoencoderRun, JointRun)
        raw = with_data(raw, Path("a/folder") if folder else None, None if alone else (64, 64))
    return parse(raw, schema, str(file))


def ids(file: Path) -> str:
    return str(file.relative_to(ZOO))


def test_a_toy_configuration_reads_a_folder_with_the_given_settings() -> None:
    raw = apply_overrides(read_source("zoo:toy/text"), ["data.flip=true", "data.background=black", "data.size=32"])
    run = parse(with_data(raw, Path("a/folder")), DiffusionRun, "zoo:toy/text")
    assert run.data == FolderConfig(path=Path("a/folder"), size=32, flip=True, background="black")
    with pytest.raises(UserError, match=r"data.*flop"):
        parse(with_data(apply_overrides(raw, ["data.flop=true"]), Path("a/folder")), DiffusionRun, "zoo:toy/text")


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_shipped_configuration_is_made_unconditional_by_one_setting(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = schema_of(read_source(str(file)))
    if schema not in (DiffusionRun, JointRun, TransformerRun):
        pytest.skip("no training with a conditioner")
    raw = with_overrides(str(file), ["conditioner.kind=none"], schema)
    assert parse(with_data(raw, Path("a/folder")), schema, "x").conditioner.kind == "none"  # type: ignore[attr-defined]
    before = read_source(str(file)).get("conditioner", {"kind": "none"})
    assert all(f"conditioner.{key}" in capsys.readouterr().err for key in list(before)[1:2])


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_shipped_configuration_parses_and_builds(file: Path) -> None:
    config = shipped(file)
    with torch.device("meta"):
        if isinstance(config, AutoencoderRun):
            autoencoder = Autoencoder(config.model)
            adversarial = config.loss.adversarial
            PatchDiscriminator(config.model.image_channels, adversarial.channels, adversarial.layers, adversarial.norm)
            assert autoencoder.factor == config.model.factor
        elif isinstance(config, JointRun):
            assert Autoencoder(first_stage(config).model).latent_channels == config.model.raw_channels
            build_second(second_stage(config))
        elif isinstance(config, DiffusionRun):
            build_second(config)
        elif isinstance(config, TransformerRun):
            CodeTransformer(config.transformer, 64, (8, 8), ConditionSpec(token_dim=8))
        elif isinstance(config, ClassifierRun):
            NoisyClassifier(config.classifier, LATENT_CHANNELS, 10)
        else:
            assert isinstance(config, ModelConfig)
            build(config)


def build_second(config: DiffusionRun) -> None:
    spec = ConditionSpec()
    if config.conditioner.kind == "pretrained-text":
        spec = ConditionSpec(token_dim=8)  # its weights are not ours to ship
    else:
        # in the place of a tokenizer fitted on captions, or of one that is not ours to ship
        stands_in = fit_tokenizer(["a red apple"], 512) if text_config(config.conditioner) is not None else None
        conditioner = build_conditioner(fitted(config.conditioner, named_classes(config)), stands_in)
        spec = spec if conditioner is None else conditioner.spec
    build_denoiser(config.denoiser, LATENT_CHANNELS, spec)
    with torch.device("cpu"):
        check_objective(config.objective, build_schedule(config.schedule))


def named_classes(config: DiffusionRun) -> ConditioningMetadata:
    """In the place of a dataset's names, for conditioners that follow them."""
    maps, boxes = config.conditions.map, config.conditions.boxes
    colours = ((0, 0, 0), (255, 0, 0))
    return ConditioningMetadata(
        map=None if maps is None else MapInput(names=("a", "b"), palette=colours, void=maps.void),
        layout=None if boxes is None else LayoutInput(names=("a", "b")),
    )


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_what_a_run_writes_down_is_read_back_as_it_was(file: Path) -> None:
    config = shipped(file)
    assert parse(yaml.safe_load(to_yaml(config)), type(config), "written") == config


def keys(config: BaseModel, raw: dict[str, Any]) -> Iterator[tuple[list[str], str]]:
    """Every key that a file gives and its configuration knows, with the groups it stands in."""
    for name in raw:
        if name not in type(config).model_fields:
            continue
        yield [], name
        below = getattr(config, name)
        if isinstance(below, BaseModel) and isinstance(raw[name], dict):
            yield from (([name, *path], key) for path, key in keys(below, raw[name]))


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_misspelt_key_names_its_neighbour(file: Path) -> None:
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    config = shipped(file)
    written = yaml.safe_load(to_yaml(config))
    for path, name in keys(config, raw):
        if name == "kind" or len(name) < 4:
            continue
        spoilt = deepcopy(written)
        group = spoilt
        for part in path:
            group = group[part]
        group[name + "x"] = group.pop(name)
        with pytest.raises(UserError, match=f"unknown key '{'.'.join([*path, name + 'x'])}'; did you mean '{name}'"):
            parse(spoilt, type(config), "spoilt")


def test_the_zoo_lists_what_is_shipped() -> None:
    assert zoo_names() == sorted(str(file.relative_to(ZOO).with_suffix("")) for file in FILES)
    assert FILES, "the zoo is empty"
    for name in zoo_names():
        assert read_source(f"zoo:{name}")


def test_sizes_that_do_not_fit_are_refused_before_data_is_opened() -> None:
    raw = {"model": {"channel_multipliers": [1, 2, 4]}, "data": {"kind": "folder", "path": "x", "size": 66}}
    with pytest.raises(UserError, match=r"data.size 66x66 is not a multiple of f = 4.*change either"):
        parse(raw, AutoencoderRun, "x")
    raw = {
        "denoiser": {},
        "schedule": {"kind": "scaled-linear"},
        "data": {"kind": "toy"},
        "train": {"condition_dropout": 0.3},
    }
    with pytest.raises(UserError, match=r"condition_dropout is set but conditioner.kind is none"):
        parse(raw, DiffusionRun, "x")
