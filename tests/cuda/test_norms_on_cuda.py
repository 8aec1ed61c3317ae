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
            for steering in (None, (scale, shift)):
                found = groupnorm.group_norm(x, groups, weight, bias, 1e-5, silu=silu, add=added, scale_shift=steering)
                y = x.double() if added is None else x.double() + added.double()[:, :, None, None]
                y = F.group_norm(y, groups, weight.double(), bias.double(), 1e-5)
                if steering is not None:
                    y = y * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
                y = F.silu(y) if silu else y
                assert found.dtype == dtype
                assert found.is_contiguous(memory_format=torch.channels_last)
                worst = ((found.double() - y).abs().max() / y.abs().max()).item()
                assert worst < (1e-5 if dtype == torch.float32 else 1e-2), (silu, added is None, steering is None)


def test_gradients_and_switches_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 32, 4, 4, device="cuda").contiguous(memory_format=torch.channels_last)
    assert not groupnorm.usable_on_gpu(x, 8), "gradients are recorded here"
    monkeypatch.setenv("SFUMATO_NATIVE", "0")
    with torch.no_grad():
        assert not groupnorm.usable_on_gpu(x, 8)
