"""Memory and time of reading unusual and very large images, each alone and all in one folder.

    python -m benchmarks.image_cases --images cases

writes the images once (some 1.5 GB, a few minutes) and prints the peak of resident memory above the start and the
processor time, for each image in a process of its own and for the whole folder, read as `sfumato data` reads it. Large
images are at the limits of `sfumato.data.reading`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.survey import survey

Save = Callable[[Path], object]


def texture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth texture with some noise, repeated in tiles of 512."""
    y, x = np.mgrid[:512, :512] * (2 * np.pi / 512)
    waves = np.stack([np.sin(x) * np.cos(y), np.cos(2 * x + y), np.sin(x - y)], -1)
    noise = np.random.default_rng(0).normal(0, 2, waves.shape)
    tile = Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)).convert(mode)
    image = Image.new(mode, (width, height))
    for top in range(0, height, 512):
        for left in range(0, width, 512):
            image.paste(tile, (left, top))
    return image


def _saver(image: Callable[[], Image.Image], **options: object) -> Save:
    return lambda path: image().save(path, **options)  # type: ignore[arg-type]


def _wide(width: int, height: int, kind: str) -> Image.Image:
    grey = np.asarray(texture(width, height, "L"))
    return Image.fromarray(grey.astype(np.float32) / 255 if kind == "float" else grey.astype(np.uint16) * 257)


CASES: dict[str, Save] = {
    "one-column.png": _saver(lambda: Image.new("RGB", (1, 4000))),
    "photo-111.png": _saver(lambda: texture(11_100, 10_000), compress_level=1),
    "flat-111.png": _saver(lambda: Image.new("RGB", (11_100, 10_000), "red"), compress_level=1),
    "alpha-60.png": _saver(lambda: texture(10_000, 6000, "RGBA"), compress_level=1),
    "grey16-50.png": _saver(lambda: _wide(10_000, 5000, "16"), compress_level=1),
    "flat-350.png": _saver(lambda: Image.new("RGB", (25_000, 14_000), "red"), compress_level=1),
    "palette-111.gif": _saver(lambda: Image.new("P", (11_100, 10_000), 3)),
    "photo-300.jpg": _saver(lambda: texture(20_000, 15_000), quality=85),
    "progressive-89.jpg": _saver(lambda: texture(9450, 9450), quality=85, progressive=True),
    "progressive-444-44.jpg": _saver(lambda: texture(8000, 5500), quality=85, progressive=True, subsampling=0),
    "lzw-111.tif": _saver(lambda: texture(11_100, 10_000), compression="tiff_lzw", strip_size=11_100 * 3 * 16),
    "one-strip-26.tif": _saver(lambda: texture(5300, 5000), compression="tiff_lzw", strip_size=2**30),
    "raw-178.tif": _saver(lambda: texture(17_800, 10_000)),
    "fax-111.tif": _saver(lambda: Image.new("1", (11_100, 10_000)), compression="group4", strip_size=2**18),
    "float-15.tif": _saver(lambda: _wide(5000, 3100, "float")),
    "raw-178.ppm": _saver(lambda: texture(17_800, 10_000)),
    "photo-16.webp": _saver(lambda: texture(5000, 3300), quality=80, method=0),
    "photo-26.avif": _saver(lambda: texture(6000, 4400), quality=60, speed=10),
    "photo-14.jp2": _saver(lambda: texture(4400, 3100), quality_mode="rates", quality_layers=[20]),
}


def made(folder: Path) -> list[str]:
    """The names of the cases in the folder, after writing those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, save in CASES.items():
        if not (folder / name).exists():
            print(f"writing {name}", file=sys.stderr)
            draft = folder / f".draft-{name}"
            save(draft)
            draft.rename(folder / name)
    return list(CASES)


def peak() -> int:
    """The peak of this process's resident memory in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measured(folder: Path) -> dict[str, object]:
    """Peak memory above the start in MiB, processor time in seconds, and what could not be read."""
    tiny = folder.parent / f"tiny-{os.getpid()}"
    tiny.mkdir()
    Image.new("RGB", (8, 8)).save(tiny / "x.png")
    survey(FolderDataset(FolderConfig(path=tiny)))  # what is loaded only once counts as the start
    (tiny / "x.png").unlink()
    tiny.rmdir()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, t_start = peak(), time.process_time()
    try:
        seen = survey(FolderDataset(FolderConfig(path=folder, size=256)))
        out = dict(seen.unreadable)
    except Exception as error:
        out = {"": str(error)}
    return {"mib": (peak() - before) / 2**20, "seconds": time.process_time() - t_start, "left out": out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="where the images are, or are written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="some of the cases")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.images)))
        return
    names = [name for name in made(options.images) if not options.only or name in options.only]
    for name in names:
        alone = options.images / f".alone-{name}"
        alone.mkdir(exist_ok=True)
        if not (alone / name).exists():
            os.link(options.images / name, alone / name)
        _print(name, alone)
    if not options.only:
        _print("the whole folder", options.images)


def _print(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.image_cases", "--images", str(folder), "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"{name:20} +{found['mib']:4.0f} MiB {found['seconds']:6.2f} s  {found['left out'] or ''}", flush=True)


if __name__ == "__main__":
    main()
