"""Native kernels against torch's own operations in float64, values and gradients."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.engine import native
from sfumato.engine.attention import attend, attend_packed
from sfumato.engine.groupnorm import group_norm
from sfumato.engine.tokens import geglu, layer_norm
from sfumato.engine.upsample import upsample_conv
from sfumato.nn.attention import attend as plain_attend

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.describe())
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bf16"])


def close(actual: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    assert actual is not None
    assert expected is not None
    scale = expected.double().abs().max().clamp_min(1e-3)
    assert ((actual.double() - expected.double()).abs().max() / scale).item() <= TOLERANCE[dtype]


def leaf(values: Tensor) -> Tensor:
    return values.detach().clone(memory_format=torch.preserve_format).requires_grad_()


@needs_kernels
@DTYPES
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("adapts", [False, True])
def test_group_norm_equals_its_formula(dtype: torch.dtype, silu: bool, adds: bool, adapts: bool) -> None:
    g = torch.Generator().manual_seed(1)
    x = (3 + 2 * torch.randn(3, 64, 7, 5, generator=g)).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 64, generator=g).unbind()
    add, scale, shift = torch.randn(3, 3, 64, generator=g).unbind()
    dy = torch.randn(3, 64, 7, 5, generator=g).to(dtype)

    fast = [leaf(t) for t in (x, weight, bias, add, scale, shift)]
    X, w, b, a, s, t = fast
    y = group_norm(X, 32, w, b, 1e-5, silu=silu, add=a if adds else None, scale_shift=(s, t) if adapts else None)
    y.backward(dy)
    assert type(y.grad_fn).__name__ == "_GroupNormBackward"
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)

    slow = [leaf(t.double()) for t in (x, weight, bias, add, scale, shift)]
    X, w, b, a, s, t = slow
    z = F.group_norm(X + a[:, :, None, None] if adds else X, 32, w, b, 1e-5)
    z = z * (1 + s[:, :, None, None]) + t[:, :, None, None] if adapts else z
    z = F.silu(z) if silu else z
    z.backward(dy.double())
    close(y, z, dtype)
    for ours, theirs in zip(fast, slow, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            close(ours.grad, theirs.grad, dtype)


@needs_kernels
def test_group_norm_statistics_survive_a_large_mean() -> None:
    x = (1000 + torch.randn(1, 32, 8, 8)).contiguous(memory_format=torch.channels_last)
    y = group_norm(x, 32, torch.ones(32), torch.zeros(32), 1e-5)
    expected = F.group_norm(x.double(), 32, eps=1e-5)
    assert (y - expected).abs().max().item() < 2e-3  # the float32 of x itself is only good to 6e-5 of its deviation


SHAPES = [  # batch, heads, queries, keys, head width, masked
    (2, 3, 16, 16, 32, False),
    (1, 2, 130, 130, 40, False),
    (2, 2, 65, 77, 64, True),
    (1, 1, 100, 33, 128, True),
    (2, 1, 1, 300, 8, True),
    (3, 2, 7, 1, 16, False),
]


@needs_kernels
@DTYPES
@pytest.mark.parametrize(("B", "H", "T", "S", "D", "masked"), SHAPES)
def test_attention_equals_its_formula(dtype: torch.dtype, B: int, H: int, T: int, S: int, D: int, masked: bool) -> None:
    g = torch.Generator().manual_seed(2)
    q = torch.randn(B, T, H, D, generator=g).to(dtype).transpose(1, 2)
    k, v = (torch.randn(B, H, S, D, generator=g).to(dtype) for _ in range(2))
    mask = None
    if masked:
        mask = torch.rand(B, S, generator=g) < 0.6
        mask[:, 0] = True
    dy = torch.randn(B, H, T, D, generator=g).to(dtype)
    fast, slow = [leaf(t) for t in (q, k, v)], [leaf(t.double()) for t in (q, k, v)]
    y, z = attend(*fast, mask), plain_attend(*slow, mask)
    assert type(y.grad_fn).__name__ == "_AttentionBackward"
    y.backward(dy)
    z.backward(dy.double())
    close(y, z, dtype)
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        if S > 1:
            close(ours.grad, theirs.grad, dtype)
        else:  # one key: the weights are 1 and the gradients of q and k vanish
            assert (ours.grad - theirs.grad).abs().max().item() < 0.1 if dtype == torch.bfloat16 else 1e-5


@needs_kernels
def test_attention_without_any_allowed_key_is_zero() -> None:
    q, k, v = (leaf(torch.randn(2, 1, 3, 16)) for _ in range(3))
    y = attend(q, k, v, torch.tensor([[True] * 3, [False] * 3]))
    y.sum().backward()
    assert y[0].abs().max() > 0
    assert y[1].abs().max() == 0
    for t in (q, k, v):
        assert t.grad is not None
        assert torch.isfinite(t.grad).all()
        assert t.grad[1].abs().max() < 1e-30


@needs_kernels
def test_a_nan_is_not_hidden() -> None:
    q, k, v = (torch.randn(1, 1, 20, 16) for _ in range(3))
    k[0, 0, 3, 5] = float("nan")
    assert attend(q, k, v).isnan().all()
    x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 1] = float("nan")
    assert group_norm(x, 32, torch.ones(32), torch.zeros(32), 1e-5, silu=True)[0, 3].isnan().all()


@DTYPES
@pytest.mark.parametrize("head_first", [False, True])
def test_packed_attention_equals_split(dtype: torch.dtype, head_first: bool) -> None:
    B, T, H, D = 2, 19, 3, 16
    g = torch.Generator().manual_seed(6)
    packed = leaf(torch.randn(B, T, 3 * H * D, generator=g).to(dtype))
    exact = leaf(packed.double())
    dy = torch.randn(B, T, H * D, generator=g).to(dtype)
    y = attend_packed(packed, H, head_first=head_first)
    y.backward(dy)
    if head_first:
        q, k, v = exact.unflatten(2, (H, 3, D)).permute(3, 0, 2, 1, 4)
    else:
        q, k, v = exact.unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)
    z = plain_attend(q, k, v).transpose(1, 2).reshape(B, T, H * D)
    z.backward(dy.double())
    close(y, z, dtype)
    close(packed.grad, exact.grad, dtype)


@needs_kernels
@DTYPES
def test_layer_norm_equals_its_formula(dtype: torch.dtype) -> None:
    x, dy = (torch.randn(2, 9, 48) + 1).to(dtype), torch.randn(2, 9, 48).to(dtype)
    weight, bias = torch.randn(2, 48).unbind()
    fast, slow = [leaf(t) for t in (x, weight, bias)], [leaf(t.double()) for t in (x, weight, bias)]
    y = layer_norm(fast[0], fast[1], fast[2], 1e-5)
    z = F.layer_norm(slow[0], (48,), slow[1], slow[2], 1e-5)
    assert type(y.grad_fn).__name__ == "_LayerNormBackward"
    y.backward(dy)
    z.backward(dy.double())
    close(y, z, dtype)
    for ours, theirs in zip(fast, slow, strict=True):
        close(ours.grad, theirs.grad, dtype)


@needs_kernels
@DTYPES
def test_gated_gelu_equals_its_formula(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(33, 16), torch.linspace(-9, 9, 33 * 16).reshape(33, 16)], 1).to(dtype)
    fast, slow = leaf(x), leaf(x.double())
    dy = torch.randn(33, 16).to(dtype)
    y = geglu(fast)
    value, gate = slow.chunk(2, -1)
    z = value * F.gelu(gate)
    assert type(y.grad_fn).__name__ == "_GEGLUBackward"
    y.backward(dy)
    z.backward(dy.double())
    close(y, z, dtype)
    close(fast.grad, slow.grad, dtype)


@needs_kernels
@DTYPES
def test_upsampling_convolution_equals_its_parts(dtype: torch.dtype) -> None:
    layer = torch.nn.Conv2d(8, 5, 3, padding=1)
    x = torch.randn(3, 8, 17, 12).contiguous(memory_format=torch.channels_last)
    fast, slow = leaf(x), leaf(x.double())
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = upsample_conv(layer, fast)
    assert type(y.grad_fn).__name__ == "_InterleaveBackward"
    reference = copy.deepcopy(layer).double()
    z = reference(F.interpolate(slow, scale_factor=2.0, mode="nearest"))
    dy = torch.randn(y.shape)
    y.backward(dy.to(y.dtype))
    z.backward(dy.double())
    close(y, z, dtype)
    close(fast.grad, slow.grad, dtype)
    close(layer.weight.grad, reference.weight.grad, dtype)
    assert layer.bias is not None
    assert reference.bias is not None
    close(layer.bias.grad, reference.bias.grad, dtype)


@needs_kernels
def test_two_threads_give_the_numbers_of_one() -> None:
    x = torch.randn(1, 64, 6, 6).contiguous(memory_format=torch.channels_last)
    q = torch.randn(1, 1, 200, 32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((group_norm(x, 32, torch.ones(64), torch.zeros(64), 1e-5, silu=True), attend(q, q, q)))
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_layouts_without_a_kernel_take_the_plain_path() -> None:
    x = torch.randn(2, 64, 4, 4)  # not channels-last
    torch.testing.assert_close(
        group_norm(x, 32, torch.ones(64), torch.zeros(64), 1e-6, silu=True), F.silu(F.group_norm(x, 32, eps=1e-6))
    )
    q = torch.randn(1, 2, 5, 13)  # a width that is no multiple of 8
    torch.testing.assert_close(attend(q, q, q), plain_attend(q, q, q))


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_NATIVE", "0")
    assert native.library() is None
    assert "SFUMATO_NATIVE" in native.describe()
    x = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = group_norm(x, 32, torch.ones(32), torch.zeros(32), 1e-5, silu=True)
    assert type(y.grad_fn).__name__ == "SiluBackward0"


def test_absent_compiler_is_no_error(tmp_path: object) -> None:
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "from sfumato.engine import native; assert native.library() is None; print(native.describe())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "compiler" in done.stdout


def test_import_builds_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sfumato.engine.native; print(sfumato.engine.native.__name__)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "sfumato.engine.native\n"
    assert list(tmp_path.iterdir()) == []
