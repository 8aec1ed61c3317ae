"""Assembles a captioned dataset of emoji from npm packages: five drawing styles, one WebP an emoji, names as captions.

    pip install resvg-py pillow        # and npm on the PATH
    python recipes/emoji.py emoji-128 --size 128

writes emoji-128/STYLE/HEXCODE.webp, metadata.jsonl (file_name, text, label, style, subgroup, tags, skintone, license)
and SOURCES.txt, which credits the packages as their licences require. `sfumato` reads the folder directly.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

NAMES = "openmoji"
COLUMNS = ("file_name", "text", "label", "style", "subgroup", "tags", "skintone", "license")
Drawings = Iterator[tuple[str, bytes]]
"""Pairs of a hexcode and an SVG or WebP file."""


@dataclass(frozen=True)
class Style:
    """A package of drawings: its licence, whom to credit, and the function that finds its files."""

    package: str
    license: str
    credit: str
    drawings: Callable[[tarfile.TarFile, Mapping[str, str]], Drawings]


def normal(hexcode: str) -> str:
    """Upper case without variation selectors, which packages use differently: 0030-fe0f-20e3 -> 0030-20E3."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def slug(name: str) -> str:
    """The name in the spelling of icon sets: 'red apple' -> 'red-apple'."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("’", "")).strip("-")


def member(package: tarfile.TarFile, name: str) -> bytes:
    stream = package.extractfile(f"package/{name}")
    if stream is None:
        raise SystemExit(f"the package has no {name}: its layout must have changed")
    return stream.read()


def files(package: tarfile.TarFile, folder: str, _: Mapping[str, str]) -> Drawings:
    """Drawings stored as files HEXCODE.svg or .webp."""
    for entry in package:
        path = Path(entry.name)
        if entry.isfile() and path.parent.as_posix() == f"package/{folder}":
            yield normal(path.stem), member(package, f"{folder}/{path.name}")


def icons(package: tarfile.TarFile, slugs: Mapping[str, str]) -> Drawings:
    """Drawings of an Iconify set, identified by its table of characters, else by the emoji's name."""
    data = json.loads(member(package, "icons.json"))
    chars: dict[str, str] = json.loads(member(package, "chars.json"))
    named = {hexcode: icon for icon, hexcode in slugs.items()} | {normal(code): icon for code, icon in chars.items()}
    for hexcode, name in named.items():
        icon = data["icons"].get(data.get("aliases", {}).get(name, {}).get("parent", name))
        if icon is None:
            continue
        box = [icon.get(key, data.get(key, default)) for key, default in BOX]
        yield hexcode, SVG.format(box=" ".join(map(str, box)), body=icon["body"]).encode()


BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">{body}</svg>'
STYLES = {
    "twemoji": Style(
        "@discordapp/twemoji", "CC-BY-4.0", "Twitter and contributors", lambda p, n: files(p, "dist/svg", n)
    ),
    "noto": Style("@iconify-json/noto", "Apache-2.0", "Google", icons),
    "fluent-flat": Style("@iconify-json/fluent-emoji-flat", "MIT", "Microsoft", icons),
    "fluent-3d": Style(
        "@lobehub/fluent-emoji-3d", "MIT", "Microsoft, packed by LobeHub", lambda p, n: files(p, "assets", n)
    ),
    "emojione": Style("@iconify-json/emojione", "CC-BY-4.0", "EmojiOne 2.3", icons),
}


def fetch(name: str, into: Path) -> Path:
    """Downloads the newest archive of a package with the npm client; returns its path."""
    command = ["npm", "pack", name, "--silent", "--pack-destination", str(into)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("npm is not installed: it downloads the drawings") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"npm could not download {name}: {error.stderr.strip()}") from None
    return into / done.stdout.split()[-1]


def names(archive: Path) -> dict[str, dict[str, Any]]:
    """Metadata of every emoji by normalised hexcode."""
    with tarfile.open(archive) as package:
        rows = json.loads(member(package, "data/openmoji.json"))
    tags = {row["hexcode"]: _tags(row) for row in rows}
    known = {}
    for row in rows:
        if row["group"] == "extras-openmoji":  # private code points, in no other package
            continue
        tones = re.findall(r"\d", str(row["skintone"]))
        known[normal(row["hexcode"])] = {
            "text": row["annotation"],
            "label": row["group"],
            "subgroup": row["subgroups"],
            # those with a skin tone are tagged at their base only
            "tags": tags[row["hexcode"]] or tags.get(row["skintone_base_hexcode"], []),
            "skintone": int(tones[0]) if tones else 0,
        }
    return known


def _tags(row: Mapping[str, str]) -> list[str]:
    listed = f"{row['tags']},{row['openmoji_tags']}".split(",")
    return sorted({tag.strip() for tag in listed if tag.strip()})


def render(drawing: bytes, size: int, background: str) -> Image.Image:
    """An SVG or WebP drawing as RGB, size x size, on the background."""
    if drawing.lstrip().startswith(b"<"):
        try:
            import resvg_py
        except ImportError:
            raise SystemExit("resvg-py is not installed: pip install resvg-py") from None
        png = resvg_py.svg_to_bytes(svg_string=drawing.decode(), width=size, height=size, skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(png)))
    else:
        image = Image.open(io.BytesIO(drawing))
    layer = image.convert("RGBA")
    if max(layer.size) != size:
        scale = size / max(layer.size)
        layer = layer.resize((round(layer.width * scale), round(layer.height * scale)), Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (size, size), background)
    frame.paste(layer, ((size - layer.width) // 2, (size - layer.height) // 2), layer)
    return frame


def assemble(out: Path, styles: list[str], size: int, limit: int | None, background: str) -> list[dict[str, Any]]:
    """Downloads, renders and saves; returns the rows of metadata.jsonl."""
    rows: list[dict[str, Any]] = []
    sources: list[str] = []
    with TemporaryDirectory() as scratch:
        known = names(fetch(NAMES, Path(scratch)))
        slugs = {slug(about["text"]): hexcode for hexcode, about in known.items()}
        for name in styles:
            style = STYLES[name]
            archive = fetch(style.package, Path(scratch))
            (out / name).mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive) as package:
                version = json.loads(member(package, "package.json"))["version"]
                selected = {code: drawing for code, drawing in style.drawings(package, slugs) if code in known}
            for code in sorted(selected)[:limit]:
                file = f"{name}/{code}.webp"
                render(selected[code], size, background).save(out / file, lossless=True, method=4)
                about = {"file_name": file, **known[code], "style": name, "license": style.license}
                rows.append({column: about[column] for column in COLUMNS})
            sources.append(f"{name}: {style.credit}, {style.license}, npm package {style.package} {version}")
            print(f"{name}: {min(len(selected), limit or len(selected))} of {len(selected)} drawings", file=sys.stderr)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    sources.append(f"names and groups: OpenMoji, CC-BY-SA-4.0, npm package {NAMES}")
    (out / "SOURCES.txt").write_text("\n".join(sources) + "\n", encoding="utf-8")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Assembles a captioned dataset of emoji from npm packages.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (default 128)")
    parser.add_argument("--styles", nargs="+", choices=list(STYLES), default=list(STYLES))
    parser.add_argument("--limit", type=int, help="at most this many drawings of each style")
    parser.add_argument("--background", default="white", help="white, black or #rrggbb")
    options = parser.parse_args(arguments)
    rows = assemble(options.out, options.styles, options.size, options.limit, options.background)
    print(f"{len(rows)} images in {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
