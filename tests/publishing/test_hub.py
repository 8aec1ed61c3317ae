"""`sfumato push` and `hub:OWNER/NAME`, by the hub's real client against a server of this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_stand_in import TOKEN, Hub, hub
from PIL import Image

import tiny
from command_line import Command
from sfumato.hub import hub_folder
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load

LINES = "".join(json.dumps({"step": i, "loss_smoothed": 1 / i, "images": 2 * i}) + "\n" for i in range(1, 9))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that is empty, and nothing downloaded."""
    with hub() as made:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its files are on other hosts
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub_folder.cache_clear()
        yield made
        hub_folder.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit as it is left: two runs, previews, numbers, an evaluation."""
    root = tmp_path_factory.mktemp("fit")
    about = {"steps": 20, "images": 160, "hours": 0.5, "data": {"kind": "folder", "path": "/home/ada/apples"}}
    tiny.model(f"about={json.dumps({'autoencoder': about, 'diffusion': about})}").save(root / "diffusion" / "model")
    for run, kind in (("diffusion", "samples"), ("autoencoder", "reconstruction")):
        (root / run / "previews").mkdir(parents=True)
        (root / run / "log.jsonl").write_text(LINES)
        Image.new("RGB", (48, 16), (200, 40, 40)).save(root / run / "previews" / f"{kind}-00000010.png")
    (root / "report.json").write_text(json.dumps({"learnt": ["Prompts are hardly followed."], "images": 12}))
    metric = {"value": 3.5, "better": "lower", "protocol": {"network": "n"}}
    card = {"kind": "samples", "version": "0", "created": "2026", "subject": {}, "data": {"path": "/home/ada/apples"}}
    card |= {"protocol": {"images": 8}, "metrics": {"fd": metric}, "warnings": ["Only 8 images were measured."]}
    (root / "card").mkdir()
    (root / "card" / "card.json").write_text(json.dumps(card))
    return root


def push(command: Command, run: Path, *further: object) -> None:
    done = command("push", run / "diffusion", "ada/apples", *further)
    assert done.code == 0, done
    assert "hub:ada/apples stands for it" in done.out


def digest(model: LatentDiffusion) -> str:
    return str(model.digest)


def test_a_pushed_model_opens_by_its_name(trained: Path, server: Hub, command: Command) -> None:
    push(command, trained, "--licence", "apache-2.0", "--data-licence", "CC0")
    files = server.repositories["ada/apples"]
    server.asked.clear()
    assert digest(load("hub:ada/apples")) == digest(load(trained / "diffusion"))
    fetched = {one.split("/")[-1] for one in server.asked if one.startswith("GET") and "resolve" in one}
    assert fetched == {name for name in files if name.endswith((".safetensors", ".yaml")) or name == "tokenizer.json"}
    assert b"/home" not in files["config.yaml"]
    asked = len(server.asked)
    load("hub:ada/apples")
    assert len(server.asked) == asked  # once in a process


def test_the_card_says_what_the_run_knows(trained: Path, server: Hub, command: Command) -> None:
    push(command, trained, "--licence", "apache-2.0", "--data-licence", "CC0")
    files = server.repositories["ada/apples"]
    card = files["README.md"].decode()
    for part in (
        "license: apache-2.0",
        "pipeline_tag: text-to-image",
        "![Samples of the newest preview",
        "a folder named apples, 12 images",
        "Licence of the data: CC0.",
        "| Stage 2, the diffusion model | 20 | 160 | 30 min 00 s |",
        "| fd | 3.5 | lower |",
        "- Prompts are hardly followed.",
        "- Only 8 images were measured.",
        "- It was trained on 12 images: samples are likely to repeat them.",
        "hub:ada/apples",
    ):
        assert part in card, part
    assert "/home" not in card
    shown = {"samples.png", "reconstructions.png", "curve-autoencoder.png", "curve-diffusion.png"} & set(files)
    assert all(f"]({name})" in card for name in shown)
    assert {"samples.png", "reconstructions.png", "curve-diffusion.png"} <= shown


def test_what_was_downloaded_opens_without_the_hub(
    trained: Path, server: Hub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(command, trained)
    load("hub:ada/apples")
    hub_folder.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    load("hub:ada/apples")
    refused = command("info", "hub:ada/pears")
    assert refused.code == 2
    assert "the hub cannot be reached for 'hub:ada/pears'" in refused.err
    assert refused.err.strip().endswith("it was not downloaded before")
    assert "cannot be reached" in command("push", trained / "diffusion", "ada/apples").err


def test_a_second_push_replaces_the_first(trained: Path, server: Hub, command: Command) -> None:
    push(command, trained)
    server.repositories["ada/apples"]["tiny_decoder.safetensors"] = b"of an earlier model"
    server.repositories["ada/apples"]["notes.txt"] = b"by hand"
    push(command, trained, "--message", "Again")
    files = server.repositories["ada/apples"]
    assert "tiny_decoder.safetensors" not in files
    assert files["notes.txt"] == b"by hand"


def test_what_arrives_with_other_bytes_is_refused_and_not_kept(
    trained: Path, server: Hub, command: Command, tmp_path: Path
) -> None:
    push(command, trained)
    server.altered.add("denoiser.safetensors")
    refused = command("info", "hub:ada/apples")
    assert refused.code == 2
    assert "denoiser.safetensors of 'hub:ada/apples' is not what the hub states" in refused.err
    assert not list((tmp_path / "cache").rglob("denoiser.safetensors"))
    server.altered.clear()
    assert command("info", "hub:ada/apples").code == 0


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, "the hub has no model 'ada/apples' that you may see (401)"),
        (404, {"X-Error-Code": "RepoNotFound"}, "the hub has no model 'ada/apples' that you may see (404)"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no revision 'main'"),
        (403, {"X-Error-Code": "GatedRepo"}, "is available on request only"),
        (403, {}, "does not allow this"),
        (429, {"Retry-After": "7"}, "(429): try again in 7 seconds"),
        (500, {}, "the hub answered 500"),
    ],
)
def test_a_refusal_is_one_sentence(
    status: int, headers: dict[str, str], sentence: str, server: Hub, command: Command
) -> None:
    server.refusal = (status, headers)
    refused = command("info", "hub:ada/apples")
    assert refused.code == 2
    assert sentence in refused.err
    assert len(refused.err.strip().splitlines()) == 1


def test_mistakes_are_one_sentence(
    trained: Path, server: Hub, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.repositories["ada/other"] = {"config.json": b"{}", "model.safetensors": b""}
    run = trained / "diffusion"
    for words, sentence in (
        (("info", "hub:ada/other"), "is not a model of sfumato: it lacks config.yaml"),
        (("info", "hub:ada"), "is not the name of a model on the hub: give OWNER/NAME"),
        (("info", "hub:../../etc"), "is not the name of a model on the hub"),
        (("info", "ada/apples"), "or hub:ada/apples for a model of the hub"),
        (("push", run, "apples"), "is not the name of a model on the hub"),
        (("push", run, "ada/apples", "--licence", "My Own"), "is not a licence name of the hub"),
        (("push", run, "ada/apples", "--card", tmp_path), "contains no card.json"),
        (("push", tmp_path, "ada/apples"), "is neither a model folder nor"),
    ):
        refused = command(*words)
        assert refused.code == 2, words
        assert sentence in refused.err, words
        assert len(refused.err.strip().splitlines()) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    assert "(401): check the name, or set HF_TOKEN" in command("push", run, "ada/apples").err


def test_the_files_can_be_looked_at_before(trained: Path, command: Command, tmp_path: Path) -> None:
    done = command("push", trained / "diffusion", "ada/apples", "--out", tmp_path / "out")
    assert done.code == 0, done
    assert "nothing was uploaded" in done.out
    assert digest(load(tmp_path / "out")) == digest(load(trained / "diffusion"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The licence of its data is not stated" in card
