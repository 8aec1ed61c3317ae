"""The lines of docs/tutorials/serving.md, run against a service of zoo:toy."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tutorials import PAGES, blocks

pytestmark = pytest.mark.docs
ADDRESS = "http://127.0.0.1:8188"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_tutorial_about_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fastapi", "openai"):
        pytest.importorskip(name)
    from service.serving import served, service_of

    monkeypatch.chdir(tmp_path)
    with served(service_of([Path("zoo:toy")], tmp_path / "out")) as client:
        address = str(client.base_url).rstrip("/")
        for kind, block in blocks(PAGES / "serving.md"):
            here = block.replace(ADDRESS, address)
            if kind == "python":
                exec(compile(here, "serving.md", "exec"), {})
                assert Path("ring.png").stat().st_size > 0
            for line in here.splitlines() if kind == "sh" else ():
                if line.startswith("curl"):
                    done = subprocess.run(
                        line.replace("curl -s", "curl -fsS", 1), shell=True, capture_output=True, text=True, timeout=60
                    )
                    assert done.returncode == 0, (line, done.stderr)
