"""What the site needs beyond its Markdown: pages made from the code, the repository's own pages, links out of docs/.

mkdocs calls these functions (`hooks` in mkdocs.yml). Generated pages exist only in the site, so they cannot go stale.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import api_pages
import commands_page
import http_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
"""Pages at the root of the repository, and what they are called in the site."""
SOURCES = "repository"
"""The folder of the site for other files of the repository that a page links to."""
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*stylesheet"""
)
"""What a browser would load from another host while it shows a page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the repository's."""
    made = {
        "reference/command-line.md": commands_page.page(),
        "reference/http.md": http_page.page(),
        **api_pages.pages(),
    }
    for name, target in PAGES.items():
        made[target] = _moved((ROOT / name).read_text(encoding="utf-8"), "", target)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for path in _linked_sources(files):
        file = File.generated(config, f"{SOURCES}/{path}", abs_src_path=str(ROOT / path))
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the copies in the site."""
    if page.file.generated_by:
        return markdown
    return _moved(markdown, f"docs/{posixpath.dirname(page.file.src_uri)}", page.file.src_uri)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raises PluginError for a page that needs another host to be shown."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found.group()}")
    return output


def _moved(markdown: str, folder: str, page: str) -> str:
    """Markdown of a file in `folder` of the repository, its links rewritten for `page` of the site."""

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found.group(2)))
        return found.group(1) + posixpath.relpath(_place(path), posixpath.dirname(page) or ".") + found.group(3)

    parts: list[str] = []
    end = 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(link, markdown[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, markdown[end:])])


def _place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{SOURCES}/{path}"


def _linked_sources(files: Files) -> list[str]:
    """Files outside docs/ that a page of the repository links to, other than the pages."""
    found = set()
    pages = [ROOT / name for name in PAGES] + [Path(file.abs_src_path) for file in files if _is_written(file)]
    for page in pages:
        for _, target, _ in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = posixpath.relpath((page.parent / target).resolve(), ROOT)
            if not path.startswith(("docs/", "..")) and path not in PAGES and (ROOT / path).is_file():
                found.add(path)
    return sorted(found)


def _is_written(file: File) -> bool:
    return file.src_uri.endswith(".md") and file.generated_by is None
