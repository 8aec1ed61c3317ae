"""Builds the packages, compares their contents with the checkout, and runs the wheel in an empty environment.

    .venv/bin/python .ci/wheel.py            # what it depends on is linked from this environment: under a minute
    .venv/bin/python .ci/wheel.py --install  # what it depends on is installed anew, with constraints.txt

The environment is outside the checkout and has nothing but the wheel and what it declares. Two runs: with no compiler
on the path (the plain path) and, where the machine has one, with it (the native kernels). Both make an image.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LICENCES = ("LICENSE", "NOTICE")
"""Files that the wheel holds beside the package."""
BESIDE = (*LICENCES, "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "README.md", "SECURITY.md", "constraints.txt")
"""Files of the source package besides the package itself."""
GENERATED = ("PKG-INFO", "setup.cfg", "pyproject.toml", "MANIFEST.in")
SAMPLE = (
    "sample",
    "zoo:toy",
    "a large red circle",
    "-n",
    "2",
    "--steps",
    "4",
    "--seed",
    "3",
    "--precision",
    "float32",
    "--guidance",
    "1.5",
)
COMPILERS = ("c++", "g++", "clang++")


def main() -> None:
    """Raises SystemExit with the reason where something is wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sfumato-wheel-") as scratch:
        place = Path(scratch)
        wheel = build(place)
        python = environment(place / "environment", wheel, "--install" in sys.argv[1:])
        without = images(python, place / "without", {"PATH": str(python.parent)}, kernels="missing")
        if any(shutil.which(name) for name in COMPILERS):
            path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
            compiled = images(python, place / "with", {"PATH": path}, kernels="ok")
            check_alike(without, compiled)
        else:
            print("no compiler on this machine: the kernels were not tried")
    print(f"the wheel works, {time.monotonic() - began:.0f} s")


def build(place: Path) -> Path:
    """The wheel, built from the source package, which is built from the tracked files as they are on the disk."""
    listed = tracked()
    source = place / "source"
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", source)
    (sdist,), (wheel,) = (list((place / "dist").glob(f"*.{end}")) for end in ("tar.gz", "whl"))
    package = {name.removeprefix("src/") for name in listed if name.startswith("src/")}
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    licences = {name.split("/licenses/")[1] for name in names if ".dist-info/licenses/" in name}
    check_names(wheel, inside | licences, package | set(LICENCES))
    with tarfile.open(sdist) as opened:
        files = {member.name.split("/", 1)[1] for member in opened if member.isfile()}
    inside = {name for name in files if name not in GENERATED and ".egg-info/" not in name}
    check_names(sdist, inside, {f"src/{name}" for name in package} | set(BESIDE))
    for path in (sdist, wheel):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")
    return wheel


def tracked() -> list[str]:
    """Paths of the packages' files: those that git tracks, or those that are there where git cannot say."""
    try:
        return run("git", "-c", f"safe.directory={ROOT}", "ls-files", cwd=ROOT).splitlines()
    except (SystemExit, OSError):
        found = [*ROOT.glob("*"), *(ROOT / "src" / "sfumato").rglob("*")]
        files = (path.relative_to(ROOT) for path in found if path.is_file())
        return [str(path) for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc"]


def check_names(archive: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise SystemExit(f"{archive.name} lacks {missing[:9]}, and holds {extra[:9]} too many")


def environment(folder: Path, wheel: Path, install: bool) -> Path:
    """The Python of a new environment with the wheel and what it depends on, extras left out."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "-q")
    if install:
        run(*pip, "-c", ROOT / "constraints.txt", wheel)
        return python
    run(*pip, "--no-deps", "--no-index", wheel)
    there = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    for name in sorted(closure("sfumato")):
        link(name, Path(there))
    return python


def closure(name: str) -> set[str]:
    """The distributions that one needs, without its extras."""
    found: set[str] = set()
    todo = [Requirement(name)]
    while todo:
        wanted = todo.pop()
        for text in distribution(wanted.name).requires or []:
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is not None and not any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                continue
            if canonicalize_name(needed.name) not in found:
                found.add(canonicalize_name(needed.name))
                todo.append(needed)
    return found


def link(name: str, there: Path) -> None:
    """Links the top-level entries of an installed distribution into another environment."""
    here = Path(sysconfig.get_path("purelib"))
    tops = {file.parts[0] for file in distribution(name).files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (there / top).exists():
            (there / top).symlink_to(here / top)


def images(python: Path, folder: Path, variables: dict[str, str], kernels: str) -> list[Path]:
    """The images that the installed command samples, in a folder of its own and with these variables alone."""
    folder.mkdir()
    variables = {**variables, "HOME": str(folder), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    command = python.parent / "sfumato"
    where = run(python, "-c", "import sfumato; print(sfumato.__file__)", cwd=folder, env=variables).strip()
    if not Path(where).is_relative_to(python.parents[1]):
        raise SystemExit(f"the environment imports {where}, not the wheel")
    version = run(command, "--version", cwd=folder, env=variables).strip()
    found = json.loads(run(command, "doctor", "--json", cwd=folder, env=variables))
    if found["kernels"]["state"] != kernels:
        raise SystemExit(f"kernels should be {kernels}, but are {found['kernels']}")
    began = time.monotonic()
    run(command, *SAMPLE, "--out", folder / "samples", cwd=folder, env=variables)
    made = [folder / "samples" / f"{number:04}.png" for number in range(2)]
    if not all(path.is_file() for path in made):
        raise SystemExit(f"{' and '.join(path.name for path in made)} are not in {folder / 'samples'}")
    print(f"{version}, kernels {found['kernels']['found']}: two images, {time.monotonic() - began:.1f} s")
    return made


def check_alike(one: list[Path], other: list[Path]) -> None:
    """Both paths compute the same image, up to rounding to eight bits."""
    import numpy as np
    from PIL import Image

    for first, second in zip(one, other, strict=True):
        a, b = (np.asarray(Image.open(path).convert("RGB"), np.int16) for path in (first, second))
        if np.abs(a - b).max() > 2 or a.std() < 10:
            raise SystemExit(f"{first.name} differs by {np.abs(a - b).max()} of 255 with the kernels")


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The output of a command. Raises SystemExit with what it printed where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
