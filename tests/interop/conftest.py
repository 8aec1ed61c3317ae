"""Original checkpoints made by the weight rule, imported once for each test run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from parity import scaled_weights
from sfumato.interop.original import Imported, import_original


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> NAME.ckpt in the original layout, with NAME.yaml beside it."""
    folder = tmp_path_factory.mktemp("original")

    def make(name: str) -> Path:
        path = folder / f"{name}.ckpt"
        if not path.exists():
            weights, config = scaled_weights(name)
            torch.save({"epoch": 7, "global_step": 123456, "state_dict": weights}, path)
            path.with_suffix(".yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return make


@pytest.fixture(scope="session")
def imported(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Imported]:
    """(name, weights) -> the imported model folder."""
    done: dict[tuple[str, str | None], Imported] = {}
    root = tmp_path_factory.mktemp("imported")

    def get(name: str, weights: str | None = None) -> Imported:
        if (name, weights) not in done:
            done[name, weights] = import_original(checkpoint(name), root / f"{name}-{weights}", weights=weights)
        return done[name, weights]

    return get


@pytest.fixture(params=[False, True], ids=["zip", "stream"])
def legacy(request: pytest.FixtureRequest) -> bool:
    return request.param
