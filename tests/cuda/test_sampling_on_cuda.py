"""Images sampled on a GPU are those of the CPU: sampling, both stages, tiles, models that move, the command."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from command_line import Command
from sfumato.engine import tiles
from sfumato.engine.inference import RecordedUNet
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline.request import ImageGuidance, Projection
from sfumato.sampling.image_losses import Colour

KINDS = {"text": (), "class": (tiny.BY_CLASS,), "none": (tiny.UNCONDITIONAL,)}
CONDITIONS = {"text": {"prompt": tiny.TEXTS[:2]}, "class": {"label": [0, 1]}, "none": {"count": 2}}
GUIDED = {"guidance": [1.5, 3.0], "interval": (0.1, 0.9), "rescale": 0.3}


def sampled(model: LatentDiffusion, **options: object) -> Tensor:
    return model.sample_tensor(**{"steps": 4, "seed": 5, **options}).cpu()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    """Relative to the largest value."""
    assert found.shape == expected.shape
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst < tolerance, f"{worst:.1e}"


def pair(*overrides: str) -> tuple[LatentDiffusion, LatentDiffusion]:
    """The same model on the CPU and on the GPU."""
    return tiny.model(*overrides), tiny.model(*overrides).to("cuda")


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_image_of_the_cpu(kind: str, fast: bool) -> None:
    cpu, cuda = pair(*KINDS[kind])
    if fast:
        cuda.for_inference(torch.float32)
    for sampler in ("dpmpp-2m", "ddim", "ddpm"):
        options = {**CONDITIONS[kind], "sampler": sampler, **(GUIDED if kind != "none" else {})}
        expected = sampled(cpu, **options)
        close(sampled(cuda, **options), expected)
        assert (expected[0] - expected[1]).abs().max() > 0.05


def test_calls_are_recorded_and_read_what_is_given() -> None:
    cpu, cuda = pair()
    cuda.for_inference(torch.float32)
    assert cuda.second is not None
    denoiser = cuda.second.denoiser
    assert isinstance(denoiser, RecordedUNet)
    images = []
    for text in tiny.TEXTS:
        for n in (1, 2):
            options = {"prompt": [text] * n, "guidance": 3.0}
            images.append(sampled(cuda, **options)[:1])
            close(images[-1], sampled(cpu, **options)[:1])
    assert denoiser.recordings is not None
    assert len(denoiser.recordings) == 2, "one for each size of batch"
    assert (images[0] - images[2]).abs().max() > 0.01, "another text, another image"
    close(images[0], images[1])


@torch.no_grad()
def test_recorded_calls_are_the_plain_ones_at_all_sizes() -> None:
    cpu, cuda = pair()
    assert cpu.second is not None
    assert cuda.second is not None
    condition, _ = tiny.conditions(cpu, 3, tiny.TEXTS)
    there, _ = tiny.conditions(cuda, 3, tiny.TEXTS)
    cuda.for_inference(torch.float32)
    g = torch.Generator().manual_seed(2)
    for _ in range(3):
        for size in ((8, 12), (16, 8)):
            x, t = torch.randn(3, 3, *size, generator=g), torch.rand(3, generator=g) * 900
            found = cuda.second.denoiser(x.cuda(), t.cuda(), there).cpu()
            close(found, cpu.second.denoiser(x, t, condition))
    assert isinstance(cuda.second.denoiser, RecordedUNet)
    assert len(cuda.second.denoiser.recordings or ()) == 2
    twin = copy.deepcopy(cuda.second.denoiser)
    close(twin(x.cuda(), t.cuda(), there).cpu(), found, 1e-4)


def test_recording_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_GRAPHS", "0")
    cpu, cuda = pair(tiny.BY_CLASS)
    cuda.for_inference(torch.float32)
    close(sampled(cuda, label=[1]), sampled(cpu, label=[1]))
    assert cuda.second is not None
    assert cuda.second.denoiser.recordings is None


def test_bfloat16_is_near() -> None:
    cpu, cuda = pair()
    expected = sampled(cpu, prompt=tiny.TEXTS, guidance=2.0)
    cuda.for_inference(torch.bfloat16)
    close(sampled(cuda, prompt=tiny.TEXTS, guidance=2.0), expected, 0.08)
    with torch.autocast("cuda", torch.bfloat16):
        close(sampled(cuda, prompt=tiny.TEXTS, guidance=2.0), expected, 0.08)


def test_reuse_projection_and_autoguidance() -> None:
    cpu, cuda = pair()
    weaker = copy.deepcopy(cuda.second)
    assert weaker is not None
    other = LatentDiffusion(cuda.config, copy.deepcopy(cuda.autoencoder), copy.deepcopy(cuda.scaling), weaker)
    cuda.for_inference(torch.float32)
    for options in (
        {"reuse": 2},
        {"projection": Projection(momentum=-0.5, limit=5.0), "guidance": 3.0},
        {"window": 16, "size": (32, 24)},
    ):
        close(sampled(cuda, prompt=tiny.TEXTS, **options), sampled(cpu, prompt=tiny.TEXTS, **options))
    close(sampled(cuda, prompt=tiny.TEXTS, autoguide=other), sampled(cpu, prompt=tiny.TEXTS, autoguide=cpu))


def test_guidance_by_a_loss_of_the_image() -> None:
    cpu, cuda = pair(tiny.UNCONDITIONAL)
    red = ImageGuidance(Colour(torch.tensor([0.3, -0.3, -0.2])))
    close(sampled(cuda, count=2, image_guidance=red), sampled(cpu, count=2, image_guidance=red), 5e-3)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "packed"])
def test_the_first_stage_whole_and_in_bands(bottleneck: str, fast: bool) -> None:
    wide = ["autoencoder.channels=32", "autoencoder.attention_levels=[1]"]
    cpu, cuda = pair(*wide, *((tiny.VQ,) if bottleneck == "vq" else ()))
    if fast:
        cuda.for_inference(torch.float32)
    images = torch.rand(2, 3, 128, 96, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latents = cpu.encode(images)
    close(cuda.encode(images).cpu(), latents)
    decoded = cpu.decode(latents)
    close(cuda.decode(latents.cuda()).cpu(), decoded)
    memory = tiles.LEAST_MEMORY
    assert tiles.bytes_needed(cuda.autoencoder, (128, 96)) > memory
    raw = cuda.scaling.to_raw(latents.cuda())
    close(tiles.decode(cuda.autoencoder, raw, memory).cpu(), decoded)
    moments = tiles.encode(cuda.autoencoder, images.cuda(), memory)
    close(moments.cpu(), tiles.encode(cpu.autoencoder, images))


def test_a_model_saved_from_the_gpu_opens_on_the_cpu(tmp_path: Path) -> None:
    cpu, cuda = pair()
    cuda.save(tmp_path / "model")
    assert cuda.digest == cpu.digest
    close(sampled(load(tmp_path / "model"), prompt=tiny.TEXTS), sampled(cpu, prompt=tiny.TEXTS), 1e-6)
    close(sampled(load(tmp_path / "model", "cuda"), prompt=tiny.TEXTS), sampled(cpu, prompt=tiny.TEXTS))


def test_the_command_samples_the_same_on_both(tmp_path: Path, command: Command) -> None:
    tiny.model().save(tmp_path / "model")
    found = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        done = command(
            *("sample", tmp_path / "model", tiny.TEXTS[0], "--out", out, "-n", 2, "--steps", 4, "--batch", 1),
            *("--device", device, "--precision", "float32"),
        )
        assert done.code == 0, done.err
        found[device] = np.stack([np.array(Image.open(out / f"{i:04d}.png"), dtype=np.int64) for i in range(2)])
    assert np.abs(found["cuda"] - found["cpu"]).max() <= 1
    done = command("sample", tmp_path / "model", tiny.TEXTS[0], "--out", tmp_path / "auto", "-n", 1, "--steps", 2)
    assert done.code == 0, done.err
