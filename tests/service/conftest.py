"""Model folders that the tests of the service share."""

from pathlib import Path

import pytest

import tiny
from tasks import conditioned


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny untrained models by what they take."""
    root = tmp_path_factory.mktemp("models")
    models = {
        "text": tiny.model(),
        "label": tiny.model(tiny.BY_CLASS),
        "map": conditioned.semantic(),
        "boxes": conditioned.layout(),
        "small": conditioned.enlarging(),
        "masked": conditioned.masked(),
    }
    for name, model in models.items():
        model.save(root / name)
    return {name: root / name for name in models}
