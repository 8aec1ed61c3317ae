"""`sfumato import`, `export` and `zoo` from the outside."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sfumato
from parity import needs_parity
from sfumato.cli import app, main
from sfumato.interop.convert import describe

runner = CliRunner()


@needs_parity
def test_import_and_export(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint("vq-f4")
    done = runner.invoke(app, ["import", str(source), str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path / 'model'}" in done.output
    assert f"configuration: {source.with_suffix('.yaml')}, found next to the checkpoint" in done.output
    assert sfumato.load(tmp_path / "model").autoencoder.factor == 4
    done = runner.invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "original"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "model.ckpt").is_file()
    done = runner.invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "theirs"), "--format", "diffusers"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["_class_name"] == "VQModel"


def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": 1}, tmp_path / "x.ckpt")
    monkeypatch.setattr(sys, "argv", ["sfumato", "import", str(tmp_path / "x.ckpt"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert (
        capsys.readouterr().err
        == f"sfumato: {tmp_path / 'x.ckpt'} contains no named tensors; it is not a model checkpoint\n"
    )


def test_zoo_lists_what_there_is() -> None:
    out = runner.invoke(app, ["zoo"]).output
    for expected in ("zoo:ldm/kl-f8", "rFID 0.90", "zoo:ldm/ffhq256", "on vq-f4", "872.3 M", "FID 4.98"):
        assert expected in out
    assert "latent_channels: 4" in runner.invoke(app, ["zoo", "zoo:ldm/kl-f8"]).output
    assert max(len(line) for line in out.splitlines()) < 200


@pytest.mark.parametrize("command", ["import", "export", "zoo"])
def test_help(command: str) -> None:
    done = runner.invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_the_commands_start_without_torch() -> None:
    code = "import sys, sfumato.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@needs_parity
def test_what_is_in_a_file(checkpoint: Callable[[str], Path]) -> None:
    text = "\n".join(describe(checkpoint("cin256")))
    assert "1566 tensors" in text
    assert "denoiser: 626 tensors" in text
    assert "averaged weights: 628 tensors" in text
    assert "first stage: f = 8, 4 channels, VQ of 16384 codes" in text
    assert "predicts eps" in text
    assert "global_step: 123456" in text


def test_what_is_in_a_file_of_unknown_layout(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(3, 4)}, tmp_path / "x.pt")
    lines = describe(tmp_path / "x.pt")
    assert "1 tensor," in lines[0]
    assert "no known layout" in lines[-1]


def test_a_file_is_listed_for_programs(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"layer.weight": torch.ones(3, 4).half()}}, tmp_path / "x.pt")
    done = runner.invoke(app, ["info", str(tmp_path / "x.pt"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["tensors"] == {"layer.weight": {"shape": [3, 4], "dtype": "float16"}}
    assert found["extras"] == {"epoch": 3}
    assert "no known layout" in found["architecture"][0]
