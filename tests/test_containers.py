"""The Dockerfiles and the compose file, as far as they can be checked without Docker."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sfumato.cli.serve import TOKEN
from sfumato.service.settings import ServiceSettings
from test_docs import refusal

ROOT = Path(__file__).parents[1]
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PORT = str(ServiceSettings().port)


def instructions(name: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each line, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def of(name: str, instruction: str) -> list[str]:
    return [arguments for kind, arguments in instructions(name) if kind == instruction]


def command(entry: list[str], arguments: list[str]) -> str:
    return shlex.join([*entry, *arguments])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_is_not_ignored(name: str) -> None:
    copied = {source for line in of(name, "COPY") for source in line.split()[:-1]}
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert copied == {entry.removeprefix("!") for entry in kept if entry.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)
    needed = {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"], "constraints.txt"}
    assert needed <= copied


@pytest.mark.parametrize("name", DOCKERFILES)
def test_instructions_extras_and_command_are_known(name: str) -> None:
    assert {kind for kind, _ in instructions(name)} <= INSTRUCTIONS
    kinds = [kind for kind, _ in instructions(name)]
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert of(name, "USER") == ["sfumato"]
    assert of(name, "EXPOSE") == [PORT]
    assert f":{PORT}/health" in of(name, "HEALTHCHECK")[0]
    extras = re.search(r'"\.\[([\w,]+)\]"', " ".join(of(name, "RUN")))
    assert extras is not None
    assert set(extras.group(1).split(",")) <= set(PROJECT["optional-dependencies"])
    (entry,), (default,) = of(name, "ENTRYPOINT"), of(name, "CMD")
    assert json.loads(entry) == list(PROJECT["scripts"])
    assert refusal(command(json.loads(entry), json.loads(default))) is None


@pytest.mark.parametrize("name", DOCKERFILES)
def test_commands_in_the_comments_are_ones_that_the_command_line_takes(name: str) -> None:
    shown = re.findall(r"^#.*docker run .*? sfumato(?::cuda)? (\w.*)$", (ROOT / name).read_text(), re.MULTILINE)
    assert shown
    assert [why for line in shown if (why := refusal(f"sfumato {line}"))] == []


def test_the_compose_file_starts_the_service() -> None:
    compose: Any = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose["services"]) == {"sfumato", "sfumato-cuda"}
    for service in compose["services"].values():
        build = service["build"]
        assert (ROOT / ("Dockerfile" if isinstance(build, str) else build["dockerfile"])).is_file()
        assert refusal(command(["sfumato"], service["command"])) is None
        assert set(service["environment"]) == {TOKEN}
        assert service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
        named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")}
        assert named <= set(compose["volumes"])


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    """`make test-wheel` builds it; here the patterns of pyproject.toml are compared with the tracked files."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    package = ROOT / "src" / "sfumato"
    packed = {path for pattern in patterns["package-data"]["sfumato"] for path in package.glob(pattern)}
    listed = subprocess.run(["git", "ls-files", "src/sfumato"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {ROOT / name for name in listed.stdout.splitlines() if not name.endswith(".py")}
    assert {path for path in files if path.exists()} - packed == set()
    folders = {path.parent for path in package.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_page_on_installing_lists_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page[page.index("## Extras") : page.index("## Docker")], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(PROJECT["optional-dependencies"])
