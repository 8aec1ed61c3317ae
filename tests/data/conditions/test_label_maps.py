"""Label maps beside images: framed as the image is, read in every usual form, and every mistake named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.conditions.class_names import read_class_names
from sfumato.data.conditions.config import MapsConfig
from sfumato.data.conditions.maps import FolderMaps, read_ids
from sfumato.data.conditions.with_fields import WithFields
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.label_ids import ids_of
from sfumato.errors import UserError

NAMES = ("sky", "tree", "sea")
COLOURS = ((0, 0, 255), (0, 200, 0), (250, 240, 10))


def stripes(height: int, width: int, seed: int) -> np.ndarray:
    """Class ids in blocks of 4 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 3, (-(-height // 4), -(-width // 4)), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))[:height, :width]


def folder_of(root: Path, sizes: list[tuple[int, int]], classes: str = "\n".join(NAMES)) -> Path:
    """Images that are their maps in colour."""
    for name in ("images", "maps"):
        (root / name).mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        ids = stripes(height, width, i)
        Image.fromarray(np.array(COLOURS, np.uint8)[ids]).save(root / "images" / f"{i}.png")
        Image.fromarray(ids).save(root / "maps" / f"{i}.png")
    (root / "classes.txt").write_text(classes)
    return root


def opened(root: Path, config: MapsConfig | None = None, **options: object) -> WithFields:
    given = {"path": root, "size": [16, 24], "leave_out": ["maps"], **options}
    folder = FolderDataset(FolderConfig.model_validate(given))
    return WithFields(folder, [FolderMaps(folder, config or MapsConfig())])


def nearest(image: torch.Tensor) -> torch.Tensor:
    """The class whose colour is nearest, (H, W)."""
    colours = torch.tensor(COLOURS).float()
    return (image.permute(1, 2, 0).float()[..., None, :] - colours).square().sum(-1).argmin(-1)


@pytest.mark.parametrize("options", [{}, {"crop": "random", "flip": True}, {"resize": "pad"}])
def test_a_map_stays_on_its_image(options: dict, tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, [(32, 96), (64, 40), (16, 24)]), **options)
    assert data.fields == ("map",)
    mirrored = 0
    for index in range(3):
        for example in [data[index], *(data.variant(index, seed) for seed in range(6))]:
            ids = example.fields["map"].long()
            assert ids.shape == example.image.shape[1:] == (16, 24)
            inside = ids != 255
            assert inside.float().mean() > (0.2 if options.get("resize") == "pad" else 0.999)
            seen = nearest(example.image)
            agree = (seen == ids)[inside].float().mean()
            assert agree > 0.85, (index, agree)  # a resized image mixes colours at the edges
            wrong = (seen.flip(-1) == ids)[inside].float().mean()
            assert agree > wrong + 0.1
        mirrored += bool((data[index].fields["map"] == data.variant(index, 1).fields["map"].flip(-1)).all())
    assert torch.equal(data[2].fields["map"], torch.from_numpy(stripes(16, 24, 2)))


def test_a_mirrored_image_has_a_mirrored_map(tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, [(16, 24)]), flip=True)
    flipped = [torch.equal(data.variant(0, seed).image, data[0].image.flip(-1)) for seed in range(20)]
    assert 0 < sum(flipped) < 20
    for seed, flip in enumerate(flipped):
        ids = data[0].fields["map"]
        assert torch.equal(data.variant(0, seed).fields["map"], ids.flip(-1) if flip else ids)


def test_ids_palette_and_colours_say_the_same(tmp_path: Path) -> None:
    ids = stripes(8, 12, 0)
    plain, coloured = tmp_path / "plain.txt", tmp_path / "coloured.txt"
    plain.write_text("\n".join(NAMES))
    coloured.write_text("sky #0000ff\ntree 0 200 0\nsea\t250, 240, 10\n")
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([v for colour in COLOURS for v in colour])
    shuffled = Image.fromarray(np.array([2, 0, 1], np.uint8)[ids]).convert("P")  # as an editor may save it
    shuffled.putpalette([v for i in (1, 2, 0) for v in COLOURS[i]])
    forms = {
        "grey": (Image.fromarray(ids), plain),
        "16-bit": (Image.fromarray(ids.astype(np.uint16)), plain),
        "palette": (palette, plain),
        "grey in colour": (Image.fromarray(ids).convert("RGB"), plain),
        "colours": (Image.fromarray(np.array(COLOURS, np.uint8)[ids]), coloured),
        "shuffled palette": (shuffled, coloured),
    }
    for name, (image, classes) in forms.items():
        image.save(tmp_path / "map.png")
        found = read_ids(tmp_path / "map.png", read_class_names(classes), 255)
        assert np.array_equal(found, ids), name


def test_a_model_records_the_classes_of_its_maps(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [(16, 24)], "sky #0000ff\ntree #00c800\nsea #faf00a\n")
    data = opened(root)
    source = data.sources[0]
    assert isinstance(source, FolderMaps)
    described = source.describe()
    assert (described.names, described.palette, described.void) == (NAMES, COLOURS, 255)
    before = data.fingerprint()
    (root / "classes.txt").write_text("\n".join(("sky", "tree", "lake")))
    assert opened(root).fingerprint() != before


def spoilt(root: Path, what: str) -> None:
    ids = stripes(16, 24, 0)
    match what:
        case "id":
            ids[3, 5] = 7
            Image.fromarray(ids).save(root / "maps" / "0.png")
        case "colour":
            (root / "classes.txt").write_text("sky #0000ff\ntree #00c800\nsea #faf00a\n")
            pixels = np.array(COLOURS, np.uint8)[ids]
            pixels[2, 1] = (9, 9, 9)
            Image.fromarray(pixels).save(root / "maps" / "0.png")
        case "uncoloured":
            Image.fromarray(np.array(COLOURS, np.uint8)[ids]).save(root / "maps" / "0.png")
        case "size":
            Image.fromarray(stripes(24, 16, 0)).save(root / "maps" / "0.png")
        case "missing":
            (root / "maps" / "1.png").unlink()
        case "short":
            (root / "classes.txt").write_text("sky\n")
        case "no classes":
            (root / "classes.txt").unlink()
        case "twice":
            (root / "classes.txt").write_text("sky\nsky\nsea\n")
        case "damaged":
            (root / "maps" / "0.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("id", r"0.png holds the id 7 at row 3, column 5, but classes.txt names only 3 classes \(0 to 2\)"),
        ("colour", r"has the colour #090909 at row 2, column 1, which classes.txt does not list: add it"),
        ("uncoloured", r"is in colour, but classes.txt gives no colours: write lines such as"),
        ("size", r"0.png is 24x16 \(height x width\), but its image .*0.png is 16x24"),
        ("missing", r"1 of 2 images have no label map in .*: the first is images/1.png, expected as maps/1.png"),
        ("short", r"holds the id \d at .*classes.txt names only 1 class"),
        ("no classes", r"classes.txt is missing: write the class names"),
        ("twice", r"line 2 of .*classes.txt names 'sky' again"),
        ("damaged", r"map .*0.png of .*0.png cannot be read"),
    ],
)
def test_a_mistake_is_named(what: str, message: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path, [(16, 24), (16, 24)])
    spoilt(root, what)
    with pytest.raises(UserError, match=message):
        opened(root)[0]


def test_a_void_id_that_is_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"conditions.map.void is 1, the id of the class 'tree'"):
        opened(folder_of(tmp_path, [(16, 24)]), MapsConfig(void=1))


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B", "F", "LA", "PA", "1"])
def test_every_mode_of_ids_is_read_alike_in_training_and_in_use(mode: str, tmp_path: Path) -> None:
    ids = stripes(8, 12, 0) % 2 if mode == "1" else stripes(8, 12, 0)
    image = Image.fromarray(ids)
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (12, 8), ids.astype(">u2").tobytes())
    elif mode in ("I;16", "I", "F"):
        image = Image.fromarray(ids.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    elif mode in ("LA", "PA"):
        palette = image.convert("P") if mode == "LA" else Image.frombytes("P", (12, 8), ids.tobytes())
        image = image.convert("LA") if mode == "LA" else palette.convert("PA")
    else:
        image = Image.fromarray(ids.astype(bool))
    assert image.mode == mode
    found = ids_of(image, "the map")
    assert found is not None
    assert np.array_equal(found, ids)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    if mode not in ("PA",):
        image.save(tmp_path / "map.tif")
        assert np.array_equal(read_ids(tmp_path / "map.tif", read_class_names(tmp_path / "classes.txt"), 255), ids)


def test_floats_that_are_no_ids_are_named() -> None:
    values = np.zeros((4, 4), np.float32)
    for value, shown in ((0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")):
        values[1, 2] = value
        with pytest.raises(UserError, match=f"the map holds {shown} at row 1, column 2, which is not a class id"):
            ids_of(Image.fromarray(values), "the map")


def test_a_rotated_map_is_turned_as_its_image_is(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [(16, 24)])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("images", "maps"):
        with Image.open(root / name / "0.png") as image:
            image.load()
        image.transpose(Image.Transpose.ROTATE_90).save(root / name / "0.png", exif=exif)
    data = opened(root)
    assert torch.equal(data[0].fields["map"], torch.from_numpy(stripes(16, 24, 0)))
    assert torch.equal(nearest(data[0].image), data[0].fields["map"].long())
