"""README and docs compared with the tree: links, paths, commands, Python, worked examples, tables."""

import ast
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import yaml

from sfumato.cli import app
from sfumato.config import parse, zoo_names
from sfumato.model_config import ModelConfig
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from test_imports import ALLOWED, SOURCE

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "docs").glob("add-a-*.md"))
TREES = ("src/", "tests/", "docs/", "recipes/", "benchmarks/", ".ci/")
"""Folders of the repository: what is quoted below one of them must exist."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block; indented blocks have the language ''."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield language, block
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^    \S.*\n?)+", outside, re.MULTILINE):
        yield "", re.sub(r"^    ", "", block, flags=re.MULTILINE)


def quoted(page: Path) -> list[str]:
    """Everything in backticks outside fenced blocks."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", outside)


def command_lines(page: Path) -> list[str]:
    """Each `sfumato …` of blocks and of running text, continued lines joined, comments and placeholders cut."""
    lines = [text for text in quoted(page) if re.match(r"sfumato [a-z-]", text)]
    for language, block in fences(page):
        if language in ("", "bash", "sh", "console"):
            joined = block.replace("\\\n", " ")
            lines += [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    found = (re.sub(r"\s+#.*$", "", line) for line in lines)
    return [re.sub(r"^\S*sfumato ", "sfumato ", line) for line in found if re.match(r"(\.venv/bin/)?sfumato\b ", line)]


# ---- links and paths


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)} links to {target}, which is not there"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{name(page)} links to {target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_are_named_exist(page: Path) -> None:
    if page in EXAMPLES:
        return  # they name the files that they add; what they add to is tested below
    for text in quoted(page):
        path = text.split(" ")[0].split("::")[0]
        if re.fullmatch(r"[\w./-]+\.(py|md|yaml|toml|txt)|[\w./-]+/", path) and "/" in path and "NAME" not in path:
            under_source = SOURCE / path
            if path.startswith(TREES):
                assert (ROOT / path).exists(), f"{name(page)} names {path}, which is not there"
            elif path.split("/")[0] in {room for room in ALLOWED if (SOURCE / room).is_dir()}:
                assert under_source.exists(), f"{name(page)} names {path}, which is not in src/sfumato"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_and_configurations_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"(?:`|^    |^)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{name(page)} names `make {target}`, which the Makefile lacks"
    for config in re.findall(r"zoo:([\w-]+/[\w-]+)", text):
        assert config in zoo_names(), f"{name(page)} names zoo:{config}, which is not in the zoo"


# ---- commands


def refusal(line: str) -> str | None:
    """Why the real command line would not take it, None if it would; nothing is run."""
    command: Any = app.parser
    words = shlex.split(line)[1:]
    while getattr(command, "commands", None):
        if not words:
            return None
        if words[0].startswith("-"):
            known = {text for parameter in command.params for text in parameter.opts} | {"--help"}
            return None if words[0] in known else f"{line!r}: there is no option {words[0]}"
        below = command.commands.get(words[0])
        if below is None:
            return f"{line!r}: there is no command {words[0]!r}, only {', '.join(sorted(command.commands))}"
        command, words = below, words[1:]
    if "--help" in words or not words:
        return None
    known = {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if re.match(r"--?[a-zA-Z]", word) and word.split("=")[0] not in known]
    if unknown:
        return f"{line!r}: {command.name} has no option {unknown[0]}, only {', '.join(sorted(known))}"
    if "…" in words or "..." in words:
        return None
    try:
        command.make_context("sfumato", list(words))
    except Exception as error:  # typer may bring a click of its own, whose errors are other classes
        return f"{line!r}: {error}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_ones_that_the_command_line_takes(page: Path) -> None:
    refused = [why for line in command_lines(page) if (why := refusal(line)) is not None]
    assert not refused, f"{name(page)}:\n" + "\n".join(refused)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("sfumato train autoencoder zoo:emoji/autoencoder --out a train.steps=3", None),
        ("sfumato --version", None),
        ("sfumato train", None),
        ("sfumato tain autoencoder x --out a", "no command 'tain'"),
        ("sfumato train autoencodr x --out a", "no command 'autoencodr'"),
        ("sfumato train autoencoder x --outt a", "no option --outt"),
        ("sfumato train autoencoder x", "out"),
    ],
)
def test_the_check_of_commands_sees_mistakes(line: str, why: str | None) -> None:
    messages = refusal(line)
    assert messages is None if why is None else messages is not None and why in messages


def test_commands_are_found_in_the_pages() -> None:
    assert len(command_lines(ROOT / "README.md")) >= 6
    assert command_lines(ROOT / "docs" / "configuration.md")


# ---- Python and configurations


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles_and_imports_what_exists(page: Path) -> None:
    added = {module_name(block) for _, block in fences(page)}
    for language, block in fences(page):
        if language != "python":
            continue
        tree = ast.parse(block, name(page))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("sfumato")
                and node.module not in added
            ):
                module = __import__(node.module or "", fromlist=["_"])
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name(page)}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_are_valid_and_json_is_well_formed(page: Path) -> None:
    for language, block in fences(page):
        if language == "yaml":
            given = yaml.safe_load(block)
            given["data"] = {"kind": "folder", **given.get("data", {}), "path": "images"}  # as --data does
            parse(given, AutoencoderRun if "model" in given else DiffusionRun, name(page))
        if language == "json":
            assert all(json.loads(line) for line in block.splitlines()), name(page)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tasks").glob("*.md")), ids=name)
def test_entries_of_a_model_s_configuration_that_are_named_exist(page: Path) -> None:
    """`conditioning_metadata.mask` and its like are paths in the `config.yaml` of a model folder."""
    for text in quoted(page):
        assert not re.match(r"inputs\b", text), f"{name(page)} names {text}, which format 2 calls conditioning_metadata"
        if re.fullmatch(r"conditioning_metadata[\w.]*", text):
            model: Any = ModelConfig
            for key in text.split("."):
                assert key in model.model_fields, f"{name(page)} names {text}, but there is no {key}"
                below = [part for part in get_args(model.model_fields[key].annotation) if part is not type(None)]
                model = below[0] if below else model.model_fields[key].annotation


def module_name(block: str) -> str | None:
    """The module of a block that begins with the path of the file it stands for."""
    first = re.match(r"# (src|tests)/([\w/]+)\.py\n", block)
    return first.group(2).replace("/", ".") if first else None


@pytest.mark.parametrize("page", EXAMPLES, ids=name)
def test_worked_examples_pass_their_own_tests(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = 0
    for language, block in fences(page):
        module = module_name(block) if language == "python" else None
        if module is None:
            continue
        made = ModuleType(module)
        monkeypatch.setitem(sys.modules, module, made)
        exec(compile(block, f"{name(page)} ({module})", "exec"), made.__dict__)
        for label, value in list(vars(made).items()):
            if label.startswith("test_"):
                value()
                ran += 1
    assert ran > 0, f"{name(page)} has no test"


@pytest.mark.parametrize("page", EXAMPLES, ids=name)
def test_worked_examples_change_lines_that_are_there(page: Path) -> None:
    for language, block in fences(page):
        if language != "diff":
            continue
        first, *lines = block.splitlines()
        file = re.match(r"# ([\w/.]+\.py)", first)
        assert file, f"{name(page)}: a diff must begin with the path of its file"
        source = (ROOT / file.group(1)).read_text(encoding="utf-8")
        for line in lines:
            if line.startswith((" ", "-")):
                assert line[1:].strip() in source, f"{name(page)}: {file.group(1)} has no line {line[1:]!r}"


# ---- tables


def test_the_tables_of_the_configuration_page_are_the_codes() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "configuration_tables.py"))
    text = made["PAGE"].read_text(encoding="utf-8")
    assert made["page"](text) == text, "python docs/configuration_tables.py writes them anew"


def test_explanations_of_keys_are_of_keys_that_exist_and_lack_one() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "configuration_tables.py"))
    models = {model.__name__: model for _, root in made["ROOTS"] for _, model in made["_sections"](root)}
    for entry in made["MEANINGS"]:
        model, _, key = entry.partition(".")
        assert model in models, f"MEANINGS names {entry}, but no section is a {model}"
        field = models[model].model_fields[key]
        assert not field.description, f"{entry} is explained beside the code"
        assert key not in made["_meanings"](models[model]), f"{entry} is explained beside the code"


def test_every_room_has_a_row_in_the_architecture_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([\w]+)(?:/|\.py)`", rows))
    there = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - named - {"__init__", "__main__"} == set(), "rooms without a row"
    assert named - there == set(), "rows without a room"


def test_the_table_of_the_paper_names_files() -> None:
    text = (ROOT / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (§|App\.|Eq\.)", line)]
    assert len(rows) >= 10
    for row in rows:
        files = re.findall(r"`([\w/]+\.py)`", row)
        assert files, f"no file in the row {row}"
        for file in files:
            assert (SOURCE / file).exists(), f"the table names {file}, which is not in src/sfumato"


def messages_of_the_source() -> list[str]:
    """Every string in the source, an ellipsis in the place of what is filled in."""
    found: list[str] = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_that_are_explained_are_ones_that_are_given() -> None:
    messages = messages_of_the_source()
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 20
    for message in rows:
        for part in filter(lambda part: len(part) > 4, re.split(r"\s*…\s*", message)):
            assert any(part in text for text in messages), f"no message contains {part!r} (of {message!r})"
