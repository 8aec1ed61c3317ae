"""Checkpoints and configurations that lie or are damaged: one sentence each, and nothing half-written."""

import re
from pathlib import Path
from typing import Any

import original_keys
import pytest
import torch
import yaml
from published_configs import shrunken
from torch import Tensor

from sfumato.errors import UserError
from sfumato.interop.convert import describe, import_model

Config = dict[str, Any]


def small() -> Config:
    """The smallest topology that has everything."""
    config = shrunken("cin256")
    p = config["model"]["params"]
    p["unet_config"]["params"] |= {"num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}
    p["first_stage_config"]["params"]["ddconfig"] |= {"num_res_blocks": 1, "ch_mult": [1, 1], "attn_resolutions": []}
    p["first_stage_config"]["params"]["n_embed"] = 16
    p["cond_stage_config"]["params"]["n_classes"] = 5
    p["use_ema"] = False
    return config


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return original_keys.state_dict(small())


def refused(folder: Path, state: dict[str, Tensor], config: Config | None) -> str:
    """The sentence about a file of these weights, imported with this configuration or without one."""
    torch.save({"state_dict": state}, folder / "x.ckpt")
    given = None
    if config is not None:
        given = folder / "given.yaml"
        given.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError) as caught:
        import_model(folder / "x.ckpt", folder / "out", config=given)
    assert sorted(path.name for path in folder.iterdir()) == sorted({"x.ckpt"} | ({"given.yaml"} if given else set()))
    text = str(caught.value)
    assert "\n" not in text
    return text


BIAS = "model.diffusion_model.out.2.bias"
TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "flat table": ({"cond_stage_model.embedding.weight": torch.ones(5)}, "cond_stage_model.embedding.weight|no known"),
    "whole numbers": ({BIAS: torch.ones(4, dtype=torch.int64)}, f"the key '{BIAS}' holds int64 numbers"),
    "wrong width": ({BIAS: torch.ones(7)}, rf"the key '{BIAS}' has shape \(7,\), its configuration requires \(4,\)"),
    "no scale": ({"scale_factor": torch.zeros(())}, "the scale factor is 0, it must be positive"),
    "two scales": ({"scale_factor": torch.ones(2)}, r"'scale_factor' has shape \(2,\), it should be \(\)"),
    "endless scale": ({"scale_factor": torch.tensor(torch.inf)}, "the scale factor is inf"),
    "square betas": ({"betas": torch.ones(4, 4)}, r"'betas' has shape \(4, 4\), it should be \(steps,\)"),
    "other betas": ({"betas": 0.5 + 0.4 * torch.arange(50.0).sin()}, "50 betas from .* follow no known schedule"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_named(case: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    change, message = TENSORS[case]
    assert re.search(message, refused(tmp_path, {**state, **change}, small()))


UNSEEN: dict[str, tuple[dict[str, Tensor], str]] = {
    "flat table": ({"cond_stage_model.embedding.weight": torch.ones(5)}, "no known network"),
    "no channels": ({"first_stage_model.encoder.conv_in.weight": torch.ones(0, 3, 3, 3)}, "no known network"),
    "odd width": ({"model.diffusion_model.time_embed.0.weight": torch.ones(4, 30)}, "is not a published model"),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_shapes_that_make_no_network_are_refused_without_a_configuration(
    case: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    change, message = UNSEEN[case]
    assert re.search(message, refused(tmp_path, {**state, **change}, None))


def _set(path: str, value: Any) -> Config:
    config = small()
    node = config["model"]["params"]
    *way, last = path.split("/")
    for key in way:
        node = node[key]
    node[last] = value
    return config


UNET, FIRST, STAGE = "unet_config/params", "first_stage_config/params", "cond_stage_config/params"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_set(f"{UNET}/channel_mult", 4), "given.yaml' has a value of the wrong kind"),
        (
            _set(f"{FIRST}/ddconfig/attn_type", "none"),
            "keys of networks that its configuration does not have, the first",
        ),
        (_set(f"{UNET}/model_channels", "wide"), "given.yaml': channels"),
        (_set(f"{UNET}/num_head_channels", 7), "head_channels 7 does not divide"),
        (_set(f"{FIRST}/n_embed", "many"), "given.yaml' has a value of the wrong kind"),
        (_set(f"{FIRST}/ddconfig", [1]), "ddconfig must be a mapping"),
        (_set("scale_factor", "large"), "given.yaml' has a value of the wrong kind"),
        (_set("scale_factor", -1.0), "the scale factor is -1, it must be positive"),
        (_set("timesteps", None), "given.yaml' has a value of the wrong kind"),
        (_set("v_posterior", 0.5), "v_posterior = 0.5 has no counterpart"),
        (_set(STAGE, {"n_classes": 5}), "cond_stage_config.params lacks the parameter 'embed_dim'"),
        (_set(f"{STAGE}/embed_dim", "wide"), "cond_stage_config.params has a value of the wrong kind"),
        ({"model": ["a"]}, "model has no target"),
        ({"model": {"target": 3}}, "model has no target"),
    ],
)
def test_impossible_configurations_are_refused(
    config: Config, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert re.search(message, refused(tmp_path, state, config))


def test_half_a_file_never_becomes_a_model(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state}, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    for cut in (1, 6, 11):
        part = tmp_path / "part.ckpt"
        part.write_bytes(content[: len(content) * cut // 12])
        for act in (describe, lambda path: import_model(path, tmp_path / "out")):
            with pytest.raises(UserError, match=r"half a download|damaged|cut off|not a checkpoint"):
                act(part)
    assert not (tmp_path / "out").exists()


def test_nothing_in_use_is_replaced_unasked(state: dict[str, Tensor], tmp_path: Path) -> None:
    path, other = tmp_path / "x.ckpt", tmp_path / "images"
    torch.save({"state_dict": state}, path)
    other.mkdir()
    (other / "cat.png").touch()
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(small()))
    with pytest.raises(UserError, match=r"is in use, it holds 'cat\.png'"):
        import_model(path, other, tmp_path / "given.yaml")
    with pytest.raises(UserError, match="is a file: give a folder"):
        import_model(path, other / "cat.png", tmp_path / "given.yaml")
    import_model(path, tmp_path / "out", tmp_path / "given.yaml")
    with pytest.raises(UserError, match="give a new folder, or --overwrite"):
        import_model(path, tmp_path / "out", tmp_path / "given.yaml")
    import_model(path, tmp_path / "out", tmp_path / "given.yaml", overwrite=True)
    assert (other / "cat.png").exists()
