"""The lines of docs/service.md, run as they are against a service."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import served, service_of

PAGE = Path(__file__).parents[2] / "docs" / "service.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_page(folders: dict[str, Path], tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("curl")]
    assert len(lines) >= 10
    service = service_of([folders["text"]], tmp_path / "out")
    names = {"JOB": "", "UPLOAD": ""}
    with served(service) as client:
        address = str(client.base_url).rstrip("/")
        for line in lines:
            typed = line.replace("http://127.0.0.1:8188", address).replace("curl -s", "curl -fsS", 1)
            done = subprocess.run(
                typed, shell=True, cwd=tmp_path, env={**os.environ, **names}, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            found = re.match(r'{"id": ?"([0-9a-f]{16})"', done.stdout)
            if found and "/uploads" in line:
                names["UPLOAD"] = found[1]
            elif found and not names["JOB"]:
                names["JOB"] = found[1]
