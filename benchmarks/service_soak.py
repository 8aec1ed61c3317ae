"""Ten thousand requests of all protocols against one `sfumato serve`: memory, threads, files, jobs and statuses.

    python -m benchmarks.service_soak [MODEL] [--requests 10000] [--clients 16]

Images of prompts, edits and inpaintings with uploads, cancelled jobs, clients that go away, and wrong requests, mixed
by a seed. After each tenth the service is idle for a moment and its process is looked at.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.service_faults import wrong_body
from benchmarks.service_process import served

PARTS = 10
SIZES = ("", "small ", "large ", "tiny ", "huge ")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "grey")
SHAPES = ("circle", "square", "star", "heart", "triangle", "cross")
GROUNDS = ("", " on a white background", " on a blue background", " above a green square", " beside a red circle")
LONG = 400
"""Steps of a job that is cancelled before its end."""
JSON = {"Content-Type": "application/json"}


@dataclass
class Soak:
    """What the clients share, and what they count.

    Attributes:
        client: of the service.
        side: pixels of a side of the model's images.
        choose: the mixture.
        statuses: answers by kind of request and status.
        problems: what should not have been answered, at most one of a kind and status.
    """

    client: httpx.AsyncClient
    side: int
    choose: random.Random
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: dict[tuple[str, int], str] = field(default_factory=dict)

    async def send(self, kind: str, method: str, path: str, right: int = 2, **content: Any) -> httpx.Response:
        """The answer, counted; a problem unless its status is in the hundreds of `right`."""
        answer = await self.client.request(method, path, **content)
        self.statuses[kind, answer.status_code] += 1
        if answer.status_code // 100 != right:
            self.problems.setdefault((kind, answer.status_code), answer.text[:300])
        return answer

    def image(self, mode: str = "RGB") -> bytes:
        """A PNG of few colours."""
        image = Image.new("RGB", (self.side, self.side), self.choose.choice(["red", "white", "navy"]))
        image.paste("green", (4, 4, self.choose.randrange(6, self.side), self.side // 2))
        if mode == "L":
            image = Image.new("L", image.size)
            image.paste(255, (4, 4, self.side // 2, self.side // 2))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def settings(self) -> dict[str, Any]:
        """A prompt, a seed and few steps."""
        steps = self.choose.choice([1, 1, 2, 4])
        words = [self.choose.choice(each) for each in (SIZES, COLOURS, SHAPES, GROUNDS)]
        prompt = "a {}{} {}{}".format(*words)
        return {"prompt": prompt, "seed": self.choose.randrange(2**31), "steps": steps}


async def openai_images(soak: Soak) -> None:
    """`/v1/images/generations`, as bytes or as an address."""
    body = {**soak.settings(), "n": soak.choose.choice([1, 1, 1, 2])}
    if soak.choose.random() < 0.2:
        answer = await soak.send(
            "openai images", "POST", "/v1/images/generations", json=body | {"response_format": "url"}
        )
        await soak.send("openai url", "GET", httpx.URL(answer.json()["data"][0]["url"]).path)
    else:
        await soak.send("openai images", "POST", "/v1/images/generations", json=body)


async def openai_edits(soak: Soak) -> None:
    """`/v1/images/edits` with an uploaded file."""
    files = {"image": ("image.png", soak.image(), "image/png")}
    data = {name: str(value) for name, value in soak.settings().items()} | {"steps": "2"}
    await soak.send("openai edits", "POST", "/v1/images/edits", data=data, files=files)


async def webui_images(soak: Soak) -> None:
    """AUTOMATIC1111's `txt2img`."""
    body = {**soak.settings(), "sampler_name": soak.choose.choice(["DDIM", "Euler"]), "cfg_scale": 3.0}
    await soak.send("txt2img", "POST", "/sdapi/v1/txt2img", json=body)


async def webui_edits(soak: Soak) -> None:
    """AUTOMATIC1111's `img2img`, half of them with a mask; and a question for the progress."""
    body = {**soak.settings(), "steps": 2, "init_images": [base64.b64encode(soak.image()).decode()]}
    body |= {"width": soak.side, "height": soak.side}
    if soak.choose.random() < 0.5:
        body["mask"] = base64.b64encode(soak.image("L")).decode()
    await asyncio.gather(
        soak.send("img2img", "POST", "/sdapi/v1/img2img", json=body),
        soak.send("progress", "GET", "/sdapi/v1/progress"),
    )


async def own_job(soak: Soak, body: dict[str, Any]) -> None:
    """A job, its events to the end, its first image; some are removed afterwards."""
    job = (await soak.send("job", "POST", "/v1/jobs", json=body)).json()["id"]
    events = (await soak.send("events", "GET", f"/v1/jobs/{job}/events")).text
    if '"state": "done"' not in events:
        soak.problems.setdefault(("job", 0), events[-300:])
    await soak.send("image", "GET", f"/v1/jobs/{job}/images/0")
    if soak.choose.random() < 0.3:
        await soak.send("remove", "DELETE", f"/v1/jobs/{job}")


async def own_images(soak: Soak) -> None:
    """A job of the own protocol."""
    await own_job(soak, {**soak.settings(), "count": soak.choose.choice([1, 3])})


async def own_edits(soak: Soak) -> None:
    """An upload, an edit of it, and sometimes its removal."""
    files = {"file": ("image.png", soak.image(), "image/png")}
    upload = (await soak.send("upload", "POST", "/v1/uploads", files=files)).json()["id"]
    await own_job(soak, {**soak.settings(), "task": "edit", "steps": 2, "image": f"upload:{upload}"})
    if soak.choose.random() < 0.5:
        await soak.send("remove", "DELETE", f"/v1/uploads/{upload}")


async def cancelled(soak: Soak) -> None:
    """A long job that is cancelled, or removed, while it waits or runs."""
    job = (await soak.send("long job", "POST", "/v1/jobs", json=soak.settings() | {"steps": LONG})).json()["id"]
    await asyncio.sleep(soak.choose.choice([0, 0.1, 0.3]))
    if soak.choose.random() < 0.5:
        await soak.send("cancel", "POST", f"/v1/jobs/{job}/cancel")
    else:
        await soak.send("remove", "DELETE", f"/v1/jobs/{job}")


async def gone(soak: Soak) -> None:
    """A client that closes the connection before its answer."""
    path = soak.choose.choice(["/v1/images/generations", "/sdapi/v1/txt2img"])
    sent = soak.client.post(path, json=soak.settings() | {"steps": LONG})
    try:
        await asyncio.wait_for(sent, soak.choose.choice([0.02, 0.1, 0.3]))
    except TimeoutError:
        soak.statuses["gone", 0] += 1


async def wrong(soak: Soak) -> None:
    """A wrong request, or an upload that is no image."""
    if soak.choose.random() < 0.2:
        files = {"file": ("image.png", soak.choose.randbytes(200), "image/png")}
        await soak.send("wrong", "POST", "/v1/uploads", 4, files=files)
        return
    path = soak.choose.choice(["/v1/jobs", "/v1/images/generations"])
    await soak.send("wrong", "POST", path, 4, content=wrong_body(soak.choose), headers=JSON)


MIXTURE: dict[Callable[[Soak], Awaitable[None]], int] = {
    openai_images: 30,
    openai_edits: 10,
    webui_images: 18,
    webui_edits: 8,
    own_images: 10,
    own_edits: 6,
    cancelled: 4,
    gone: 4,
    wrong: 10,
}


async def part(soak: Soak, clients: int, count: int) -> None:
    """`count` requests of the mixture from so many clients."""
    kinds = iter(soak.choose.choices(list(MIXTURE), list(MIXTURE.values()), k=count))

    async def one() -> None:
        for kind in kinds:
            await kind(soak)

    await asyncio.gather(*(one() for _ in range(clients)))


def resident(process: int) -> float:
    """MiB of a process in memory (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def looked_at(address: str, process: int, temporary: Path, out: Path) -> list[str]:
    """The columns of the table: memory, threads, open files, temporary files, jobs known, MiB of results."""
    with httpx.Client(base_url=address, timeout=60) as client:
        jobs = len(client.get("/v1/jobs?limit=1000").json()["jobs"])
    threads = len(list(Path(f"/proc/{process}/task").iterdir()))
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20
    left = len(list(temporary.iterdir()))
    return [f"{resident(process):.0f}", str(threads), str(files), str(left), str(jobs), f"{size:.1f}"]


async def soaked(address: str, choice: argparse.Namespace, look: Callable[[], list[str]]) -> Soak:
    """All requests; prints a row after each tenth."""
    limits = httpx.Limits(max_connections=4 * choice.clients)
    choose = random.Random(0)
    total: Counter[tuple[str, int]] = Counter()
    problems: dict[tuple[str, int], str] = {}
    for number in range(1, PARTS + 1):
        async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
            side = (await client.get("/v1/models")).json()["data"][0]["image_size"][0]
            soak = Soak(client, side, choose, total, problems)
            t_start = time.perf_counter()
            await part(soak, choice.clients, choice.requests // PARTS)
            rate = choice.requests / PARTS / (time.perf_counter() - t_start)
        await asyncio.sleep(1)  # clients that went away are noticed, connections closed
        cells = [f"{number * choice.requests // PARTS:,}", *await asyncio.to_thread(look), f"{rate:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return soak


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("zoo:toy"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    choice = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, temporary = Path(folder) / "out", Path(folder) / "temporary"
        temporary.mkdir()
        with served(choice.model, out, "--out-size", 4, environment={"TMPDIR": str(temporary)}) as (address, process):
            print(
                "| requests | memory (MiB) | threads | open files | temporary | jobs known | results (MiB) | a second |"
            )
            print("|--:|--:|--:|--:|--:|--:|--:|--:|")
            soak = asyncio.run(soaked(address, choice, lambda: looked_at(address, process.pid, temporary, out)))
    kinds = sorted({kind for kind, _ in soak.statuses})
    for kind in kinds:
        found = {status: count for (each, status), count in sorted(soak.statuses.items()) if each == kind}
        print(f"{kind}: {json.dumps(found)}")
    print(f"unexpected answers: {soak.problems or 'none'}; the service ended with {process.returncode}")


if __name__ == "__main__":
    main()
