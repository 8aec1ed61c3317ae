"""A result that is taken and removed at once leaves nothing behind."""

from pathlib import Path
from typing import Any

from serving import done, service_of


def test_a_job_that_is_removed_when_it_is_done_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path)
    publish = service.news.publish

    def removing(job: str, kind: str, data: dict[str, Any]) -> None:
        publish(job, kind, data)
        if kind == "end":
            service.remove(job)

    service.news.publish = removing  # type: ignore[method-assign]
    with service.running():
        (job,) = done(service.submit({"prompt": "a", "steps": 1}))
    assert job.state == "done"
    assert service.store.size == 0
    assert list((tmp_path / "jobs").iterdir()) == []
