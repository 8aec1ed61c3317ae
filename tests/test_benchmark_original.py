"""The benchmark's other side can be the original code: it is found in its checkout, and computes what ours does."""

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.denoiser.unet import UNetConfig

ROOT = Path(__file__).parents[1]
CHECKOUT = os.environ.get("SFUMATO_ORIGINAL")
UNET = UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_factors=(2,), head_channels=16)
HEADS = UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_factors=(1, 2), heads=4)
AUTOENCODER = AutoencoderConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1)
ASKS = "from nowhere.lists import Listed\nfrom ldm.place import PLACE\nprint('imported')\n"

needs_checkout = pytest.mark.skipif(CHECKOUT is None, reason="SFUMATO_ORIGINAL names no checkout of the original code")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def written(root: Path) -> Path:
    """A package `ldm` below a folder, which knows its folder's name and asks for a module from elsewhere."""
    (root / "ldm").mkdir(parents=True)
    (root / "ldm" / "place.py").write_text(f"PLACE = {root.name!r}\n")
    (root / "ldm" / "asks.py").write_text(ASKS)
    return root


def remembered() -> list[str]:
    """Those of the packages in question that are imported."""
    return [name for name in sys.modules if name.partition(".")[0] in ("ldm", "nowhere")]


def test_a_folder_without_the_original_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import parsed

    with pytest.raises(SystemExit, match="2"):
        parsed(["--original", str(tmp_path)])
    assert "has no folder ldm: give a checkout of CompVis/latent-diffusion" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        parsed(["--original", str(written(tmp_path / "other"))])
    assert "cannot be imported: No module named 'ldm.modules'" in capsys.readouterr().err
    assert remembered() == []
    assert parsed([]).original is None


def test_a_checkout_is_imported_with_stand_ins_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import original

    monkeypatch.setattr(original, "STAND_INS", {"nowhere.lists": "Listed"})
    for name in ("first", "second"):
        with original.importable(written(tmp_path / name)):
            asks = import_module("ldm.asks")
        assert name == asks.PLACE
        assert not isinstance([], asks.Listed)
        assert remembered() == []
    with pytest.raises(ModuleNotFoundError, match="absent"), original.importable(tmp_path / "first"):
        import_module("ldm.absent")
    assert remembered() == []
    assert capsys.readouterr().out == "", "what it prints would stand in the tables"


def test_what_is_installed_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import original

    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "lists.py").write_text("class Listed(list): pass\n")
    for path in (tmp_path, written(tmp_path / "installed")):
        monkeypatch.syspath_prepend(str(path))
    monkeypatch.setattr(original, "STAND_INS", {"nowhere.lists": "Listed"})
    try:
        installed = import_module("ldm.asks")
        with original.importable(written(tmp_path / "checkout")):
            assert import_module("ldm.asks").PLACE == "checkout"
        assert import_module("ldm.asks") is installed
        assert issubclass(import_module("nowhere.lists").Listed, list)
        assert sys.modules["nowhere.lists"].Listed is installed.Listed
    finally:
        for name in remembered():
            del sys.modules[name]


@needs_checkout
@pytest.mark.parametrize(("config", "text"), [(UNET, False), (UNET, True), (HEADS, True)])
def test_the_originals_unet_computes_and_learns_what_ours_does(config: UNetConfig, text: bool) -> None:
    from benchmarks.original import checkout
    from benchmarks.workloads import Scope, network_call, second_stage_step

    scope = Scope(half=False, original=checkout(str(CHECKOUT)))
    assert difference(network_call(config, 3, text, scope, size=8).candidates) < 1e-5
    assert difference(second_stage_step(config, 3, 8, text, scope).candidates) < 1e-5, "losses after one update"
    assert remembered() == []


@needs_checkout
@torch.no_grad()
def test_the_originals_first_stage_computes_what_ours_does() -> None:
    from benchmarks.networks import filled
    from benchmarks.original import checkout, original_autoencoder

    ours = filled(Autoencoder(AUTOENCODER))
    theirs = original_autoencoder(checkout(str(CHECKOUT)), ours, AUTOENCODER, 32)
    image, z = torch.rand(2, 3, 32, 32), torch.randn(2, 4, 16, 16)
    assert far(theirs.encode(image), ours.encode(image).moments) < 1e-5
    assert far(theirs.decode(z), ours.decode(z)) < 1e-5


def difference(candidates: Mapping[str, Callable[[], Tensor]]) -> float:
    """Between the second results of the original and of ours."""
    called = (candidates["original float32"], candidates["sfumato float32"])
    theirs, ours = ([call(), call()][1].detach() for call in called)
    return far(theirs, ours)


def far(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference over the largest value."""
    return ((theirs - ours).abs().max() / ours.abs().max()).item()
