"""What becomes of the service when it is killed in the middle of a job, and when requests are wrong.

python -m benchmarks.service_faults MODEL [--requests 100]
"""

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks import service_process

LONG = {"steps": 1000, "seed": 1}
TEXTS = ["", "nope", "\0", "\ud800", "a" * 20_000, "file:/etc/passwd", "upload:0", "data:image/png;base64,!", "<b>"]
VALUES: list[Any] = [*TEXTS, None, True, -1, 0, 10**30, 1e308, [], [[]], {}, {"a": 1}, [None], [-1, 0], ["x", 1]]
FIELDS = ("task", "model", "prompt", "count", "seed", "seeds", "size", "steps", "sampler", "guidance", "image", "mask")
BODIES = (b"{", b"[]", b"null", b"\xff\xfe", b'{"steps": NaN}', b'{"steps": 1e999}', b"[" * 50_000, b'{"a": ' * 9_000)


@contextmanager
def served(model: Path, out: Path) -> Iterator[tuple[httpx.Client, "subprocess.Popen[str]"]]:
    """A client of a service, and its process."""
    with (
        service_process.served(model, out) as (address, process),
        httpx.Client(base_url=address, timeout=300) as client,
    ):
        yield client, process


def wrong_body(choose: random.Random) -> bytes:
    """A request with a wrong value and a field that there is not."""
    return json.dumps({choose.choice(FIELDS): choose.choice(VALUES), "no such field": 1}).encode()


def waited(client: httpx.Client, job: str, states: tuple[str, ...]) -> dict[str, Any]:
    """The job, once it has one of the states."""
    while True:
        view: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
        if view["state"] in states:
            return view
        time.sleep(0.05)


def killed(model: Path) -> None:
    """Kills a service in the middle of a job, starts it again on the same folder, and says what is there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with served(model, out) as (client, process):
            first = client.post("/v1/jobs", json={"steps": 2}).json()["id"]
            image = waited(client, first, ("done",))["images"][0]["url"]
            before = client.get(image).content
            lost = client.post("/v1/jobs", json=LONG).json()["id"]
            waiting = client.post("/v1/jobs", json={"steps": 3}).json()["id"]
            while (step := waited(client, lost, ("running",))["step"]) == 0:
                time.sleep(0.05)
            process.kill()
        with served(model, out) as (client, _):
            kept = client.get(image).content == before
            status = client.get(f"/v1/jobs/{lost}").status_code
            later = waited(client, waiting, ("done", "failed"))
            again = waited(client, client.post("/v1/jobs", json={"steps": 2}).json()["id"], ("done", "failed"))
        print(
            f"killed at step {step} of {LONG['steps']}: the finished job's image is {'the same' if kept else 'LOST'},"
        )
        print(f"the job that ran answers {status}, the one that waited is {later['state']}, a new one {again['state']}")


def wrong(model: Path, count: int) -> None:
    """Sends wrong requests, and counts the answers; prints those that are no refusal of one sentence."""
    choose = random.Random(0)
    answers: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder, served(model, Path(folder) / "out") as (client, process):
        for number in range(count):
            body = BODIES[number] if number < len(BODIES) else wrong_body(choose)
            path = choose.choice(["/v1/jobs", "/v1/images/generations"])  # the third protocol ignores unknown fields
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            answers[answer.status_code] = answers.get(answer.status_code, 0) + 1
            message = str(answer.json().get("error", answer.json()))
            if not 400 <= answer.status_code < 500 or "Traceback" in answer.text or "\n" in message:
                print(f"{path} {body[:80]!r}: {answer.status_code} {answer.text[:200]}")
        print(f"{count} wrong requests: {answers}; then /health is {client.get('/health').json()}, {process.poll()=}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=100)
    choice = parser.parse_args()
    killed(choice.model)
    wrong(choice.model, choice.requests)


if __name__ == "__main__":
    main()
