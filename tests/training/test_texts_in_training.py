"""Captions and classes in a training's log and in the stored model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato
from runs import second_run
from sfumato.conditioning.table import ClassConfig, build_conditioner
from sfumato.conditioning.text import TextConfig
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.data.conditions.captions import texts_of
from sfumato.data.conditions.config import BoxesConfig, ConditionsConfig
from sfumato.data.folder_config import FolderConfig
from sfumato.data.split import Subset
from sfumato.model import LatentDiffusion, pixel_space
from sfumato.training.data import HeldOut, RunData, open_data
from sfumato.training.encode import cached_latents
from sfumato.training.second_stage import build_model, caption_notes


def images(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)


def data_of(root: Path, tmp: Path, conditions: ConditionsConfig | None = None) -> tuple[RunData, list[str]]:
    """The opened data, and all that its opening logged."""
    messages: list[str] = []
    config = FolderConfig(path=root, size=16)
    progress = lambda title: lambda done, total: None  # noqa: E731 - both are of no interest here
    return open_data(config, HeldOut(amount=0), tmp, tmp / "cache", messages.append, progress, conditions), messages


def model_of(data: RunData, tmp: Path, *overrides: str) -> LatentDiffusion:
    """Stage 2 in the space of pixels, as a run begins it."""
    first = pixel_space((16, 16))
    latents = cached_latents(first, data.training, tmp / "cache", precision="float32")
    return build_model(second_run(*overrides), first, latents, texts=texts_of(data.training))


def test_damaged_images_are_not_counted_among_those_that_are_read(tmp_path: Path) -> None:
    images(tmp_path / "d", ["0.png", "1.png", "2.png"])
    (tmp_path / "d" / "empty.png").touch()
    (tmp_path / "d" / "cut.png").write_bytes((tmp_path / "d" / "0.png").read_bytes()[:300])
    _, messages = data_of(tmp_path / "d", tmp_path)
    assert any(message.startswith("2 files cannot be read and are left out") for message in messages)
    assert f"3 images of {tmp_path / 'd'}, fields: none" in messages


def test_classes_counts_and_unread_columns_are_logged_at_the_start(tmp_path: Path) -> None:
    images(tmp_path / "d", ["0.png", "1.png", "2.png"])
    rows = ("0.png,cat,x,[],a", "1.png,cat ,y,[],b", "2.png,Cat,z,[],c")
    (tmp_path / "d/metadata.csv").write_text("file_name,label,title,boxes,text\n" + "\n".join(rows))
    _, messages = data_of(tmp_path / "d", tmp_path)
    assert "2 classes: Cat 1, cat 2" in messages
    assert "the classes 'Cat' and 'cat' differ only in spelling: are they the same?" in messages
    assert "columns of the metadata that are not used: 'boxes', 'title'" in messages
    (tmp_path / "d/metadata.csv").unlink()
    (tmp_path / "d/metadata.jsonl").write_text(
        '{"file_name": "0.png", "boxes": [{"label": 1000000000, "bbox": [0, 0, 4, 4]}]}\n{"file_name": "gone.png"}\n'
    )
    data, messages = data_of(tmp_path / "d", tmp_path, ConditionsConfig(boxes=BoxesConfig()))
    assert data.conditioning_metadata.layout is not None
    assert data.conditioning_metadata.layout.names == ("1000000000",)
    assert not any("nothing reads" in note for note in messages)
    assert any("1 file named in the metadata does not exist, the first is gone.png; the folder" in n for n in messages)


def test_long_captions_are_counted_once_with_an_example() -> None:
    words = " ".join(f"word{i}" for i in range(300))
    texts = ["short", words, "short", "also short"]
    conditioner = build_conditioner(
        TextConfig(dim=8, depth=1, heads=1, head_dim=8, max_tokens=8), fit_tokenizer(["short", "also short"])
    )
    (note,) = caption_notes(conditioner, texts)
    assert note.startswith("1 of 3 captions are longer than max_tokens 8 and are cut: the longest has ")
    assert "'word0 word1" in note
    assert caption_notes(conditioner, ["short"]) == ()
    assert caption_notes(conditioner, None) == ()
    assert caption_notes(build_conditioner(ClassConfig(classes=2)), [words]) == ()


def test_the_model_keeps_which_classes_it_saw(tmp_path: Path) -> None:
    images(tmp_path / "d", ["a/0.png", "b/1.png", "c/2.png", "c/3.png"])
    data, _ = data_of(tmp_path / "d", tmp_path)
    part = RunData(Subset(data.training, [0, 2, 3]), None)  # b is held out
    model = model_of(part, tmp_path, "conditioner={kind: class, classes: 5, dim: 8}")
    assert model.config.classes == ("a", "b", "c")
    assert model.config.classes_seen == (0, 2)
    model.save(tmp_path / "model")
    again = sfumato.load(tmp_path / "model")
    assert again.config.classes_seen == (0, 2)
    other = model.config.model_copy(update={"classes_seen": None})
    assert LatentDiffusion(other, model.autoencoder, model.scaling, model.second).digest == model.digest


@pytest.mark.parametrize("overrides", [("conditioner={kind: none}",), ()])
def test_models_that_read_no_label_keep_none(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    images(tmp_path / "d", ["a/0.png", "b/1.png"])
    (tmp_path / "d/a/0.txt").write_text("one")
    data, _ = data_of(tmp_path / "d", tmp_path)
    assert model_of(data, tmp_path, *overrides).config.classes_seen is None


def test_the_tokenizer_knows_every_caption(tmp_path: Path) -> None:
    images(tmp_path / "d", ["0.png"])
    (tmp_path / "d/metadata.jsonl").write_text('{"file_name": "0.png", "text": ["first", "zyzzyva zyzzyva"]}')
    data, _ = data_of(tmp_path / "d", tmp_path)
    model = model_of(data, tmp_path)
    assert model.second is not None
    texts = model.second.conditioner.texts  # type: ignore[union-attr]
    assert texts.counts(["zyzzyva"]) == [3]  # one token between [CLS] and [SEP]
