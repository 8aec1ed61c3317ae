"""`sfumato info` for a transformer over codes and a classifier of noisy latents."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.baselines.model import CodeModel
    from sfumato.classifier import LatentClassifier


def other_facts(path: Path) -> dict[str, Any] | None:
    """As JSON; None where the folder, or that of its run, is neither. Raises UserError for one that is not whole."""
    from sfumato.baselines.model import load_code_model
    from sfumato.classifier import WEIGHTS_FILE, load_classifier

    for folder in (path / "model", path):
        if (folder / "transformer.safetensors").exists():
            return {"path": str(folder), **_of_codes(load_code_model(folder))}
        if (folder / WEIGHTS_FILE).exists():
            return {"path": str(folder), **_of_classifier(load_classifier(folder))}
    return None


def _of_codes(model: "CodeModel") -> dict[str, Any]:
    from sfumato import flops
    from sfumato.baselines.model import codebook_of

    config, (h, w), codes = model.config, model.network.size, codebook_of(model.first)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    counts["autoencoder"] = sum(p.numel() for p in model.first.autoencoder.parameters())
    reads = {} if model.conditioner is None else {"reads": list(model.conditioner.reads)}
    return {
        "what": "a transformer over codes; sample from it with sfumato sample",
        "image size": list(config.image_size),
        "f": model.first.autoencoder.factor,
        "codes": {"an image": h * w, "rows": h, "columns": w, "codebook": codes},
        "transformer": config.transformer.model_dump(mode="json"),
        "parameters": {**counts, "total": sum(counts.values())},
        "conditioner": {"kind": config.conditioner.kind, **reads},
        "condition dropout": config.condition_dropout,
        "trained on": config.about,
        "flops": {
            "all codes at once": flops.code_transformer(config.transformer, codes, h * w),
            "decode": flops.decode(model.first.config.autoencoder, config.image_size),
        },
    }


def _of_classifier(classifier: "LatentClassifier") -> dict[str, Any]:
    config = classifier.config
    return {
        "what": "a classifier of noisy latents; give it to sfumato sample as --classifier",
        "latent channels": config.latent_channels,
        "classes": list(config.names) if config.names else config.classes,
        "parameters": {"classifier": sum(p.numel() for p in classifier.network.parameters())},
        "schedule": config.schedule.model_dump(mode="json"),
        "autoencoder": config.autoencoder,
        "trained on": {"classifier": config.about},
    }
