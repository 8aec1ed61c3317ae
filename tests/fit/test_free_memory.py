"""Free memory of machines and containers, as Linux tells it in files."""

from pathlib import Path

import pytest

from sfumato.fit.memory import free_memory
from sfumato.pipeline.memory import machine_memory

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemFree: 9 kB\nMemAvailable:   {12 * 2**20} kB\n"}
V2 = {
    "proc/self/cgroup": "0::/jobs/mine\n",
    "sys/fs/cgroup/jobs/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/jobs/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/jobs/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
    "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
    "sys/fs/cgroup/jobs/mine/memory.current": f"{GIB}\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/docker/7f\n4:memory:/docker/7f\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",  # as a container sees its own group
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MACHINE, 12 * GIB),
        ({**MACHINE, **V2}, 2 * GIB),  # 4 - 3 used + 1 that is kept of files; the group itself has no limit
        ({**MACHINE, **V1}, 5 * GIB // 2),
        ({**MACHINE, **V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 12 * GIB),
        ({**MACHINE, **V2, "sys/fs/cgroup/jobs/memory.current": f"{6 * GIB}\n"}, 0),
        ({**MACHINE, "proc/self/cgroup": "0::/../..\nmalformed\n"}, 12 * GIB),
    ],
)
def test_the_least_of_machine_and_groups_is_free(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert free_memory(write(tmp_path, files)) == free


def test_without_such_files_all_of_the_memory_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == machine_memory()
