"""Captions beside images and in columns; several an image, sampled by weight."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from data.make_images import metadata, save
from sfumato.data.captions import chosen_caption
from sfumato.data.conditions.captions import SampledCaptions, texts_of, with_sampled_captions
from sfumato.data.dataset import LatentExample
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.loader import Loader
from sfumato.data.split import Subset
from sfumato.errors import UserError
from sfumato.model import pixel_space
from sfumato.training.encode import cached_latents


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


@pytest.mark.parametrize("name", ["0.txt", "0.TXT", "0.caption", "0.Caption", "0.png.txt", "0.PNG.txt"])
def test_files_beside_an_image(tmp_path: Path, name: str) -> None:
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / name).write_text("a")
    data = opened(tmp_path)
    assert data.captions() == ["a", ""]
    assert data.scan.left_out == ()


def test_which_caption_file_counts_and_which_are_left_over(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "A.png", "b.png", "B.png"])
    for name in ("0.txt", "0.caption", "a.txt", "b.txt", "notes.txt", "captions.csv", "about.md"):
        (tmp_path / name).write_text(name)
    data = opened(tmp_path)
    captions = dict(zip(data.scan.files, data.captions() or [], strict=True))
    assert captions == {"0.png": "0.txt", "A.png": "a.txt", "B.png": "", "b.png": "b.txt"}
    assert [name for name, _ in data.scan.left_out] == ["0.caption", "about.md", "captions.csv", "notes.txt"]
    (note,) = (note for note in data.notes if "not read" in note)
    assert note.startswith("4 other files are not read: 1 .caption ('0.caption': ")
    assert "metadata.csv" in note


def test_the_error_about_a_folder_of_texts_names_its_contents(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"holds no images: .*1 \.parquet \('train\.parquet'"):
        opened(tmp_path)


def test_lines_of_a_caption_file(tmp_path: Path) -> None:
    save(tmp_path, ["0.png"])
    (tmp_path / "0.txt").write_bytes(b"one\r\n\r\ntwo\rone\n")
    first = opened(tmp_path)
    assert first.captions() == ["one"]
    assert any("1 caption file has further lines" in note for note in first.notes)
    assert opened(tmp_path, caption_lines="all").captions() == ["one\r\n\r\ntwo\rone"]
    each = opened(tmp_path, caption_lines="each")
    assert each.captions() == ["one"]
    assert each.caption_choices() == ((("one", 1.0), ("two", 1.0)),)


def test_several_captions_in_rows_lists_and_columns(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png", "2.png"])
    rows = [
        {"file_name": "0.png", "text": ["a", "b"], "long": "c"},
        {"file_name": "1.png", "text": "d", "season": 1},
        {"file_name": "1.png", "text": "e", "long": "f", "season": 2},
        {"file_name": "2.png"},
    ]
    metadata(tmp_path, rows)
    plain = opened(tmp_path, columns=["season"])
    assert len(plain) == 3
    assert plain.captions() == ["a", "d", ""]
    assert plain.caption_choices() == ((("a", 0.5), ("b", 0.5)), (("d", 0.5), ("e", 0.5)), ())
    assert any("2 of 3 images have several captions, up to 2" in note for note in plain.notes)
    assert any("differ in 'season'" in note for note in plain.notes)
    weighted = opened(tmp_path, captions={"long": 0.75, "text": 0.25})
    assert weighted.captions() == ["c", "f", ""]
    assert weighted.caption_choices() == (
        (("c", 0.75), ("a", 0.125), ("b", 0.125)),
        (("f", 0.75), ("d", 0.125), ("e", 0.125)),
        (),
    )
    with pytest.raises(UserError, match=r"data\.captions names 'lang', .* did you mean 'long'"):
        opened(tmp_path, captions={"lang": 1})


@pytest.mark.parametrize("captions", [{"text": 0}, {"text": -1}, {"text": float("nan")}, {"text": float("inf")}])
def test_weights_are_positive_numbers(tmp_path: Path, captions: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"finite number"):
        FolderConfig.model_validate({"path": tmp_path, "captions": captions})


def test_captions_are_sampled_by_weight() -> None:
    sampled = Counter(chosen_caption((("a", 3.0), ("b", 1.0)), seed) for seed in range(4000))
    assert abs(sampled["a"] / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert chosen_caption((), 1) == ""
    assert chosen_caption((("a", 0.1),), 1) == "a"


def test_training_samples_captions_while_the_image_is_cached_once(tmp_path: Path) -> None:
    save(tmp_path / "d", ["0.png", "1.png"])
    metadata(tmp_path / "d", [{"file_name": f, "text": f"{f}{i}"} for f in ("0.png", "1.png") for i in range(3)])
    data = opened(tmp_path / "d")
    part = Subset(data, [1, 0])
    cached = cached_latents(pixel_space((8, 8)), part, tmp_path / "cache", precision="float32")
    assert len(cached) == 2
    source = with_sampled_captions(cached, part)
    assert texts_of(part) == ["1.png0", "1.png1", "1.png2", "0.png0", "0.png1", "0.png2"]
    assert source.captions() == ["1.png0", "0.png0"]
    assert source[0].fields["text"] == "1.png0"
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    with Loader(source, 2, seed=5) as one, Loader(source, 2, seed=5, workers=0, start=7) as other:
        for step in range(30):
            batch = next(one)
            for row, text in zip(batch.index, batch.fields["text"], strict=True):
                seen[row].add(text)
            if step >= 7:
                assert next(other).fields["text"] == batch.fields["text"]
    assert seen == {0: {"1.png0", "1.png1", "1.png2"}, 1: {"0.png0", "0.png1", "0.png2"}}


def test_a_set_with_one_caption_an_image_stays_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "d", ["0.png"])
    (tmp_path / "d/0.txt").write_text("a")
    data = opened(tmp_path / "d")
    cached = cached_latents(pixel_space((8, 8)), data, tmp_path / "cache", precision="float32")
    assert with_sampled_captions(cached, data) is cached


class One:
    """A source of a single latent whose fields are fixed."""

    fields = ("text",)
    classes = None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> LatentExample:
        return LatentExample(torch.zeros(1, 1, 1), {"text": "first"})

    def fingerprint(self) -> str:
        return "one"

    def captions(self) -> list[str] | None:
        return ["first"]


def test_another_set_of_captions_is_another_source() -> None:
    one, other = (SampledCaptions(One(), [(("first", 1.0), (text, 1.0))]) for text in ("a", "b"))
    assert one.fingerprint() != other.fingerprint()
    assert one[0].fields == {"text": "first"}
