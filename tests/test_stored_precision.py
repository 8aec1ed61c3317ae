"""Weights in 8 and 16 bits: error bounds, exact expansion, what is stored how, damaged files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import checkpoint
from sfumato.errors import UserError
from sfumato.stored_precision import LEVELS, SCALES, expanded, quantized, reduced, relative_error


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def back(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor after 8 bits, and the scales (R, 1, ...)."""
    q, scale = quantized(tensor)
    column = scale.float().view(-1, *[1] * (tensor.dim() - 1))
    return q.float() * column, column


def test_no_number_is_off_by_more_than_half_a_scale() -> None:
    w = weight(300, 5, 3, 11) * torch.logspace(-30, 30, 300).view(-1, 1, 1, 1)  # rows of very different sizes
    stored, scale = back(w)
    assert bool(((w - stored).abs() <= scale * (0.5 + 1e-5)).all())
    largest = w.abs().amax((1, 2, 3))
    assert torch.equal(stored.abs().amax((1, 2, 3)), LEVELS * scale.flatten()), "127 stands for the largest"
    assert float((scale.flatten() * LEVELS / largest - 1).abs().max()) <= 2**-8, "scales are bfloat16"


def test_gaussian_rows_lose_what_a_uniform_quantizer_loses() -> None:
    """A step s adds noise of variance s² / 12 (Bennett 1948)."""
    w = weight(64, 512, seed=2)
    stored, scale = back(w)
    expected = float((scale.square() / 12).mean().sqrt() / w.square().mean().sqrt())
    assert relative_error(w, stored) == pytest.approx(expected, rel=0.05)
    assert relative_error(w, stored) < 0.01


def test_expanding_is_exact_and_quantizing_again_changes_nothing() -> None:
    w = weight(33, 40, seed=3) * torch.logspace(-8, 8, 33)[:, None]
    w[4] = 0
    once = expanded(reduced({"w": w}, 8), "x")["w"]
    q, scale = quantized(w)
    assert torch.equal(once.double(), q.double() * scale.double()[:, None]), "no rounding in float32"
    assert torch.equal(expanded(reduced({"w": once}, 8), "x")["w"], once)
    assert bool((once[4] == 0).all())
    half = expanded(reduced({"w": w}, 16), "x")["w"]
    assert torch.equal(expanded(reduced({"w": half}, 16), "x")["w"], half)


def test_what_is_stored_how() -> None:
    tensors = {
        "kernel": weight(32, 8, 3, 3),
        "matrix": weight(16, 64).bfloat16(),
        "narrow": weight(500, 4),
        "few": weight(16, 16),
        "bias": weight(2000),
        "large": torch.tensor([1e6, 1.0]),
        "faint": torch.full((3,), 1e-6),
        "zero": torch.zeros(3),
        "count": torch.tensor([3, 4]),
        "wide": weight(64, 64).double(),
    }
    eight, sixteen = reduced(tensors, 8), reduced(tensors, 16)
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in eight.items()}
    scales = {"kernel.scale": "bfloat16", "matrix.scale": "bfloat16"}
    kept = {"large": "float32", "faint": "float32", "count": "int64", "wide": "float64"}
    halves = dict.fromkeys(("narrow", "few", "bias", "zero"), "float16")
    assert kinds == {"kernel": "int8", "matrix": "int8", **scales, **kept, **halves}
    assert {name: tuple(eight[name].shape) for name in scales} == {"kernel.scale": (32,), "matrix.scale": (16,)}
    assert {name for name, tensor in sixteen.items() if tensor.dtype != torch.float16} == set(kept)
    for stored in (eight, sixteen):
        again = expanded(stored, "x")
        assert list(again) == list(tensors)
        assert all(again[name].shape == tensor.shape for name, tensor in tensors.items())
        types = {"count": torch.int64, "wide": torch.float64}
        assert all(tensor.dtype == types.get(name, torch.float32) for name, tensor in again.items())
        assert all(torch.equal(again[name], tensors[name]) for name in ("large", "faint", "zero", "count", "wide"))


def test_a_file_of_fewer_bits_is_read_as_float32(tmp_path: Path) -> None:
    tensors = {"a.weight": weight(64, 128), "a.bias": weight(64)}
    sizes = {}
    for bits in (None, 16, 8):
        path = tmp_path / f"{bits}.safetensors"
        checkpoint.save_tensors(path, tensors, {"step": 3}, bits=bits)  # type: ignore[arg-type]
        found, numbers = checkpoint.load_tensors(path, verify=True)
        assert (found.keys(), numbers, checkpoint.stored_bits(path)) == (tensors.keys(), {"step": 3}, bits)
        assert all(tensor.dtype == torch.float32 for tensor in found.values())
        sizes[bits] = path.stat().st_size
    assert sizes[16] < 0.52 * sizes[None]
    assert sizes[8] < 0.28 * sizes[None]
    damaged = bytearray((tmp_path / "8.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "8.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match="does not have the checksum"):
        checkpoint.load_tensors(tmp_path / "8.safetensors", verify=True)


def with_scales(scale: Tensor) -> dict[str, Tensor]:
    return {"w": torch.ones(4, 300, dtype=torch.int8), "w" + SCALES: scale}


DAMAGED: dict[str, tuple[dict[str, Tensor], Any, str]] = {
    "too few scales": (with_scales(torch.ones(3)), 8, r"'w.scale' has float32 numbers of shape \(3,\), not one scale"),
    "scales of integers": (with_scales(torch.ones(4, dtype=torch.int64)), 8, "'w.scale' has int64 numbers"),
    "a single number": ({"w": torch.tensor(1, dtype=torch.int8), "w.scale": torch.ones(1)}, 8, "the 0 rows of 'w'"),
    "four bits": ({"w": torch.ones(3)}, 4, "weights are stored in 8 or 16 bits, not '4'"),
    "a text": ({"w": torch.ones(3)}, "8", "weights are stored in 8 or 16 bits, not '8'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_sentence(name: str, tmp_path: Path) -> None:
    tensors, bits, sentence = DAMAGED[name]
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, tensors, {checkpoint.STORED_BITS: bits})
    with pytest.raises(UserError, match=sentence) as raised:
        checkpoint.load_tensors(path)
    assert str(path) in str(raised.value)


def test_lost_scales_and_infinite_ones_are_found_where_weights_are_loaded(tmp_path: Path) -> None:
    layer = torch.nn.Linear(300, 4, bias=False)
    path = tmp_path / "x.safetensors"
    for stored, sentence in (
        ({"weight": torch.ones(4, 300, dtype=torch.int8)}, "key 'weight' has int8 numbers"),
        ({"weight": torch.ones(4, 300, dtype=torch.int8), "weight.scale": torch.full((4,), torch.inf)}, "not finite"),
        ({"weight": torch.ones(4, 300), "weight.scale": torch.ones(4)}, "the first is 'weight.scale'"),
    ):
        checkpoint.save_tensors(path, stored, {checkpoint.STORED_BITS: 8})
        with pytest.raises(UserError, match=sentence):
            checkpoint.load_into(layer, checkpoint.load_tensors(path)[0], str(path))


def test_weights_that_are_not_finite_are_not_rounded(tmp_path: Path) -> None:
    broken = weight(64, 32)
    broken[5, 7] = torch.nan
    with pytest.raises(UserError, match="'w' holds 1 of 2048 numbers that are not finite"):
        checkpoint.save_tensors(tmp_path / "x.safetensors", {"w": broken}, bits=8)
    assert not list(tmp_path.iterdir())
