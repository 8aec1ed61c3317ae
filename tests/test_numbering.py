"""Numbered images: no two commands take one number."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from command_line import Command, Runs
from forks import Forks
from sfumato import checkpoint
from sfumato.cli.numbering import next_number, number_of, numbered, sheets
from sfumato.images import save_first_free
from sfumato.pipeline import pipeline

WRITE = """
import sys, time, torch
from pathlib import Path
from sfumato import images
from sfumato.cli.numbering import next_number, numbered, sheets
folder, go, colour = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
image = torch.full((3, 8, 8), colour, dtype=torch.uint8)
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
for _ in range(60):
    images.save_first_free(numbered(folder, next_number(folder)), image, {"colour": colour})
    images.save_first_free(sheets(folder, 0), image)
"""


def test_two_commands_in_one_folder_lose_no_image(tmp_path: Path, forks: Forks) -> None:
    folder, go = tmp_path / "out", tmp_path / "go"
    folder.mkdir()
    writers = [forks.start(WRITE, [folder, go, colour]) for colour in (40, 200)]
    for writer in writers:
        writer.wait_for("ready")
    go.touch()
    assert [writer.wait() for writer in writers] == [0, 0]
    images = sorted(path for path in folder.iterdir() if not path.name.startswith("grid"))
    assert [path.name for path in images] == [f"{n:04d}.png" for n in range(120)]
    colours = [Image.open(path).getpixel((0, 0)) for path in images]
    assert colours.count((40, 40, 40)) == colours.count((200, 200, 200)) == 60
    assert len(list(folder.glob("grid*.png"))) == 120
    assert not list(folder.glob(".*"))


def test_sampling_beside_another_command(command: Command, runs: Runs, tmp_path: Path, monkeypatch) -> None:
    """Another takes numbers, sheets and strips between this one's looking and its writing."""
    theirs = {name: name.encode() for name in ("0000.png", "0002.png", "grid-0001.png", "strip-0001.png")}
    sample_latents = pipeline.sample_latents

    def meanwhile(*arguments):
        for name, data in theirs.items():
            (tmp_path / name).write_bytes(data)
        return sample_latents(*arguments)

    monkeypatch.setattr(pipeline, "sample_latents", meanwhile)
    done = command("sample", runs.plain, "-n", 2, "--steps", 2, "--strip", 2, "--out", tmp_path)
    assert done.code == 0, done.err
    assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in theirs) == [
        "0001.png", "0003.png", "grid-0001-2.png", "strip-0001-2.png"]  # fmt: skip
    assert "0001.png to 0003.png; sheet: " in done.out


def test_numbers_of_images_that_are_no_png_count(tmp_path: Path) -> None:
    deep = Image.new("F", (4, 4))
    (tmp_path / "0003.png").write_bytes(b"")
    path = save_first_free(numbered(tmp_path, next_number(tmp_path), ".tif"), deep)
    assert (path.name, number_of(path), next_number(tmp_path)) == ("0004.tif", 4, 5)
    assert next_number(tmp_path / "none") == 0


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    (tmp_path / "grid.png").write_bytes(b"mine")
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert save_first_free(sheets(tmp_path, 0), image).name == "grid-0000.png"
    assert save_first_free(sheets(tmp_path, 0), image).name == "grid-0000-2.png"
    assert (tmp_path / "grid.png").read_bytes() == b"mine"
    assert Image.open(tmp_path / "grid-0000-2.png").size == (4, 4)
    assert not list(tmp_path.glob(".*"))


def test_a_write_that_fails_takes_no_number(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        checkpoint.write_first_free(numbered(tmp_path, 0), lambda path: path.write_text(str(1 / 0)))
    assert list(tmp_path.iterdir()) == []
