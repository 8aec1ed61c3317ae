"""Files are whole or absent."""

import builtins
import errno
import os
from pathlib import Path

import pytest
import torch

from sfumato import checkpoint
from sfumato.checkpoint import write_first_free
from sfumato.errors import SURROUNDINGS, UserError
from sfumato.outputs import written


def test_tensors_and_numbers_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "half": torch.ones(2, 3, dtype=torch.bfloat16), "t": torch.ones(3, 4).t()}
    checkpoint.save_tensors(tmp_path / "x.safetensors", tensors, {"step": 3, "loss": 0.1})
    loaded, numbers = checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert numbers == {"step": 3, "loss": 0.1}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


def test_a_full_disk_leaves_the_old_file_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, {"a": torch.zeros(2)})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="disk is full"):
        checkpoint.save_tensors(path, {"a": torch.ones(2)})
    assert torch.equal(checkpoint.load_tensors(path)[0]["a"], torch.zeros(2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_crash_before_the_rename_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.step_path(tmp_path, 1)
    checkpoint.save_tensors(path, {"a": torch.zeros(2)})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_tensors(checkpoint.step_path(tmp_path, 2), {"a": torch.ones(2)})
    assert checkpoint.newest(tmp_path, builtins.print) == path


def test_a_damaged_newest_state_is_skipped_and_reported(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save_tensors(checkpoint.step_path(tmp_path, step), {"a": torch.zeros(100)})
    whole = checkpoint.step_path(tmp_path, 3).read_bytes()
    checkpoint.step_path(tmp_path, 3).write_bytes(whole[: len(whole) // 2])
    messages: list[str] = []
    assert checkpoint.newest(tmp_path, messages.append) == checkpoint.step_path(tmp_path, 2)
    assert "step-00000003" in messages[0]
    checkpoint.prune(tmp_path, keep=1)
    assert [step for step, _ in checkpoint.saved_steps(tmp_path)] == [3]


def test_loading_names_the_key_and_both_shapes(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(UserError, match=r"'weight' has shape \(3, 5\).*asks for \(3, 2\)"):
        checkpoint.load_into(layer, {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)}, "file")
    with pytest.raises(UserError, match="lacks the key 'bias'"):
        checkpoint.load_into(layer, {"weight": torch.zeros(3, 2)}, "file")
    with pytest.raises(UserError, match="does not know, the first is 'extra'"):
        checkpoint.load_into(layer, {**layer.state_dict(), "extra": torch.zeros(1)}, "file")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_tensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_named_by_tensor_and_count(dtype: torch.dtype, value: float) -> None:
    if dtype == torch.float8_e4m3fn and value == value:
        pytest.skip("this type has no infinity")
    bad = torch.zeros(5, 7)
    bad[2, 3] = bad[4, 4] = value
    tensors = {"good": torch.ones(3), "ids": torch.arange(3), "layer.weight": bad.to(dtype)}
    with pytest.raises(UserError, match=r"here: tensor 'layer\.weight' holds 2 of 35 numbers that are not finite"):
        checkpoint.check_finite(tensors, "here")
    with pytest.raises(UserError, match="and 1 more tensors"):
        checkpoint.check_finite(tensors | {"other": bad}, "here")


def test_infinities_that_cancel_are_found_and_large_finite_numbers_pass() -> None:
    both = torch.tensor([float("inf"), -float("inf")])
    with pytest.raises(UserError, match="'x' holds 2 of 2"):
        checkpoint.check_finite({"x": both}, "here")
    large = {str(t): torch.full((9,), torch.finfo(t).max, dtype=t) for t in (torch.float16, torch.float32)}
    checkpoint.check_finite(large | {"empty": torch.empty(0), "meta": torch.empty(3, device="meta")}, "here")


def test_a_module_takes_no_weights_that_are_not_finite() -> None:
    layer = torch.nn.Linear(2, 3)
    broken = {"weight": torch.full((3, 2), float("nan")), "bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"model\.safetensors: tensor 'weight' holds 6 of 6"):
        checkpoint.load_into(layer, broken, "model.safetensors")
    assert all(bool(torch.isfinite(p).all()) for p in layer.parameters())


def test_a_folder_made_for_a_file_that_cannot_be_written_goes_again(tmp_path: Path) -> None:
    def too_large(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with pytest.raises(UserError, match="could not be written"):
        write_first_free([tmp_path / "a" / "b" / "0000.png"], too_large)
    assert not list(tmp_path.iterdir())

    def begin(run: Path) -> None:
        with written(run):
            run.mkdir()
            too_large(run / "config.yaml")

    with pytest.raises(OSError, match="too large"):
        begin(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert errno.EFBIG in SURROUNDINGS
