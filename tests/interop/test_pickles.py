"""The restricted reader: every container torch.save ever wrote comes back, lazily."""

import collections
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from pickle_files import repack, save, write_sparse, write_tar

from sfumato.errors import UserError
from sfumato.interop.lazy import StoredTensor
from sfumato.interop.pickles import read_pickle
from sfumato.interop.source import open_checkpoint

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool, torch.complex64]


def test_all_element_types_and_views_come_back_bit_for_bit(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(60, dtype=torch.float32)
    tensors = {str(d): (torch.arange(7) % 2 if d is torch.bool else torch.arange(7) - 3).to(d) for d in DTYPES}
    tensors |= {
        "transposed": base.reshape(6, 10).t(),
        "piece": base[13:20],
        "strided": base[3::7],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(0))),
    }
    read = read_pickle(save(tensors, tmp_path / "x.pt", legacy))
    assert list(read) == list(tensors)
    for key, expected in tensors.items():
        actual = read[key].load()
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.is_contiguous()
        assert torch.equal(actual, expected), key
    assert read["piece"].storage is read["strided"].storage, "views of one storage share it"


def test_plain_containers_come_back(tmp_path: Path, legacy: bool) -> None:
    value = {
        "epoch": 7,
        "big": 2**80,
        "text": "ünï",
        "bytes": b"\x00\xff",
        "none": None,
        "flag": True,
        "real": 0.25,
        "ordered": collections.OrderedDict(a=1, b=[1, (2, 3)]),
        "default": collections.defaultdict(list, {"k": [1]}),
        "size": torch.Size([2, 3]),
        5: "number key",
        (1, "a"): "tuple key",
    }
    read = read_pickle(save(value, tmp_path / "x.pt", legacy))
    assert read == {**value, "ordered": {"a": 1, "b": [1, (2, 3)]}, "default": {"k": [1]}, "size": (2, 3)}


def test_a_class_object_as_dictionary_key_is_an_inert_name(tmp_path: Path, legacy: bool) -> None:
    """A checkpoint as Lightning 1.4 wrote it, which torch's safe loader refuses."""
    value = {"callbacks": {collections.Counter: {"best": torch.tensor(0.1)}}, "state_dict": {"w": torch.ones(2)}}
    source = open_checkpoint(save(value, tmp_path / "x.ckpt", legacy))
    assert list(source.tensors) == ["w"]
    assert source.stubs == ("collections.Counter",)


def test_numpy_values_are_tolerated(tmp_path: Path, legacy: bool) -> None:
    np = pytest.importorskip("numpy")
    value = {"score": np.float64(0.5), "array": np.arange(3), "state_dict": {"w": torch.ones(2)}}
    source = open_checkpoint(save(value, tmp_path / "x.ckpt", legacy))
    assert torch.equal(source.tensors["w"].load(), torch.ones(2))
    assert any("scalar" in name for name in source.stubs)


def test_untyped_storages_and_tensor_subclasses(tmp_path: Path) -> None:
    value = {"f8": torch.ones(4).to(torch.float8_e4m3fn), "buffer": torch.nn.Buffer(torch.ones(2))}
    read = read_pickle(save(value, tmp_path / "x.pt", False))
    assert torch.equal(read["f8"].load().float(), torch.ones(4))
    assert read["f8"].dtype == torch.float8_e4m3fn


def test_the_oldest_format_a_tar_archive(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    base = torch.arange(6, dtype=torch.float32)
    write_tar(path, base)
    read = read_pickle(path)
    assert torch.equal(read["w"].load(), base.reshape(2, 3).t())
    assert torch.equal(read["piece"].load(), base[2:5])
    expected = torch.load(path, weights_only=False)
    assert torch.equal(read["w"].load(), expected["w"])


def test_a_repacked_compressed_archive_is_read(tmp_path: Path) -> None:
    weights = {"w": torch.randn(50, 50, generator=torch.Generator().manual_seed(1))}
    path = repack(save(weights, tmp_path / "a.pt", False), tmp_path / "b.pt", compression=zipfile.ZIP_DEFLATED)
    assert torch.equal(read_pickle(path)["w"].load(), weights["w"])


def test_listing_a_large_checkpoint_reads_none_of_it(tmp_path: Path) -> None:
    """A 2 GiB sparse checkpoint is opened and one small tensor read within a few MB of memory."""
    path = tmp_path / "big.pt"
    write_sparse(path, elements=1 << 29)
    code = (
        "import sys, resource; from sfumato.interop.source import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"s = open_checkpoint({str(path)!r})\n"
        "assert s.tensors['w'].shape == (1 << 29,), s.tensors['w'].shape\n"
        "big = s.tensors['w'].load(); assert big[12345].item() == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = Path(__file__).parents[2] / "src"
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert int(out.stdout) < 40_000, f"{out.stdout} KiB for opening a sparse 2 GiB file"


def test_a_safetensors_file_is_read_lazily_and_refused_when_cut(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, path)
    source = open_checkpoint(path)
    assert source.shapes() == {"w": (2, 3)}
    assert torch.equal(source.tensors["w"].load(), torch.arange(6.0).reshape(2, 3))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        open_checkpoint(path)


def test_loaded_tensors_do_not_write_to_the_file(tmp_path: Path) -> None:
    path = save({"w": torch.ones(4)}, tmp_path / "x.pt", False)
    before = path.read_bytes()
    tensor = read_pickle(path)["w"]
    assert isinstance(tensor, StoredTensor)
    tensor.load().zero_()
    assert path.read_bytes() == before
