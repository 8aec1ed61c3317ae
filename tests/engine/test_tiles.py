"""Bands of an image give the whole image's numbers, and hold less memory."""

import pytest
import torch
from torch import Tensor

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, VQConfig
from sfumato.engine import tiles
from sfumato.engine.inference import for_inference
from sfumato.errors import UserError

CONFIGS = {
    "kl": AutoencoderConfig(channels=32, channel_multipliers=(1, 2, 2), blocks_per_level=1, attention_levels=(2,)),
    "vq": AutoencoderConfig(
        channels=32, channel_multipliers=(1, 2), blocks_per_level=2, bottleneck=VQConfig(codes=32), attention="none"
    ),
    "linear": AutoencoderConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1, attention="linear"),
    "reflect": AutoencoderConfig(channels=32, channel_multipliers=(1, 2, 2), blocks_per_level=1, padding="reflect"),
}
SIZE = (88, 40)


def autoencoder(name: str, packed: bool) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(CONFIGS[name]).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return for_inference(made, torch.float32) if packed else made


def uneven(n: int, size: tuple[int, int]) -> Tensor:
    """Images whose statistics differ from band to band."""
    noise = torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(2)) * 0.2
    return noise + torch.linspace(-1, 1, size[0])[:, None]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_tiled_is_whole(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = autoencoder(name, packed)
    images = uneven(2, SIZE)
    moments = model.encode(images).moments
    latent = model.latent_from_moments(moments)
    decoded = model.decode(latent)
    bands = watched(monkeypatch)
    memory = tiles.LEAST_MEMORY
    assert tiles.bytes_needed(model, SIZE) > memory
    found = tiles.encode(model, images, memory)
    torch.testing.assert_close(found, moments, atol=1e-4, rtol=0)
    torch.testing.assert_close(tiles.decode(model, latent, memory), decoded, atol=1e-4, rtol=0)
    assert max(bands) > 3


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bands each pass took."""
    counts: list[int] = []
    parts = tiles._Bands._parts

    def counted(self: tiles._Bands, height: int, row_bytes: int) -> list[tuple[int, int]]:
        found = list(parts(self, height, row_bytes))
        counts.append(len(found))
        return found

    monkeypatch.setattr(tiles._Bands, "_parts", counted)
    return counts


def test_norms_of_tiles_alone_would_be_seen() -> None:
    """Why the comparison above is needed: the same bands, each normalised by itself, are far off."""
    model = autoencoder("kl", packed=False)
    latent = model.latent_from_moments(model.encode(uneven(1, SIZE)).moments)
    halves = torch.cat([model.decode(part) for part in latent.chunk(2, dim=2)], 2)
    assert (halves - model.decode(latent)).abs().max() > 0.05


def test_maps_beyond_the_bound_lie_in_a_file_of_any_type() -> None:
    made = tiles._Map(4, 6, 5, torch.bfloat16, torch.device("cpu")).allocate(limit=10)
    assert made.file is not None
    x = torch.randn(1, 4, 6, 5).bfloat16()
    made.write(0, x[:, :, :4])
    made.write(4, x[:, :, 4:])
    assert torch.equal(made.read(1, 6), x[:, :, 1:])
    norm = torch.nn.GroupNorm(2, 4, eps=1e-6)
    torch.testing.assert_close(made.normaliser(norm, silu=False)(x), norm(x.float()).bfloat16())
    made.write(0, 2 * x)
    torch.testing.assert_close(made.mean.float(), 2 * x.float().mean((0, 2, 3)))


def test_several_images_that_fit_alone_are_computed_one_by_one() -> None:
    model = autoencoder("linear", packed=False)
    images = uneven(3, (32, 48))
    one = tiles.bytes_needed(model, (32, 48))
    calls: list[int] = []
    encode = model.encode

    def seen(image: Tensor, noise: Tensor | None = None) -> object:
        calls.append(len(image))
        return encode(image, noise)

    model.encode = seen  # type: ignore[method-assign, assignment]
    tiles.encode(model, images, memory=max(tiles.LEAST_MEMORY, 2 * one + 1))
    assert sum(calls) == 3


def test_a_bound_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="memory is 5 bytes: give at least 1048576"):
        tiles.decode(autoencoder("linear", packed=False), torch.zeros(1, 4, 8, 8), memory=5)
