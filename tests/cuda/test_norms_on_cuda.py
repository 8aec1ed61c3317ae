"""Group norm in Triton against float64, where there is a Triton that works."""

import pytest
import torch
import torch.nn.functional as F

from sfumato.engine import groupnorm

SHAPES = [(2, 64, 5, 7, 32), (3, 320, 16, 12, 32), (1, 2560, 4, 4, 32), (1, 96, 33, 40, 24), (2, 128, 1, 1, 32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_the_kernel_is_group_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    B, C, H, W, groups = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(B, C, H, W, generator=g) + 10 * torch.randn(1, C, 1, 1, generator=g)
    x = x.cuda().to(dtype).contiguous(memory_format=torch.channels_last)
    if groupnorm.gpu_kernel(x.device) is None:
        pytest.skip("Triton is missing or does not compile here")
    assert groupnorm.usable_on_gpu(x, groups)
    weight, bias = (torch.randn(C, generator=g).cuda() for _ in range(2))
    add, scale, shift = (torch.randn(B, C, generator=g).cuda() for _ in range(3))
    for silu in (False, True):
        for added in (None, add):
            for modulation in (None, (scale, shift)):
                found = groupnorm.group_norm(
                    x, groups, weight, bias, 1e-5, silu=silu, add=added, scale_shift=modulation
                )
                y = x.double() if added is None else x.double() + added.double()[:, :, None, None]
                y = F.group_norm(y, groups, weight.double(), bias.double(), 1e-5)
                if modulation is not None:
                    y = y * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
                y = F.silu(y) if silu else y
                assert found.dtype == dtype
                assert found.is_contiguous(memory_format=torch.channels_last)
                worst = ((found.double() - y).abs().max() / y.abs().max()).item()
                assert worst < (1e-5 if dtype == torch.float32 else 1e-2), (silu, added is None, modulation is None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_its_gradients_are_those_of_group_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    B, C, H, W, groups = shape
    g = torch.Generator().manual_seed(1)
    x = torch.randn(B, C, H, W, generator=g).cuda().to(dtype).contiguous(memory_format=torch.channels_last)
    if groupnorm.gpu_kernel(x.device) is None:
        pytest.skip("Triton is missing or does not compile here")
    others = [torch.randn(*size, generator=g).cuda() for size in ((C,), (C,), (B, C), (B, C), (B, C))]
    way = torch.randn(B, C, H, W, generator=g).cuda().to(dtype)
    for silu in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, *others)]
        exact = [t.double().clone().requires_grad_() for t in (x, *others)]
        h, weight, bias, add, scale, shift = leaves
        out = groupnorm.group_norm(h, groups, weight, bias, 1e-5, silu=silu, add=add, scale_shift=(scale, shift))
        h, weight, bias, add, scale, shift = exact
        y = F.group_norm(h + add[:, :, None, None], groups, weight, bias, 1e-5)
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        y = F.silu(y) if silu else y
        found, expected = (
            torch.autograd.grad(result, given, way.to(result)) for result, given in ((out, leaves), (y, exact))
        )
        for name, ours, theirs in zip(("x", "weight", "bias", "add", "scale", "shift"), found, expected, strict=True):
            worst = ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()
            assert worst < (2e-5 if dtype == torch.float32 else 1e-2), (name, silu)


def test_switched_off_it_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 32, 4, 4, device="cuda").contiguous(memory_format=torch.channels_last)
    assert not groupnorm.usable_on_gpu(x.contiguous(), 8), "the other memory order"
    monkeypatch.setenv("SFUMATO_NATIVE", "0")
    assert not groupnorm.usable_on_gpu(x, 8)
