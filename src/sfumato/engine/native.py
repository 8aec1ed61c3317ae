"""The optional native kernels: compiled once per machine by the system's C++ compiler; everything works without them.

Nothing happens at import. The first use compiles `kernels/*.cpp` (about three seconds) into the user's cache, under a
name that contains the hash of the sources, the compiler's command and the processor's features; later uses load that
file. Without a compiler, on an unwritable cache or with SFUMATO_NATIVE=0, `library()` is None and every caller uses its
plain path.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from torch import Tensor

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-w")
COMPILE_TIMEOUT = 300.0


def library() -> ctypes.CDLL | None:
    """The kernels, or None where they are disabled (SFUMATO_NATIVE=0) or cannot be built."""
    if os.environ.get("SFUMATO_NATIVE", "1") == "0":
        return None
    return _load()


def kernels() -> ctypes.CDLL:
    """The kernels; the caller must have checked that they are available."""
    loaded = _load()
    assert loaded is not None
    return loaded


def pointer(tensor: Tensor | None) -> int | None:
    """A tensor's address for the kernels, None for None."""
    return None if tensor is None else tensor.data_ptr()


def describe() -> str:
    """One line for logs and reports: whether the native kernels are used, and if not why."""
    if os.environ.get("SFUMATO_NATIVE", "1") == "0":
        return "native kernels: off (SFUMATO_NATIVE=0)"
    loaded = _load()
    if loaded is not None:
        return f"native kernels: on ({loaded.sfumato_vector_width()} lanes)"
    return (
        "native kernels: off (no working C++ compiler found)"
        if compiler() is None
        else "native kernels: off (build failed)"
    )


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | None:
    if sys.byteorder != "little" or sys.platform == "win32":
        return None
    try:
        path = _built()
        return None if path is None else _declared(ctypes.CDLL(str(path)))
    except (OSError, RuntimeError, subprocess.SubprocessError, AttributeError):
        return None


def _built() -> Path | None:
    """The compiled library's path; compiles it if it is not in the cache."""
    program = compiler()
    if program is None:
        return None
    sources = sorted((Path(__file__).parent / "kernels").iterdir())
    units = [str(path) for path in sources if path.suffix == ".cpp"]
    digest = hashlib.sha256(repr((program, FLAGS, _processor())).encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    folder = cache()
    target = folder / f"kernels-{digest.hexdigest()[:24]}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Renamed when complete: a second process sees either nothing or the finished file.
        fresh = Path(scratch) / target.name
        command = [program, *FLAGS, "-o", str(fresh), *units]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_TIMEOUT)
        os.replace(fresh, target)
    return target


def compiler() -> str | None:
    """The path of the C++ compiler that builds the kernels; None if there is none."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def cache() -> Path:
    """The folder that keeps compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sfumato" / "native"


def _processor() -> str:
    """The processor's features, on which `-march=native` depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *features])


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, flag, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
    signatures = {
        "sfumato_vector_width": [],
        "sfumato_groupnorm": [flag, *[pointer] * 7, *[number] * 4, flag, real, flag, flag],
        "sfumato_groupnorm_backward": [flag, *[pointer] * 11, *[number] * 4, flag, flag, flag],
        "sfumato_interleave": [*[pointer] * 2, *[number] * 4, flag],
        "sfumato_interleave_backward": [*[pointer] * 2, *[number] * 4, flag],
        "sfumato_layernorm": [flag, *[pointer] * 6, number, number, real, flag],
        "sfumato_layernorm_backward": [flag, *[pointer] * 8, number, number, flag],
        "sfumato_geglu": [flag, *[pointer] * 2, number, number, flag],
        "sfumato_geglu_backward": [flag, *[pointer] * 3, number, number, flag],
        "sfumato_attention": [flag, *[pointer] * 8, real, flag],
        "sfumato_attention_backward": [flag, *[pointer] * 12, real, flag],
        "sfumato_winograd": [*[pointer] * 5, *[number] * 8, flag, flag],
        "sfumato_winograd_gradient": [*[pointer] * 3, *[number] * 8, flag],
    }
    answering = ("sfumato_vector_width", "sfumato_winograd", "sfumato_winograd_gradient")
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = flag if name in answering else None
    return loaded
