"""The emoji recipe on packages made here: layout of each kind of package, names, licences, and the folder made."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "recipes" / "emoji.py"
    spec = importlib.util.spec_from_file_location("emoji_recipe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "emoji_recipe", module)
    spec.loader.exec_module(module)
    return module


def webp(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(stream, "webp", lossless=True)
    return stream.getvalue()


def row(hexcode: str, name: str, group: str, **more: str) -> dict[str, str]:
    blank = {"tags": "", "openmoji_tags": "", "skintone": "", "skintone_base_hexcode": "", "subgroups": "face"}
    return {**blank, "hexcode": hexcode, "annotation": name, "group": group, **more}


NAMES = [
    row("1F600", "grinning face", "smileys-emotion", tags="smile, face", openmoji_tags="happy"),
    row("1F44B", "waving hand", "people-body", tags="hand"),
    row("1F44B-1F3FD", "waving hand: medium skin tone", "people-body", skintone="3", skintone_base_hexcode="1F44B"),
    row("E000", "private", "extras-openmoji"),
]
ICON = {"body": "<path/>"}
PACKAGES = {
    "openmoji": {"data/openmoji.json": NAMES},
    "@lobehub/fluent-emoji-3d": {
        "package.json": {"version": "1.1"},
        "assets/1f600.webp": webp("red"),
        "assets/1f44b-fe0f-1f3fd.webp": webp("#00000000"),
        "assets/e000.webp": webp("red"),
        "assets/extra/1f44b.webp": webp("red"),
    },
    "@iconify-json/noto": {
        "package.json": {"version": "2.0"},
        "icons.json": {"width": 64, "height": 64, "icons": {"waving-hand": ICON, "grin": {**ICON, "width": 32}}},
        "chars.json": {"1f600": "grin", "1f999": "absent"},
    },
}


def test_icons_are_found_by_character_and_by_name(recipe: ModuleType, tmp_path: Path) -> None:
    archive = pack(tmp_path, "@iconify-json/noto")
    with tarfile.open(archive) as package:
        found = dict(recipe.icons(package, {"waving-hand": "1F44B", "unknown": "1F000"}))
    assert set(found) == {"1F600", "1F44B"}
    assert b'viewBox="0 0 32 64"' in found["1F600"]
    assert b'viewBox="0 0 64 64"' in found["1F44B"]


def pack(folder: Path, name: str) -> Path:
    path = folder / f"{name.split('/')[-1]}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for file, content in PACKAGES[name].items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{file}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_assembled_folder_is_a_data_set(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "fetch", lambda name, into: pack(into, name))
    recipe.main([str(tmp_path / "out"), "--styles", "fluent-3d", "--size", "4"])
    data = FolderDataset(FolderConfig(path=tmp_path / "out", size=4, columns=("style", "tags", "skintone", "license")))
    assert data.scan.files == ("fluent-3d/1F44B-1F3FD.webp", "fluent-3d/1F600.webp")
    assert data.captions() == ["waving hand: medium skin tone", "grinning face"]
    assert data.classes == ("people-body", "smileys-emotion")
    assert data[0].fields["tags"] == ["hand"]
    assert data[0].fields["skintone"] == 3
    assert data[1].fields["license"] == "MIT"
    assert data[0].image.unique().tolist() == [255]
    assert data[1].image[:, 0, 0].tolist() == [255, 0, 0]
    assert "@lobehub/fluent-emoji-3d 1.1" in (tmp_path / "out/SOURCES.txt").read_text()


def test_missing_npm_is_an_error(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="npm is not installed"):
        recipe.fetch("openmoji", tmp_path)


@pytest.mark.parametrize("file", ["NOTICE", "src/sfumato/weights/emoji/README.md"])
def test_the_artists_of_the_trained_model_are_credited(recipe: ModuleType, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for style in recipe.STYLES.values():
        assert style.credit.split()[0].rstrip(",") in text
        assert style.license in text
    assert text.count("https://creativecommons.org/licenses/by/4.0/") == 2, "as CC-BY asks, with each set under it"
    assert "OpenMoji" in text
    assert "CC-BY-SA-4.0" in text
