"""The restricted reader: nothing in a file runs or escapes."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pickle_files import save

from sfumato.errors import UserError
from sfumato.interop.pickle_machine import Machine, PickleError, Stub
from sfumato.interop.pickles import read_pickle
from sfumato.interop.source import open_checkpoint


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
