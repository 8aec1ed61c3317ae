"""The restricted reader: false headers, bombs and halves are one sentence and cost nothing."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch
from pickle_files import program_of, repack, save, write_tar

from sfumato.errors import UserError
from sfumato.interop.pickle_machine import MAX_PICKLE, Global
from sfumato.interop.source import open_checkpoint

FLOAT = Global("torch", "FloatStorage")

FALSE_HEADERS: dict[str, tuple[bytes, str]] = {
    "too many elements": (program_of(("storage", FLOAT, "0", "cpu", 5)), "16 bytes where 20 are declared"),
    "huge storage": (program_of(("storage", FLOAT, "0", "cpu", 2**60)), "are declared"),
    "negative storage": (program_of(("storage", FLOAT, "0", "cpu", -4)), "no proper name or size"),
    "elements no integer": (program_of(("storage", FLOAT, "0", "cpu", 4.0)), "no proper name or size"),
    "beyond the end": (program_of(("storage", FLOAT, "0", "cpu", 4), shape=(5,)), "needs 20"),
    "offset beyond": (program_of(("storage", FLOAT, "0", "cpu", 4), offset=1), "needs 20"),
    "negative offset": (program_of(("storage", FLOAT, "0", "cpu", 4), offset=-1, shape=(2,)), "is no tensor"),
    "negative stride": (program_of(("storage", FLOAT, "0", "cpu", 4), stride=(-1,)), "is no tensor"),
    "stride beyond": (program_of(("storage", FLOAT, "0", "cpu", 4), stride=(2,)), "needs 28"),
    "huge shape": (program_of(("storage", FLOAT, "0", "cpu", 4), shape=(2**62, 2**62)), "needs"),
    "repeated": (program_of(("storage", FLOAT, "0", "cpu", 4), shape=(2**40,), stride=(0,)), "refusing to expand"),
    "too many axes": (program_of(("storage", FLOAT, "0", "cpu", 4), shape=(1,) * 1000), "is no tensor"),
    "shape no numbers": (program_of(("storage", FLOAT, "0", "cpu", 4), shape=("a",)), "is no tensor"),
    "shape and stride differ": (program_of(("storage", FLOAT, "0", "cpu", 4), stride=(1, 1)), "is no tensor"),
    "other storage": (program_of(("storage", FLOAT, "7", "cpu", 4)), "named but not in the archive"),
    "path as key": (program_of(("storage", FLOAT, "../../etc/passwd", "cpu", 4)), "named but not in the archive"),
    "odd class": (program_of(("storage", Global("os", "FloatStorage"), "0", "cpu", 4)), "not a plain torch storage"),
    "quantised": (program_of(("storage", Global("torch", "QInt8Storage"), "0", "cpu", 4)), "not a plain torch storage"),
    "odd reference": (program_of("posix.system"), "refers to something outside"),
    "cut off": (program_of(("storage", FLOAT, "0", "cpu", 4))[:-30], "damaged or cut off"),
    "no end": (program_of(("storage", FLOAT, "0", "cpu", 4))[:-1], "cut off"),
    "long length": (b"\x80\x04\x8e" + b"\xff" * 8 + b"x.", "damaged or cut off"),
    "long text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "damaged or cut off"),
    "long frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "holds a NoneType"),
    "long integer": (b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x01" * 100_000 + b".", "absurdly long"),
    "many digits": (b"L" + b"9" * 100_000 + b"L\n.", "damaged or cut off"),
    "unhashable key": (b"\x80\x02}]K\x01s.", "dictionary key of type list"),
    "stack underflow": (b"\x80\x02R.", "damaged or cut off"),
    "memo of nothing": (b"\x80\x02h\x07.", "damaged or cut off"),
    "state of nothing": (b"\x80\x02Nb.", "damaged or cut off"),
    "set on a number": (b"\x80\x02K\x01(K\x01K\x02u.", "items are set on a int"),
}


@pytest.mark.parametrize("name", sorted(FALSE_HEADERS))
def test_false_headers_in_a_zip_are_one_sentence(name: str, tmp_path: Path) -> None:
    program, message = FALSE_HEADERS[name]
    good = save({"w": torch.zeros(4)}, tmp_path / "good.pt", False)
    path = repack(good, tmp_path / "bad.pt", data_pkl=program)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_deep_nesting_neither_recurses_nor_overflows(tmp_path: Path) -> None:
    depth = 150_000
    good = save({"w": torch.zeros(4)}, tmp_path / "good.pt", False)
    nested_lists = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    with pytest.raises(UserError, match="holds a list"):
        open_checkpoint(repack(good, tmp_path / "lists.pt", data_pkl=nested_lists))
    tuples_as_key = b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."
    with pytest.raises(UserError, match="dictionary key of type tuple"):
        open_checkpoint(repack(good, tmp_path / "tuples.pt", data_pkl=tuples_as_key))


def test_memo_bombs_cost_nothing(tmp_path: Path) -> None:
    """Forty lists of ten of the one before are visited once each; a memo with one huge index is no huge array."""
    good = save({"w": torch.zeros(4)}, tmp_path / "good.pt", False)
    layers = b"\x80\x02]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(40)
    )
    with pytest.raises(UserError, match="holds a list"):
        open_checkpoint(repack(good, tmp_path / "laughs.pt", data_pkl=layers + b"."))
    sparse = b"\x80\x02Nr\xff\xff\xff\x7f."
    with pytest.raises(UserError, match="holds a NoneType"):
        open_checkpoint(repack(good, tmp_path / "memo.pt", data_pkl=sparse))


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    good = save({"w": torch.zeros(1 << 23)}, tmp_path / "good.pt", False)
    bomb = repack(good, tmp_path / "bomb.pt", compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UserError, match="refusing to"):
        open_checkpoint(bomb)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_half_a_download_is_named_as_such(tmp_path: Path, legacy: bool, keep: float) -> None:
    path = save({"state_dict": {"w": torch.ones(100, 100), "v": torch.ones(3)}}, tmp_path / "x.ckpt", legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=r"cut off|half a download|is not a checkpoint") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 300, "is not a checkpoint")]
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_checkpoint(path)


def test_what_is_no_state_dict_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        open_checkpoint(tmp_path / "absent.ckpt")
    with pytest.raises(UserError, match=r"torch.nn.modules.linear.Linear.*state_dict"):
        open_checkpoint(save(torch.nn.Linear(2, 2), tmp_path / "module.pt", False))
    with pytest.raises(UserError, match="contains no named tensors"):
        open_checkpoint(save({"a": 1}, tmp_path / "none.pt", False))
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        open_checkpoint(tmp_path / "any.zip")


def test_false_headers_in_a_stream_and_a_tar(tmp_path: Path) -> None:
    path = save({"w": torch.ones(100)}, tmp_path / "x.pt", True)
    data = path.read_bytes()
    at = data.rindex(struct.pack("<q", 100), 0, len(data) - 400 + 8)
    path.write_bytes(data[:at] + struct.pack("<q", 2**40) + data[at + 8 :])
    with pytest.raises(UserError, match="should contain 100 elements"):
        open_checkpoint(path)
    base = torch.arange(6, dtype=torch.float32)
    for change, message in (({"elements": 2**50}, "more than the archive contains"), ({"offset": 1}, "needs 28")):
        write_tar(tmp_path / "x.pth", base, **change)
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path / "x.pth")


def test_a_structure_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PICKLE < 1 << 30
    monkeypatch.setattr("sfumato.interop.pickles.MAX_PICKLE", 10)
    with pytest.raises(UserError, match="structure alone"):
        open_checkpoint(save({"w": torch.ones(3)}, tmp_path / "x.pt", False))
