"""Memory that a service keeps for answered requests."""

import ctypes
import gc
import weakref
from pathlib import Path

import pytest
from serving import done, service_of
from test_jobs import IMAGE

from sfumato.service.checking import job_of

FIELDS = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"


class HeapInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def in_use() -> int:
    """Bytes that the C library has given out and not got back: also what Python does not know of."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("this C library does not count its memory")
    mallinfo.restype = HeapInfo
    gc.collect()
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def test_a_request_that_is_checked_leaves_no_memory_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path)

    def check(count: int) -> None:
        for seed in range(count):
            job_of({"prompt": "a red apple", "seed": seed}, service.registry, service.references, service.settings)

    check(30)
    before = in_use()
    check(80)
    assert (in_use() - before) / 80 < 200  # a tokenizer for each would leave 500


def test_of_a_job_that_is_over_only_its_answer_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path)
    with service.running():
        (job,) = done(service.submit({"task": "edit", "image": IMAGE, "prompt": "a red apple", "steps": 2}))
        view, kept = job.view(None), weakref.ref(job)
        done(service.submit({"steps": 1}))  # the worker has turned to another
    del job
    gc.collect()
    assert kept() is None
    assert service.view(view["id"]) == view
    assert len(view["request"]["image"]) < 60
