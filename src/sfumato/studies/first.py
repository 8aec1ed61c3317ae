"""The first stages of studies: one training, or what is left of it."""

from pathlib import Path

from sfumato.studies.context import finished
from sfumato.training.autoencoder import train_autoencoder
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import RunData
from sfumato.training.export import save_autoencoder
from sfumato.training.previews import Reconstructions
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers


def trained_first(run: AutoencoderRun, data: RunData, path: Path, workers: Workers) -> TrainState:
    """Trains a first stage in the folder `path`, or resumes it; its state at the end. Raises Stopped after a signal."""
    home = RunFolder(path)
    train = run.train
    preview = Reconstructions.of(
        data.measured, train.preview_images, home.previews, train.precision, data.about_measured
    )
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
    finished(state)
    return state
