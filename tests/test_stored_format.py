"""Models and runs that earlier versions wrote open as what they were."""

from pathlib import Path

import pytest
import torch
import yaml

import tiny
from sfumato import load
from sfumato.config import load_config
from sfumato.diffusion.schedule import LinearConfig, ScaledLinearConfig
from sfumato.errors import UserError
from sfumato.stored_format import FORMAT, upgraded
from sfumato.training.diffusion_run import DiffusionRun


@pytest.mark.parametrize(("before", "config"), [("linear", ScaledLinearConfig), ("sqrt-linear", LinearConfig)])
def test_a_model_of_format_1_means_the_schedule_that_it_meant(tmp_path: Path, before: str, config: type) -> None:
    made = tiny.model(f"diffusion.schedule={{kind: {config().kind}}}")
    made.save(tmp_path / "model")
    wanted = load(tmp_path / "model").sample_tensor(seed=3, steps=2)  # loaded, too: rounding may depend on alignment
    file = tmp_path / "model" / "config.yaml"
    text = file.read_text()
    raw = yaml.safe_load(text)
    assert raw["format"] == FORMAT == 2
    old = {**raw, "format": 1, "inputs": raw["conditioning_metadata"]}
    del old["conditioning_metadata"]
    old["diffusion"]["schedule"]["kind"] = before
    checksums = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
    file.write_text(checksums + yaml.safe_dump(old))
    opened = load(tmp_path / "model")
    assert opened.second is not None
    assert opened.second.config.schedule == config()
    assert opened.digest == made.digest
    assert torch.equal(opened.sample_tensor(seed=3, steps=2), wanted)


def test_a_run_without_a_format_is_of_format_1_and_a_users_file_is_not(tmp_path: Path) -> None:
    raw = {"denoiser": {}, "schedule": {"kind": "linear"}, "data": {"kind": "toy"}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert load_config(str(file), [], DiffusionRun).schedule == LinearConfig()
    (tmp_path / "states").mkdir()
    assert load_config(str(file), [], DiffusionRun).schedule == ScaledLinearConfig()
    file.write_text(yaml.safe_dump({"format": FORMAT, **raw}))
    assert load_config(str(file), [], DiffusionRun).schedule == LinearConfig()


@pytest.mark.parametrize("found", [3, 0, "two", True, None])
def test_an_unknown_format_is_refused(found: object) -> None:
    with pytest.raises(UserError, match=r"has the format .* this version reads 1 and 2"):
        upgraded({"format": found}, "config 'x'")
