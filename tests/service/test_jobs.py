"""Jobs without HTTP: every task, batches across users, cancelling, bounds."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import done, service_of

import sfumato
from sfumato.images import to_pil
from sfumato.sampling.loop import Step
from sfumato.service.errors import RefusedError
from sfumato.service.jobs import Job
from sfumato.service.service import Service


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def hole(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, (4, 4, 12, 10))
    return mask


IMAGE, MASK = data_url(noise(24, 16)), data_url(hole(24, 16))
TASKS: dict[str, dict[str, Any]] = {
    "sample": {"model": "text", "prompt": ["a red apple", "two blue discs"], "seeds": [4, 9], "negative": "a hill"},
    "label": {"model": "label", "label": [0, "square"], "guidance": [2.0, 3.0]},
    "inpaint": {"model": "masked", "image": IMAGE, "mask": MASK},
    "inpaint-any": {"model": "text", "image": IMAGE, "mask": MASK, "prompt": "a red apple", "feather": 1},
    "outpaint": {"model": "masked", "image": IMAGE, "extend": [4, 0, 8, 0]},
    "edit": {"model": "text", "image": IMAGE, "prompt": "two blue discs", "style": IMAGE, "count": 2},
    "upscale": {"model": "small", "image": data_url(noise(8, 8))},
    "semantic": {"model": "map", "map": data_url(Image.new("L", (24, 16), 3))},
    "layout": {"model": "boxes", "boxes": [{"label": 1, "box": [0.1, 0.1, 0.5, 0.5]}]},
    "interpolate": {"model": "text", "prompt": ["a red apple", "two blue discs"], "seeds": [1], "frames": 3},
}
COUNT = {"sample": 2, "label": 2, "edit": 2, "interpolate": 3}
SIZE = {"outpaint": (36, 16), "upscale": (16, 16)}


def body(name: str, **changes: Any) -> dict[str, Any]:
    task = {"label": "sample", "inpaint-any": "inpaint"}.get(name, name)
    return {"task": task, "steps": 2, **TASKS[name], **changes}


def pixels(service: Service, job: Job, index: int = 0) -> np.ndarray[Any, Any]:
    with Image.open(service.image(job.id, index)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders[TASKS[name]["model"]]], tmp_path)
    with service.running():
        (job,) = done(service.submit(body(name)))
    assert job.state == "done", job.error
    assert [one.index for one in job.results] == list(range(COUNT.get(name, 1)))
    with Image.open(service.image(job.id, 0)) as image:
        assert image.size == SIZE.get(name, (24, 16))
    if name == "inpaint":
        outside = np.asarray(hole(24, 16)) == 0
        assert (pixels(service, job)[outside] == np.asarray(noise(24, 16))[outside]).all()


def test_an_image_is_that_of_python(folders: dict[str, Path], tmp_path: Path) -> None:
    model = sfumato.load(folders["text"])
    expected = model.sample_tensor("a red apple", seeds=[7, 8], steps=3, sampler="ddim:eta=0.5", batch=1)
    service = service_of([folders["text"]], tmp_path)
    with service.running():
        (job,) = done(
            service.submit({"prompt": "a red apple", "seed": 7, "count": 2, "steps": 3, "sampler": "ddim:eta=0.5"})
        )
    for index in range(2):
        difference = np.abs(pixels(service, job, index).astype(int) - np.asarray(to_pil(expected[index])).astype(int))
        assert difference.max() <= 1  # packed networks round differently


@pytest.mark.parametrize(("name", "lanes"), [("sample", 0), ("sample", 3), ("inpaint-any", 3), ("interpolate", 3)])
def test_a_seed_gives_the_same_bytes_in_any_batch(
    name: str, lanes: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"models": [folders[TASKS[name]["model"]]], "lanes": lanes}
    others = {} if name == "interpolate" else {"seeds": None, "seed": 50}
    others = {key: value for key, value in others.items() if key in ("seed",) or name == "sample"}
    alone = service_of(out=tmp_path / "alone", **settings)
    with alone.running():
        (expected,) = done(alone.submit(body(name)))
    together = service_of(out=tmp_path / "together", **settings)
    crowd = [together.submit(body(name, **others)) for _ in range(1)]
    job = together.submit(body(name))
    crowd += [together.submit(body(name, **others)) for _ in range(1)]
    with together.running():  # all of them wait already
        done(job, *crowd)
    for index in range(job.count):
        assert together.image(job.id, index).read_bytes() == alone.image(expected.id, index).read_bytes()
    if lanes:
        rows = together.metrics.page(0, 0, 0, 0).decode()
        assert 'sfumato_batch_images_bucket{le="2.0"} 0.0' in rows  # nobody was computed alone


def test_a_job_of_few_images_does_not_wait_for_one_of_many(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path, batch=1)
    many = service.submit({"prompt": "a red apple", "count": 4, "steps": 1})
    few = service.submit({"prompt": "a red apple", "steps": 2})
    with service.running():
        done(few, many)
    assert few.finished is not None
    assert many.finished is not None
    assert few.finished < many.finished


def test_a_running_job_is_cancelled_between_steps(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of([folders["text"]], tmp_path)
    jobs: list[Job] = []
    stepped = service.worker.watcher.stepped

    def cancelling(job: Job, step: Step) -> None:
        stepped(job, step)
        if job is jobs[0] and step.index == 1:
            service.cancel(job.id)

    object.__setattr__(service.worker.watcher, "stepped", cancelling)
    jobs.append(service.submit({"prompt": "a red apple", "steps": 500}))
    waiting = service.submit({"prompt": "a red apple", "steps": 3})
    removed = service.submit({"prompt": "a red apple", "steps": 4})
    assert service.cancel(removed.id)["state"] == "cancelled"
    with service.running():
        done(*jobs, waiting)
    assert jobs[0].state == "cancelled"
    assert jobs[0].step == 2
    assert waiting.state == "done"
    assert not any(service.store.path("jobs", job.id, "0.png").exists() for job in (*jobs, removed))


def test_a_job_has_so_much_time(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path, seconds=1)
    with service.running():
        (job,) = done(service.submit({"prompt": "a red apple", "steps": 1000}))
    assert job.state == "failed"
    assert job.error == "the job took longer than the 1 seconds allowed here"


def test_a_full_queue_refuses(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path, queue=2)
    for _ in range(2):
        service.submit({"prompt": "a"})
    with pytest.raises(RefusedError, match="2 jobs are waiting") as refused:
        service.submit({"prompt": "a"})
    assert refused.value.status == 429
    assert refused.value.retry_after == 2


def test_stopping_finishes_what_runs_and_refuses_the_rest(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path)
    running = service.submit({"prompt": "a red apple", "steps": 12})
    waiting = service.submit({"prompt": "a red apple", "steps": 13})
    with service.running():
        while running.step < 2:
            assert not running.over
    assert running.state == "done"
    assert waiting.state == "failed"
    assert "stopping" in str(waiting.error)
    with pytest.raises(RefusedError, match="stopping") as refused:
        service.submit({"prompt": "a"})
    assert refused.value.status == 503


def test_results_are_bounded_and_the_oldest_go_first(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"]], tmp_path)
    service.store.limit = 5_000
    with service.running():
        jobs = [done(service.submit({"prompt": "a", "steps": 1, "seed": seed}))[0] for seed in range(7)]
    assert service.store.size <= 5_000
    with pytest.raises(RefusedError, match="is not here"):
        service.view(jobs[0].id)
    assert service.image(jobs[-1].id, 0).exists()
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == set(service.store.names("jobs"))


def test_finished_jobs_are_there_after_a_restart(folders: dict[str, Path], tmp_path: Path) -> None:
    before = service_of([folders["text"]], tmp_path)
    with before.running():
        (job,) = done(before.submit({"prompt": "a", "steps": 1}))
    (tmp_path / "jobs" / ("0" * 16)).mkdir()  # of a process that was killed
    again = service_of([folders["text"]], tmp_path)
    assert again.view(job.id) == job.view(None)
    assert again.image(job.id, 0).exists()
    with again.running():
        assert again.store.names("jobs") == [job.id]


def test_jobs_that_waited_when_a_service_was_killed_are_done_by_the_next(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    killed = service_of([folders["text"]], tmp_path)  # it never computes
    begun, cancelled, brief, waiting = (
        killed.submit(body("sample"), lasting=each) for each in (True, True, False, True)
    )
    killed.worker.watcher.began(begun)
    killed.cancel(cancelled.id)
    again = service_of([folders["text"]], tmp_path)
    with again.running():
        taken = again.job(waiting.id)
        assert taken is not None
        assert [again.job(each.id) for each in (begun, cancelled, brief)] == [None] * 3
        done(taken)
    assert (taken.state, len(taken.results)) == ("done", 2)
    assert again.store.names("jobs") == [waiting.id]
    assert {path.name for path in (tmp_path / "jobs" / waiting.id).iterdir()} == {"0.png", "1.png", "job.json"}


def test_the_least_recently_used_model_is_put_out(folders: dict[str, Path], tmp_path: Path) -> None:
    service = service_of([folders["text"], folders["label"]], tmp_path, memory=1)
    with service.running():
        for name in ("text", "label", "text"):
            done(service.submit({"model": name, "steps": 1}))
            assert [one["id"] for one in service.models() if one["loaded"]] == [name]
