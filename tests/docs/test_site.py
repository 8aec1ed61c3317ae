"""The documentation site: what its build refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.docs
ROOT = Path(__file__).parents[2]


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """A site of one page, with the checks of mkdocs.yml and its hook for links to other hosts."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page, encoding="utf-8")
    (folder / "hook.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'docs' / 'site')!r})\nfrom hooks import on_post_page\n"
    )
    lines = [f"INHERIT: {ROOT / 'mkdocs.yml'}", "docs_dir: docs", "site_dir: out", "hooks: [hook.py]", "watch: []"]
    lines += ["plugins: [search]", "nav: [index.md]", "extra_css: []", "extra: {}"]
    (folder / "mkdocs.yml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(folder / "mkdocs.yml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_build_refuses_broken_links_and_anchors(tmp_path: Path) -> None:
    done = build(tmp_path, "# A page\n\n[there](nowhere.md) and [there](#nothing)\n")
    assert done.returncode != 0
    assert "'nowhere.md'" in done.stderr
    assert "'#nothing'" in done.stderr


def test_the_build_refuses_what_is_loaded_from_another_host(tmp_path: Path) -> None:
    done = build(tmp_path, '# A page\n\n<img src="https://example.org/a.png">\n')
    assert done.returncode != 0
    assert "loads from another host" in done.stderr
