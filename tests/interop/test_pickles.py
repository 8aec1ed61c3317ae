"""The restricted reader: every container torch.save ever wrote, lazily; nothing in a file runs or escapes."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.errors import UserError
from sfumato.interop.lazy import StoredTensor
from sfumato.interop.pickle_machine import MAX_PICKLE, Global, Machine, PickleError, Stub
from sfumato.interop.pickles import read_pickle
from sfumato.interop.source import open_checkpoint

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool, torch.complex64]


def save(value: Any, path: Path, legacy: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture(params=[False, True], ids=["zip", "stream"])
def legacy(request: pytest.FixtureRequest) -> bool:
    return request.param


# -- what must come back -------------------------------------------------------------------------------------------


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
    """What Lightning 1.4 wrote, and torch's safe loader refuses."""
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


def write_tar(path: Path, base: torch.Tensor, elements: int | None = None, offset: int = 0) -> None:
    """A tar checkpoint as torch 0.1.9 wrote it: {"w": a transposed view, "piece": a storage view's tensor}."""

    def dump(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)

    storages = dump(1) + dump((10, "cpu", torch.FloatStorage)) + struct.pack("<q", elements or base.numel())
    storages += base.numpy().tobytes() + dump([(11, 10, 2, 3)])
    tensors = dump(2)
    tensors += dump((20, 10, torch.FloatTensor)) + struct.pack("<ii2q2qq", 2, 0, 3, 2, 1, 3, offset)
    tensors += dump((21, 11, torch.FloatTensor)) + struct.pack("<iiqqq", 1, 0, 3, 1, 0)

    class Ref:
        def __init__(self, key: str) -> None:
            self.key = key

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.key if isinstance(obj, Ref) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": Ref("20"), "piece": Ref("21")})
    system = dump({"protocol_version": 1000, "little_endian": True, "type_sizes": {}})
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (
            ("sys_info", system),
            ("pickle", buffer.getvalue()),
            ("tensors", tensors),
            ("storages", storages),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


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


def write_sparse(path: Path, elements: int) -> None:
    """A zip checkpoint whose one storage is a hole in the file (no disk, no memory)."""
    program = program_of(("storage", Global("torch", "FloatStorage"), "0", "cpu", elements), shape=(elements,))
    nbytes = 4 * elements
    with path.open("wb") as file:
        entries = []
        for name, data, size in (("x/data.pkl", program, len(program)), ("x/data/0", b"", nbytes)):
            entries.append((name.encode(), file.tell(), size))
            file.write(
                struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, size, size, len(name), 0) + name.encode()
            )
            file.write(data)
            if not data:
                file.seek(size, os.SEEK_CUR)
        start = file.tell()
        for name_bytes, at, size in entries:
            head = struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, size, size, len(name_bytes), 0, 0, 0, 0, 0, at
            )
            file.write(head + name_bytes)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, file.tell() - start, start, 0))


# -- what must not happen ------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.function, self.args, self.state = function, args, state

    def __call__(self) -> None:
        """Lets one be the function of another."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class Setstate:
    """Its BUILD runs code when a normal unpickler restores it."""

    def __setstate__(self, state: Any) -> None:
        Path(state["path"]).write_text("ran")

    def __reduce__(self) -> tuple[Any, ...]:
        return (copyreg.__newobj__, (Setstate,), {"path": os.environ["SFUMATO_TEST_MARK"]})  # type: ignore[attr-defined]


def attacks(mark: Path) -> dict[str, Any]:
    touch = f"open({str(mark)!r}, 'w').write('ran')"
    return {
        "os.system": Call(os.system, f"touch {mark}"),
        "eval": Call(builtins.eval, touch),
        "exec": Call(builtins.exec, touch),
        "compile": Call(builtins.exec, Call(builtins.compile, touch, "x", "exec")),
        "import": Call(builtins.__import__, "antigravity"),
        "getattr chain": Call(Call(builtins.getattr, Call(builtins.__import__, "os"), "system"), f"touch {mark}"),
        "popen": Call(subprocess.Popen, ["touch", str(mark)]),
        "setstate": Setstate(),
        "storage gadget": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {mark}"))),
        "rebuild with code": Call(torch._utils._rebuild_tensor_v2, Call(os.system, f"touch {mark}"), 0, (1,), (1,)),
        "type call": Call(type, "X", (), {"__del__": Call(os.system, f"touch {mark}")}),
        "in a list": [[{"deep": Call(os.system, f"touch {mark}")}]],
        "code as state": Call(types.SimpleNamespace, state={"a": Call(os.system, f"touch {mark}")}),
        "map": Call(list, Call(map, os.system, [f"touch {mark}"])),
        "partial": Call(collections.defaultdict, Call(os.system, f"touch {mark}")),
    }


NAMES = sorted(attacks(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_attack_pickles_run_nothing(name: str, tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("SFUMATO_TEST_MARK", str(mark))
    value = {"payload": attacks(mark)[name], "state_dict": {"w": torch.ones(2)}}
    path = save(value, tmp_path / "evil.ckpt", legacy)
    assert not mark.exists()
    modules = set(sys.modules)
    try:
        source = open_checkpoint(path)
    except UserError:
        pass  # refusing is as safe
    else:
        assert torch.equal(source.tensors["w"].load(), torch.ones(2))
    assert not mark.exists(), "the file ran code"
    assert set(sys.modules) == modules, "the file imported something"


@pytest.mark.parametrize("name", ["os.system", "eval", "setstate"])
def test_the_attacks_are_real(name: str, tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files do run when torch trusts them: the tests above test something."""
    mark = tmp_path / "mark"
    monkeypatch.setenv("SFUMATO_TEST_MARK", str(mark))
    path = save({"payload": attacks(mark)[name]}, tmp_path / "evil.ckpt", legacy)
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_a_tar_archive_whose_tables_are_attacks(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "evil.pth"
    evil = pickle.dumps(Call(os.system, f"touch {mark}"), protocol=2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            archive.addfile(info, io.BytesIO(evil))
    with pytest.raises(UserError, match="damaged"):
        read_pickle(path)
    assert not mark.exists()


def test_extension_codes_and_unknown_opcodes_are_refused() -> None:
    """copyreg's registry is a way round find_class in pickle.Unpickler."""
    for program in (b"\x80\x02\x82\x01.", b"\x80\x05\x97.", b"\xff."):
        with pytest.raises(PickleError):
            Machine(lambda value: None).run(program)


def test_a_stub_stays_inert_under_every_opcode() -> None:
    """NEWOBJ, NEWOBJ_EX, BUILD, APPENDS, SETITEMS, OBJ and INST on names give stubs, never objects."""
    call = rb"cos~system~X\x04\x00\x00\x00exit\x85R"
    new = rb"cos~system~)\x81(K\x01e(K\x01K\x02uK\x01b"
    inst, obj = rb"(K\x01ios~system~", rb"(cos~system~K\x01o"
    program = (rb"\x80\x02(" + call + new + inst + obj + b"l.").decode("unicode_escape").encode("latin1")
    value, _ = Machine(lambda value: None).run(program.replace(b"~", b"\n"))
    assert all(isinstance(item, Stub) for item in value)
    assert len(value) == 4


# -- damaged and lying files ---------------------------------------------------------------------------------------


def repack(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes | None) -> Path:
    """Copies a zip checkpoint with some records (data_pkl, data__0, ...) replaced or, for None, left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            name = info.filename.split("/", 1)[1].replace("/", "__").replace(".", "_")
            data = changed[name] if name in changed else old.read(info)
            if data is not None:
                new.writestr(info.filename, data)
    return target


def program_of(identifier: Any, offset: Any = 0, shape: Any = (4,), stride: Any = None) -> bytes:
    """The pickle of {"w": one tensor of the storage named by `identifier`}, whatever its numbers claim."""

    class Ref:
        pass

    class Rebuild:
        def __reduce__(self) -> tuple[Any, ...]:
            strides = tuple([1] * len(shape)) if stride is None else stride
            return torch._utils._rebuild_tensor_v2, (Ref(), offset, shape, strides, False, collections.OrderedDict())

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, obj: Any) -> Any:
            return identifier if isinstance(obj, Ref) else None

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Global):
                self.write(f"c{obj.module}\n{obj.name}\n".encode())
            else:
                super().save(obj, save_persistent_id)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": Rebuild()})
    return buffer.getvalue()


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
