"""A model folder is read as one version, whatever is written meanwhile."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

import tiny
from forks import Forks
from sfumato import checkpoint, versions
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.versions import replacing_folder

LOADS = int(os.environ.get("SFUMATO_LOADS", "10"))
"""How many; a thousand take some minutes."""
SAVE = """
import sys, tiny, torch
from dataclasses import replace
from pathlib import Path
model = tiny.model()
for number in range(10**9):
    for part in model.parts().values():
        for parameter in part.parameters():
            parameter.data.fill_(float(number))
    model.scaling.shift.fill_(float(number))
    config = model.config.model_copy(update={"about": {"number": number}})
    replace(model, config=config).save(Path(sys.argv[1]))
    print(number, flush=True)
"""


def numbers_of(model: LatentDiffusion) -> set[float]:
    """The numbers of the saves that the parts of a model come from."""
    found = {float(model.config.about["number"]), *model.scaling.shift.tolist()}
    for part in model.parts().values():
        for parameter in part.parameters():
            found |= {parameter.min().item(), parameter.max().item()}
    return found


def test_loads_during_saves_are_of_one_version(tmp_path: Path, forks: Forks) -> None:
    writer = forks.start(SAVE, [tmp_path / "model"])
    writer.wait_for("0\n")
    seen = set()
    t_start = time.monotonic()
    try:
        for _ in range(LOADS):
            numbers = numbers_of(load(tmp_path))
            assert len(numbers) == 1
            seen |= numbers
    finally:
        writer.kill()
        writer.wait()
    print(f"{LOADS} loads of {len(seen)} versions in {time.monotonic() - t_start:.1f} s")
    assert len(seen) > 1


def _with(number: float) -> LatentDiffusion:
    model = tiny.model()
    for part in model.parts().values():
        for parameter in part.parameters():
            parameter.data.fill_(number)
    return model


def test_a_copy_of_two_versions_is_reported(tmp_path: Path) -> None:
    _with(1).save(tmp_path / "one")
    _with(2).save(tmp_path / "two")
    shutil.copyfile(tmp_path / "one" / "denoiser.safetensors", tmp_path / "two" / "denoiser.safetensors")
    with pytest.raises(UserError, match=r"are of different versions of the model: denoiser.safetensors is not the one"):
        load(tmp_path / "two")


def test_a_folder_that_lists_no_checksums_is_opened(tmp_path: Path) -> None:
    """As those from before, and files that another program wrote."""
    _with(1).save(tmp_path / "one")
    digest = load(tmp_path / "one").digest
    config = tmp_path / "one" / "config.yaml"
    listed, rest = [], []
    for line in config.read_text().splitlines(keepends=True):
        (listed if line.startswith("# ") else rest).append(line)
    assert len(listed) == 4
    config.write_text("".join(rest))
    assert load(tmp_path / "one").digest == digest
    config.write_text("".join([*listed, *rest]))
    for path in (tmp_path / "one").glob("*.safetensors"):
        checkpoint.save_file({n: t.clone() for n, t in checkpoint.load_tensors(path)[0].items()}, path)
    assert load(tmp_path / "one").digest == digest


def test_the_same_weights_make_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _with(1).save(tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_a_reader_waits_while_a_folder_is_between_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced while it is read, by a writer who waited long enough: read again; and not for ever."""
    monkeypatch.setattr(versions, "READERS", 0.02)
    _with(1).save(tmp_path / "model")
    read = []

    def slowly(folder: Path) -> LatentDiffusion:
        if len(read) < 3:
            _with(len(read) + 2).save(tmp_path / "model")
        read.append(folder)
        return load(folder)

    model = versions.read_one_version(lambda: tmp_path / "model", slowly)
    assert len(read) == 4
    assert next(model.autoencoder.parameters()).max().item() == 4

    monkeypatch.setattr(versions, "PATIENCE", 0.1)

    def too_slowly(folder: Path) -> None:
        _with(1).save(folder)

    with pytest.raises(UserError, match="is replaced repeatedly while it is read"):
        versions.read_one_version(lambda: tmp_path / "model", too_slowly)


def test_a_failure_leaves_the_folder_and_nothing_else(tmp_path: Path) -> None:
    _with(1).save(tmp_path / "model")
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "model") as fresh:
        (fresh / "config.yaml").write_text(str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(next(load(tmp_path).autoencoder.parameters()), next(_with(1).autoencoder.parameters()))


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    _with(1).save(tmp_path / "disk" / "model")
    _with(2).save(tmp_path / "model")
    assert (tmp_path / "model").is_symlink()
    assert next(load(tmp_path / "disk" / "model").autoencoder.parameters()).max().item() == 2
