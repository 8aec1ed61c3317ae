"""Memory that a training can still take: of the machine, and of the control groups that limit the process.

A container's limit is that of a control group; the machine's free memory does not show it. Files: proc(5), and the
kernel's documents cgroup-v1/memory and cgroup-v2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sfumato.pipeline.memory import machine_memory


@dataclass(frozen=True)
class _Files:
    """Files of a version of control groups: limit and use in bytes, the line of memory.stat that can be freed."""

    mount: str
    limit: str
    used: str
    freeable: str


_FIRST = _Files("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free or can be freed, of the machine and of each of the process's control groups, the least.

    All of the machine's memory if the system does not report the free part. `root` is the folder that has proc and sys.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    found = _numbers(root / "proc/meminfo")
    return 1024 * found["MemAvailable"] if "MemAvailable" in found else machine_memory()


def _of_groups(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _FIRST if controllers else _SECOND
        group = PurePosixPath(path)
        for each in (group, *group.parents):
            if ".." in each.parts:  # outside of what a container sees
                continue
            left = _left(root / files.mount / str(each).lstrip("/"), files)
            if left is not None:
                yield left


def _left(group: Path, files: _Files) -> int | None:
    """Memory that a group may still use; None where it has no limit."""
    limit, used = _text(group / files.limit).strip(), _text(group / files.used).strip()
    if not limit.isdecimal() or not used.isdecimal():  # "max", or no such file
        return None
    freeable = _numbers(group / "memory.stat").get(files.freeable, 0)
    return max(0, int(limit) - int(used) + freeable)


def _numbers(path: Path) -> dict[str, int]:
    """Lines such as `MemAvailable: 8 kB` and `inactive_file 8` as names and numbers."""
    words = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
