"""Writing the files of a repository, and bringing them to the hub."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from sfumato.checkpoint import write_text
from sfumato.conditioning.table import ConditionerConfig
from sfumato.errors import UserError
from sfumato.hub import FILES, HubName, client, differs, one_sentence, stated_files
from sfumato.model import LatentDiffusion
from sfumato.publishing.card import CURVES, RECONSTRUCTIONS, SAMPLES, TITLES, Words, model_card
from sfumato.publishing.curve import loss_curve
from sfumato.publishing.facts import Facts

README = "README.md"
OURS = {README, SAMPLES, RECONSTRUCTIONS, *CURVES.values()}
LOSSES = {"autoencoder": ("reconstruction", "loss"), "diffusion": ("loss_smoothed", "loss")}


def write_repository(facts: Facts, words: Words, folder: Path) -> None:
    """Writes the model, its images and its card into a folder that is new.

    Paths of this machine are left out of the configuration. Raises UserError for a model that needs a folder of this
    machine.
    """
    _check_is_whole(facts.model)
    published(facts.model).save(folder, facts.bits)
    for source, name in ((facts.samples, SAMPLES), (facts.reconstructions, RECONSTRUCTIONS)):
        if source is not None and source.is_file():
            shutil.copyfile(source, folder / name)
    for stage, lines in facts.curves.items():
        chart = loss_curve(lines, LOSSES[stage], f"{TITLES[stage]}: loss over steps")
        if chart is not None:
            chart.save(folder / CURVES[stage], optimize=True)
    write_text(folder / README, model_card(facts, words, {path.name for path in folder.iterdir()}))


def published(model: LatentDiffusion) -> LatentDiffusion:
    """The model with the names of its data instead of their paths."""
    about = {name: _without_paths(one) if isinstance(one, dict) else one for name, one in model.config.about.items()}
    return replace(model, config=model.config.model_copy(update={"about": about}))


def _without_paths(about: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about a training, with each path reduced to its last part."""
    return {
        key: _without_paths(one)
        if isinstance(one, dict)
        else PurePath(one).name
        if isinstance(one, str) and PurePath(one).is_absolute()
        else one
        for key, one in about.items()
    }


def _check_is_whole(model: LatentDiffusion) -> None:
    config: ConditionerConfig | None = None if model.second is None else model.second.config.conditioner
    for part in (config, *getattr(config, "parts", {}).values()):
        source = getattr(part, "source", None)
        if source is not None and Path(source).is_dir():
            raise UserError(
                f"this model reads its text encoder from {source!r}, a folder of this machine: train with the name of "
                "an encoder on the hub, and push that"
            )


def push(folder: Path, name: HubName, private: bool, message: str) -> str:
    """Creates the repository if there is none, and uploads the files as one commit. Returns its address.

    Files of an earlier model that this one does not have are removed. What the hub then states is compared with the
    files. Raises UserError.
    """
    api = client()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    with one_sentence(name):
        address = api.create_repo(name.repository, private=private or None, exist_ok=True)
        there = api.model_info(name.repository, revision=name.revision)
        known = {one.rfilename for one in there.siblings or ()}
        gone = sorted(one for one in known - set(files) if FILES.fullmatch(one) or one in OURS)
        operations: list[Any] = [CommitOperationAdd(each, str(path)) for each, path in files.items()]
        operations += [CommitOperationDelete(each) for each in gone]
        api.create_commit(name.repository, operations, commit_message=message, revision=name.revision)
        stated = stated_files(api.model_info(name.repository, revision=name.revision, files_metadata=True))
    wrong = [each for each, path in files.items() if FILES.fullmatch(each) and _is_wrong(path, stated.get(each))]
    if wrong:
        raise UserError(f"{wrong[0]} arrived at the hub as another file (its digest differs): push again")
    return str(address)


def _is_wrong(path: Path, stated: Any) -> bool:
    return stated is None or differs(path, stated)
