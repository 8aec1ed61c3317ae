"""Timestep embedding, norm and zero initialisation."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from parity import golden, needs_parity
from sfumato.nn.embeddings import timestep_embedding
from sfumato.nn.init import FILLING, without_weights, zero_
from sfumato.nn.norm import GroupNorm32


def test_cosines_come_first() -> None:
    t = torch.tensor([0.0, 2.5, 999.0], dtype=torch.float64)
    embedded = timestep_embedding(t, 6)
    frequencies = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)], dtype=torch.float64)
    expected = torch.cat([(t[:, None] * frequencies).cos(), (t[:, None] * frequencies).sin()], 1)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.double(), expected, atol=1e-4, rtol=0)


@needs_parity
@pytest.mark.parametrize("dim", [32, 33, 224])
def test_recorded_embeddings(dim: int) -> None:
    expected = golden("misc")[f"timestep_embedding/{dim}"]
    torch.testing.assert_close(timestep_embedding(torch.tensor([0, 1, 500, 999]), dim), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_keeps_type_and_layout_and_counts_in_float32(layout: torch.memory_format) -> None:
    norm = GroupNorm32(4, 8)
    x = (torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0)) + 50).to(memory_format=layout)
    torch.testing.assert_close(norm(x).double(), nn.functional.group_norm(x.double(), 4), atol=1e-4, rtol=0)
    half = x.bfloat16()
    for module in (norm, GroupNorm32(4, 8).bfloat16()):
        out = module(half)
        assert out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=layout)
        torch.testing.assert_close(out.float(), nn.functional.group_norm(half.float(), 4), atol=2e-2, rtol=0)


def made() -> nn.Module:
    """Layers with every initialisation that our networks have."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Embedding(6, 4), nn.GroupNorm(2, 4))
    nn.init.trunc_normal_(network[1].weight, std=0.02)
    nn.init.constant_(network[1].bias, 2.0)
    return zero_(network)


def test_without_weights_nothing_is_filled_but_what_has_memory() -> None:
    with without_weights():
        outline, real = made(), torch.full((3,), 7.0, device="cpu")
        assert nn.init.normal_(real) is real
        assert torch.zeros(2, device="cpu").fill_(3.0).sum() == 6
    assert real.max() < 7
    expected = made().state_dict()
    assert all(tensor.is_meta for tensor in outline.state_dict().values())
    for name, tensor in outline.state_dict().items():
        assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
    calls = Calls()
    with calls, without_weights():
        made()
    assert calls.seen
    assert not calls.seen & FILLING, "torch would fill them in Python"


class Calls(TorchFunctionMode):
    """The functions that are called on tensors, behind what an inner mode leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[object] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def test_zero_leaves_nothing() -> None:
    assert not any(p.abs().sum() for p in zero_(nn.Conv2d(3, 4, 3)).parameters())


def test_group_norm_keeps_its_digits_in_both_layouts() -> None:
    x = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0)) + 300
    exact = nn.functional.group_norm(x.double(), 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=layout).requires_grad_()
        out = GroupNorm32(4, 8)(given)
        torch.testing.assert_close(out.double(), exact, atol=5e-5, rtol=0)
        out.square().mul(torch.arange(30.0).reshape(5, 6)).sum().backward()
        reference = x.double().requires_grad_()
        nn.functional.group_norm(reference, 4).square().mul(torch.arange(30.0).reshape(5, 6)).sum().backward()
        torch.testing.assert_close(given.grad.double(), reference.grad, atol=2e-2, rtol=1e-3)
