"""The original's patch-wise mode: weights by hand, crops that give the whole back, and its recorded numbers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import sfumato
from parity import golden, needs_parity, relative_error
from sfumato.conditioning.condition import Condition
from sfumato.errors import UserError
from sfumato.interop.original import Imported
from sfumato.interop.patchwise import border_weights, patchwise


def test_weights_are_distances_to_the_nearest_border() -> None:
    expected = torch.tensor([[1.0, 1, 1, 1, 1], [1, 25, 50, 25, 1], [1, 1, 1, 1, 1]]) / 100
    torch.testing.assert_close(border_weights(3, 5), expected)
    torch.testing.assert_close(border_weights(3, 5, (0.0, 0.3))[1], torch.tensor([0.0, 0.25, 0.3, 0.25, 0.0]))
    assert border_weights(1, 1).item() == pytest.approx(0.01)


@pytest.mark.parametrize(("crop", "stride"), [((8, 12), (4, 3)), (8, 8), ((64, 64), 1), ((24, 6), (1, 6))])
def test_crops_of_a_local_function_give_the_whole_back(
    crop: tuple[int, int] | int, stride: tuple[int, int] | int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 24, 36, generator=generator), torch.randn(2, 1, 24, 36, generator=generator)
    if isinstance(crop, int):
        x, y = x[..., :32], y[..., :32]
    larger = patchwise(lambda a, b: F.interpolate(a * b, scale_factor=2.0), [x, y], crop, stride, scale=2)
    torch.testing.assert_close(larger, F.interpolate(x * y, scale_factor=2.0))
    crop = (crop, crop) if isinstance(crop, int) else crop
    if all(side % 2 == 0 for side in crop) and stride not in (1, (4, 3), (1, 6)):
        torch.testing.assert_close(
            patchwise(lambda a: F.avg_pool2d(a, 2), [x], crop, stride, 1 / 2), F.avg_pool2d(x, 2)
        )


def test_crops_that_leave_a_rest_are_refused() -> None:
    with pytest.raises(UserError, match="crops of 8 every 6 do not cover 24 positions"):
        patchwise(lambda a: a, [torch.zeros(1, 1, 24, 24)], 8, 6)
    with pytest.raises(UserError, match="crops of 8 every 9 do not cover"):
        patchwise(lambda a: a, [torch.zeros(1, 1, 26, 26)], 8, 9)


CROP, STRIDE = 16, 8
"""Of the recording, in latent positions; the encoder's are f times as large."""


@needs_parity
def test_recorded_crops(imported: Callable[..., Imported]) -> None:
    g, model = golden("bsr_sr"), sfumato.load(imported("bsr_sr", "live").folder)
    first, second = model.autoencoder, model.second
    assert second is not None
    with torch.no_grad():
        decoded = patchwise(partial(first.decode, quantize=False), [g["in/z_split"][:1]], CROP, STRIDE, 4)
        encoded = patchwise(lambda x: first.encode(x).moments, [g["in/x_split"]], 4 * CROP, 4 * STRIDE, 1 / 4)
        eps = patchwise(
            lambda z, c: second.denoiser(z, g["in/t"], Condition(spatial=c)),
            [g["in/z_split"], g["in/c_split"]],
            CROP,
            STRIDE,
        )
    assert relative_error(decoded, g["split/decode"]) <= 1e-5
    assert relative_error(encoded, g["split/encode"]) <= 1e-5
    assert relative_error(eps, g["split/eps"]) <= 1e-5
