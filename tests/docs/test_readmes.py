"""README.md and README.zh.md: the same commands, numbers, links and images, in two languages."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"


def code(text: str) -> list[str]:
    """Every block of code, indented or fenced."""
    return re.findall(r"^```.*?^```$|(?:^    [^\n]+\n)+", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$|(?:^    [^\n]+\n)+", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> Counter[str]:
    return Counter(target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("README"))


def numbers(text: str) -> Counter[str]:
    without_links = re.sub(r"\]\([^)]+\)", "]", prose(text))
    return Counter(re.findall(r"(?<![\w.])\d[\d,.]*\d|(?<![\w.])\d", without_links))


@pytest.mark.parametrize("part", [code, links, numbers, lambda text: re.findall(r"`[^`\n]+`", prose(text))])
def test_both_languages_agree(part: object) -> None:
    assert callable(part)
    english, chinese = part(ENGLISH.read_text(encoding="utf-8")), part(CHINESE.read_text(encoding="utf-8"))
    assert Counter(english) == Counter(chinese)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_the_first_screen(page: Path) -> None:
    """The other language, an image, and where a newcomer's questions are answered, before the first heading."""
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    first = text.split("\n## ")[0]
    other = CHINESE if page == ENGLISH else ENGLISH
    assert f"]({other.name})" in first
    assert "![" in first
    assert "docs/questions.md" in first
