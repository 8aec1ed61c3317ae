"""Numbers that are not finite are an error that names the network, in every command, before a file is written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from command_line import Command
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.latents import NotFiniteError
from sfumato.pipeline.request import SampleRequest
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.previews import Samples

HUGE = 3e38
"""Finite, as the weights of a model that opens are, but no product with it is."""


def denoiser(model: LatentDiffusion) -> LatentDiffusion:
    assert model.second is not None
    model.second.denoiser.out[2].weight[:] = HUGE  # type: ignore[index,union-attr]
    return model


def decoder(model: LatentDiffusion) -> LatentDiffusion:
    model.autoencoder.decoder.conv_out.weight[:] = HUGE
    return model


def encoder(model: LatentDiffusion) -> LatentDiffusion:
    model.autoencoder.encoder.conv_out.weight[:] = HUGE
    return model


Damage = Callable[[LatentDiffusion], LatentDiffusion]
COMMANDS: dict[str, list[str]] = {
    "sample": ["sample", "MODEL", "a red apple", "-n", "1", "--steps", "2"],
    "edit": ["edit", "MODEL", "photo.png", "--out", "OUT", "a red apple", "--steps", "2"],
    "inpaint": ["inpaint", "MODEL", "photo.png", "mask.png", "--out", "OUT", "a red apple", "--steps", "2"],
    "outpaint": ["outpaint", "MODEL", "photo.png", "--extend", "4,0,0,0", "--out", "OUT", "--steps", "2"],
    "interpolate": ["interpolate", "MODEL", "a", "b", "--frames", "2", "--steps", "2"],
    "invert": ["invert", "MODEL", "photo.png", "--steps", "2"],
    "reconstruct": ["reconstruct", "MODEL", "photo.png"],
}
CASES: list[tuple[str, Damage]] = [
    *((name, denoiser) for name in ("sample", "edit", "inpaint", "outpaint", "interpolate", "invert")),
    *((name, decoder) for name in ("sample", "inpaint", "reconstruct")),
    ("edit", encoder),
    ("reconstruct", encoder),
]


@pytest.mark.parametrize(("name", "damage"), CASES, ids=[f"{name}-{damage.__name__}" for name, damage in CASES])
def test_a_command_names_the_part_that_is_not_finite(
    command: Command, tmp_path: Path, name: str, damage: Damage
) -> None:
    damage(tiny.model()).save(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[4:12, 8:16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    places = {"MODEL": tmp_path / "model", "OUT": tmp_path / "out"}
    places |= {file: tmp_path / file for file in ("photo.png", "mask.png")}
    words = [places.get(word, word) for word in COMMANDS[name]]
    given = words if "OUT" in COMMANDS[name] else [*words, "--out", tmp_path / "out"]
    done = command(*given, *([] if name == "reconstruct" else ["--precision", "float32"]))
    assert done.code == 2, done.err
    assert f"the {damage.__name__} of this model gave" in done.err
    assert "Traceback" not in done.err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_error_counts_what_is_not_finite() -> None:
    model = tiny.model()
    assert model.second is not None
    network = model.second.denoiser

    def half(module: torch.nn.Module, given: object, out: torch.Tensor) -> torch.Tensor:
        spoilt = out.clone()
        spoilt[:1, 0, 0, 0] = float("nan")
        return spoilt

    network.register_forward_hook(half)
    request = SampleRequest(prompt="a", count=3, steps=2, sampler="ddim", guidance=1.0)
    with pytest.raises(NotFiniteError, match=r"the denoiser of this model gave latents .* \(1 of 3 have NaN"):
        pipeline.sample(model, request)
    assert issubclass(NotFiniteError, UserError)


def test_a_preview_is_left_out_and_training_goes_on(tmp_path: Path) -> None:
    model = denoiser(tiny.model())
    assert model.second is not None
    networks = ConditionalDenoiser(model.second.denoiser, model.second.conditioner)
    preview = Samples(model, tmp_path, ["a red apple"], None, 1, "float32")
    with pytest.warns(UserWarning, match="no preview of step 7: the denoiser of this model gave latents"):
        assert preview(networks, 7) == {}
    assert not list(tmp_path.iterdir())
