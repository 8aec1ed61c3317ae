"""Images that users bring and that used to be read wrong, in much memory, or not at all without a word."""

import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.make_images import noise, save
from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.reading import decode, decode_reduced, open_ids, open_image, read_header, to_rgb
from sfumato.data.transforms import Framing
from sfumato.data.wide import float_white
from sfumato.errors import UserError

WHITE = (255, 255, 255)


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


# ---- floats


@pytest.mark.parametrize("extra", [1.02, 40.0, float("inf"), float("-inf"), float("nan"), -3.0])
def test_one_pixel_does_not_decide_the_range_of_a_float_image(tmp_path: Path, extra: float) -> None:
    values = np.full((16, 16), 0.5, np.float32)
    values[3, 4] = extra
    Image.fromarray(values).save(tmp_path / "x.tif")
    seen = np.asarray(decode(tmp_path / "x.tif", WHITE))[..., 0]
    assert seen[0, 0] == 128
    assert seen[3, 4] == (255 if extra > 1 else 0)
    assert float_white(values) == 1
    if not np.isfinite(extra):
        assert any("1 image has pixels that are not finite" in note for note in opened(tmp_path).notes)
        assert "1 of its pixels are not finite" in open_image(tmp_path / "x.tif").notes[0]


@pytest.mark.parametrize(("top", "white"), [(0.9, 1.0), (255.0, 255.0), (65535.0, 65535.0)])
def test_the_usual_ranges_of_floats(top: float, white: float) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    assert float_white(values) == white
    seen = np.asarray(to_rgb(Image.fromarray(values), WHITE))[..., 0]
    assert np.array_equal(seen, np.rint(values * (255 / white)).astype(np.uint8))


def test_a_float_image_with_an_infinite_pixel_is_filled_in_by_its_own_range() -> None:
    from sfumato.tasks.compositing import composite

    values = np.full((8, 8), 0.5, np.float32)
    values[0, 0] = np.inf
    values[4, 4] = np.nan
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[3:6, 3:6] = True
    result = np.asarray(composite(Image.fromarray(values), torch.ones(3, 8, 8), hole, 2))
    assert np.isinf(result[0, 0])
    assert result[4, 4] == pytest.approx(1.0)


# ---- every mode

MODES: dict[str, tuple[Any, str, tuple[int, int, int]]] = {
    "I;16B": (40000, "x.tif", (156, 156, 156)),
    "I": (65535, "x.tif", (255, 255, 255)),
    "1": (1, "x.tif", (255, 255, 255)),
    "PA": (None, "", (10, 20, 30)),
    "YCbCr": ((100, 128, 128), "x.jpg", (100, 100, 100)),
    "CMYK": ((0, 255, 255, 0), "x.jpg", (254, 0, 0)),
}


@pytest.mark.parametrize("mode", MODES)
def test_less_usual_modes(tmp_path: Path, mode: str) -> None:
    value, name, expected = MODES[mode]
    if mode == "PA":
        image = Image.new("RGB", (8, 8), (10, 20, 30)).quantize(2).convert("PA")
        assert to_rgb(image, WHITE).getpixel((0, 0)) == expected
        return
    Image.new(mode, (8, 8), value).save(tmp_path / name)
    seen = decode(tmp_path / name, WHITE).getpixel((0, 0))
    assert seen == pytest.approx(expected, abs=3)
    assert open_image(tmp_path / name).image.size == (8, 8)


def test_first_page_and_first_frame(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (6, 6), (i * 100, 0, 0)) for i in (1, 2)]
    for name in ("x.tif", "x.png", "x.gif", "x.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert decode(tmp_path / name, WHITE).getpixel((2, 2))[0] == pytest.approx(100, abs=3), name  # type: ignore[index]


# ---- what cannot be read is named


def test_foreign_images_and_videos_are_named_with_a_way_out(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    for i in range(30):
        (tmp_path / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    data = opened(tmp_path)
    assert len(data) == 2
    assert "30 files were left out: .heic (install pillow-heif to read it)" in data.notes
    assert len(data.unreadable) == 30
    assert dict(data.unreadable)["IMG_7.HEIC"] == "install pillow-heif to read it"
    for name in ("x.nef", "x.psd", "x.svg", "x.mp4", "x.jxl", "x.exr"):
        (tmp_path / name).write_bytes(b"x")
    (note,) = [note for note in opened(tmp_path).notes if "left out" in note]
    assert note.startswith("36 files were left out: 30 .heic (")
    for ending in (".nef", ".psd", ".svg", ".mp4", ".jxl", ".exr"):
        assert f"1 {ending} (" in note
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no images: .* \(36 files were left out: 30 \.heic"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image: install pillow-heif"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"<svg xmlns='x'/>", "SVG drawing"),
        (b"%PDF-1.4", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    ],
)
def test_a_file_with_the_wrong_extension(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        decode(tmp_path / "x.jpg", WHITE)
    assert reason in caught.value.reason


# ---- pipes, devices, folders


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "socket"])
def test_only_regular_files_are_opened(tmp_path: Path, what: str) -> None:
    import socket

    save(tmp_path, ["a.png"])
    path = tmp_path / "b.png"
    listener = None
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "socket":
        listener = socket.socket(socket.AF_UNIX)
        os.chdir(tmp_path)
        listener.bind("b.png")
    else:
        path.mkdir()
    for read in (
        lambda: decode(path, WHITE),
        lambda: open_image(path),
        lambda: open_ids(path),
        lambda: read_header(path),
    ):
        with pytest.raises(UnreadableImage, match="it is a "):
            read()
    data = opened(tmp_path)
    assert data.scan.files == ("a.png",)
    if what != "folder":
        assert [name for name, _ in data.unreadable] == ["b.png"]
        assert any("not regular was left out: the first is b.png" in note for note in data.notes)
    if listener is not None:
        listener.close()


def test_a_pipe_beside_an_image_is_no_caption(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert opened(tmp_path).captions() is None


# ---- runs inside the data


def test_runs_and_models_are_never_data(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    for run in ("run1", "deep/run2"):
        save(tmp_path / run, ["previews/samples-1.png", "previews/samples-2.png"])
        (tmp_path / run / "config.yaml").write_text("x: 1")
        (tmp_path / run / "log.jsonl").touch()
    save(tmp_path, ["model/grid.png"])
    (tmp_path / "model" / "config.yaml").write_text("x: 1")
    (tmp_path / "model" / "autoencoder.safetensors").touch()
    save(tmp_path, ["paper/c.png"])
    (tmp_path / "paper" / "config.yaml").write_text("not of a run")
    data = opened(tmp_path)
    assert data.scan.files == ("a.png", "b.png", "paper/c.png")
    (note,) = [note for note in data.notes if "left out" in note]
    assert note.startswith("5 images were left out: in folders of runs and models (deep/run2, model, run1)")


def test_a_run_written_into_the_data_folder_itself(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "class/b.png", "previews/samples-1.png"])
    (tmp_path / "config.yaml").write_text("x: 1")
    (tmp_path / "log.jsonl").touch()
    data = opened(tmp_path)
    assert data.scan.files == ("a.png", "class/b.png")
    assert any(note.startswith("1 image was left out") for note in data.notes)


def test_generated_images_are_named(tmp_path: Path) -> None:
    from sfumato.images import save_png

    save(tmp_path, ["a.png"])
    (tmp_path / "out").mkdir()
    save_png(tmp_path / "out" / "0000.png", noise(0), {"sfumato": "0.1"})
    assert any(
        "1 image was made by sfumato itself" in note and "out/0000.png" in note for note in opened(tmp_path).notes
    )


def test_files_in_folders_that_are_left_out_are_not_mentioned(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x.psd").touch()
    assert opened(tmp_path, leave_out=("old",)).notes == ()
    assert opened(tmp_path, leave_out=("old",)).unreadable == []
    assert "1 file was left out: .psd" in opened(tmp_path).notes[0]


def test_a_plug_in_that_is_installed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.data import opening

    (tmp_path / "pillow_heif.py").write_text("calls = []\ndef register_heif_opener():\n    calls.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    opening.suffixes.cache_clear()
    try:
        assert opening.is_image("x.HEIC")
        assert opening.why_not("x.heic") is None
    finally:
        monkeypatch.undo()
        sys.modules.pop("pillow_heif", None)
        opening.suffixes.cache_clear()
    assert opening.why_not("x.heic") == "install pillow-heif to read it"


# ---- very long images


def peak(call: Any) -> tuple[Any, float]:
    """The result, and the MiB that Python and the result's arrays take at most; Pillow's own are bounded by sizes."""
    tracemalloc.start()
    result = call()
    size = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return result, size


@pytest.mark.parametrize("shape", [(2000, 1), (1, 4000), (3, 60000)])
@pytest.mark.parametrize("options", [{}, {"crop": "random"}, {"resize": "pad"}])
def test_a_very_long_image_is_cut_before_it_is_resized(
    shape: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *a, **k: (sizes.append(size), resize(image, size, *a, **k))[1]
    )
    framing = Framing((256, 256), **options)
    prepared, size = peak(lambda: framing.prepare(Image.new("RGB", shape[::-1], (9, 200, 30))))
    assert prepared.shape == (3, *framing.prepared_size(*shape))
    assert max(w * h for w, h in sizes) <= 8 * 256 * 256
    assert size < 16
    if options != {"resize": "pad"}:
        assert (prepared[1] == 200).all()
    ids = framing.prepare_map(np.zeros(shape, np.uint8), 0)
    assert ids.shape[1:] == prepared.shape[1:]


@pytest.mark.parametrize("filter", ["lanczos", "bicubic"])
@pytest.mark.parametrize("shape", [(900, 40), (37, 611), (2500, 100)])
def test_cutting_first_gives_the_same_pixels(shape: tuple[int, int], filter: Any) -> None:
    H, W = 24, 24
    image = noise(3, *shape)
    seen = Framing((H, W), filter=filter).prepare(image)
    scale = max(H / shape[0], W / shape[1])
    h, w = round(shape[0] * scale), round(shape[1] * scale)
    kinds = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    whole = np.asarray(image.resize((w, h), kinds[filter], reducing_gap=3.0)).transpose(2, 0, 1).astype(int)
    top, left = (h - H) // 2, (w - W) // 2
    difference = np.abs(seen - whole[:, top : top + H, left : left + W])
    # reducing by whole numbers starts at another pixel where the image shrinks by more than 3
    assert difference.max() <= (2 if min(shape) < 3 * H else 30)
    assert difference.mean() < (0.1 if min(shape) < 3 * H else 6)


def test_boxes_and_maps_of_a_long_image_stay_on_it() -> None:
    image = np.zeros((20, 2000, 3), np.uint8)
    image[:, 1000:1010] = 255
    framing = Framing((16, 16), crop="random", flip=True)
    prepared = framing.prepare(Image.fromarray(image))
    ids = framing.prepare_map((image[..., 0] > 0).astype(np.uint8), 0)
    found = 0
    for seed in range(40):
        seen, mask = framing.finish(prepared, seed)[0] > 127, framing.finish(ids, seed)[0] > 0
        assert (seen != mask).mean() < 0.1
        box = framing.frame_boxes(np.array([[0.5, 0, 0.005, 1]]), 20, 2000, seed)[0]
        if seen.any():
            found += 1
            columns = np.flatnonzero(mask.any(0))
            if columns[0] > 0 and columns[-1] < 15:
                assert box[0] * 16 == pytest.approx(columns[0], abs=1)
                assert (box[0] + box[2]) * 16 == pytest.approx(columns[-1] + 1, abs=1)
    assert found > 1


# ---- JPEG at reduced scale


@pytest.mark.parametrize("frame", [(24, 24), (16, 40)])
def test_reduced_decoding_frames_as_the_label_map_is_framed(tmp_path: Path, frame: tuple[int, int]) -> None:
    framing, different = Framing(frame, crop="random"), 0
    for height in range(193, 200):
        for width in (200, 251, 255, 257, 390, 517):
            noise(0, height, width).save(tmp_path / "x.jpg")
            read = decode_reduced(tmp_path / "x.jpg", WHITE, (2 * frame[0], 2 * frame[1]))
            assert read.size == (height, width)
            assert read.image.width < width
            ids = framing.prepare_map(np.zeros((height, width), np.uint8), 0)
            assert framing.prepare(read.image, read.size).shape[1:] == ids.shape[1:], (height, width)
            different += framing.prepare(read.image).shape[1:] != ids.shape[1:]
    assert different > 0  # else the sizes would prove nothing


def test_a_rotated_jpeg_at_reduced_scale_has_its_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(0, 201, 333).save(tmp_path / "x.jpg", exif=exif)
    read = decode_reduced(tmp_path / "x.jpg", WHITE, (32, 32))
    assert read.size == (333, 201)
    assert read.image.height > read.image.width
