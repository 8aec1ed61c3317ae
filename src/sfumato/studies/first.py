"""The first stages of studies: one training, or what is left of it."""

from pathlib import Path

from sfumato.studies.context import finished
from sfumato.training.autoencoder import AutoencoderRun, train_autoencoder
from sfumato.training.data import RunData
from sfumato.training.export import save_autoencoder
from sfumato.training.previews import Reconstructions
from sfumato.training.run import RunFolder
from sfumato.training.workers import Workers

PREVIEWED = 64
"""Images that are reconstructed while training."""


def trained_first(run: AutoencoderRun, data: RunData, path: Path, workers: Workers) -> float:
    """Trains a first stage in the folder `path`, or resumes it; the training seconds. Raises Stopped after a signal."""
    home = RunFolder(path)
    preview = Reconstructions.of(data.measured, PREVIEWED, home.previews, run.train.precision, data.about_measured)
    with home.session(workers):
        home.claim(run)
        state = train_autoencoder(
            run,
            data.training,
            home,
            preview,
            lambda network, state: save_autoencoder(network, run, data, home, state),
            workers,
        )
    return finished(state)
