"""A run's folder: its configuration, its saved states, resuming, and stopping on a signal."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from pydantic import BaseModel

from sfumato import checkpoint
from sfumato.config import parse, read_source, to_yaml
from sfumato.errors import Interrupted, UserError
from sfumato.outputs import check_folder, written
from sfumato.stored_format import FORMAT
from sfumato.training.averages import snapshots
from sfumato.training.launch import launched
from sfumato.training.state import TrainState
from sfumato.training.workers import Workers
from sfumato.versions import tidy

STATES_KEPT = 2
MAY_CHANGE = {
    "train.steps",
    "train.minutes",
    "train.optimiser.learning_rate",
    "train.discriminator.learning_rate",
    "train.precision",
    "train.checkpointing",
    "train.save_every",
    "train.preview_every",
    "train.preview_images",
    "train.log_every",
    "train.max_skipped",
    "train.workers",
    "train.evaluation.every",
}
"""Settings that may differ between the sessions of one run."""

DATA_PATH = "data.path"
"""May differ, too, where the data is the same: what it is follows from its content, which `RunFolder.resume` checks."""


class RunFolder:
    """`config.yaml`, `states/`, `log.jsonl`, `previews/*.png`, `snapshots/` and `model/` of one run."""

    def __init__(self, path: Path) -> None:
        if os.path.exists(path) and not os.path.isdir(path):  # False for a name that no file can have
            raise UserError(f"--out {str(path)!r} is a file; give the folder of a new or an interrupted run")
        self.path = path
        self.states = path / "states"
        self.previews = path / "previews"
        self.model = path / "model"
        self.snapshots = path / snapshots.FOLDER
        self.best = path / "best"
        self.data_moved = False
        """Whether `claim` was given another place of the data than the run in the folder had."""
        self._claimed: str | None = None
        self._begun = False
        self._newest: Path | None = None
        self._looked = False

    @contextmanager
    def session(self, workers: Workers, cache: Path | None = None) -> Iterator[None]:
        """Within the block this run alone is trained here; a refusal in it, before the first step, leaves no trace.

        The leading process takes the folder's lock, and removes what a killed session left; the others learn whether
        it could, and end silently where not. Raises UserError where another process trains here, or the folder or
        `cache` cannot be written to.
        """
        refusal: UserError | None = None
        with ExitStack() as held:
            if workers.leads:
                try:
                    held.enter_context(written(self.path, "--out", cache, lambda: self._begun))
                    self._tidy()
                except UserError as error:
                    refusal = error
            if workers.any(refusal is not None):
                raise refusal or SystemExit(2)
            yield

    def _tidy(self) -> None:
        for folder in (self.model, self.best, self.states, self.snapshots, self.previews):
            tidy(folder)

    def _whole(self) -> Path | None:
        """The newest whole state, looked for once. Raises UserError where there are states, and none is whole."""
        if not self._looked:
            self._newest, self._looked = checkpoint.newest(self.states, print), True
        return self._newest

    def _done(self) -> int | None:
        """The step of the newest whole state."""
        path = self._whole()
        return next((step for step, saved in checkpoint.saved_steps(self.states) if saved == path), None)

    def claim(self, config: BaseModel) -> None:
        """Makes the folder, or checks that the run in it has this configuration; `config.yaml` is written here for a
        new run, and by `resume` for an old one.

        Raises UserError naming the first setting that differs, unless it is one of MAY_CHANGE or the data's place, and
        where no saved state of the run is whole.
        """
        check_folder(self.path)
        self._looked = False
        file = self.path / "config.yaml"
        if not checkpoint.saved_steps(self.states):
            file.unlink(missing_ok=True)  # nothing was learnt under that configuration yet
        if file.exists():
            before, now = _flat(self._stored(file, type(config))), _flat(config)
            for key in sorted(set(before) | set(now)):
                if differ(key, before.get(key), now.get(key)):
                    raise UserError(
                        f"--out {str(self.path)!r} holds a run with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                        "give the same configuration to resume it, or another folder"
                    )
            self.data_moved = not same_place(before.get(DATA_PATH), now.get(DATA_PATH))
        self._check_steps(config)
        try:
            self.previews.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{str(self.previews)!r} cannot be made: {error.strerror or error}") from None
        self._claimed = f"format: {FORMAT}\n{to_yaml(config)}"
        if not file.exists():
            checkpoint.write_text(file, self._claimed)

    def _stored(self, file: Path, schema: type[BaseModel]) -> BaseModel:
        """The configuration of the run in the folder; settings that it was begun without have their defaults."""
        try:
            return parse(read_source(str(file)), schema, str(file))
        except (UserError, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--out {str(self.path)!r} holds a run that this command cannot go on with ({error}); "
                "give another folder"
            ) from None

    def describe(self, say: Callable[[str], None]) -> None:
        """Says whether a run begins here or goes on."""
        done = self._done()
        say(f"a new run in {self.path}" if done is None else f"going on after step {done} of the run in {self.path}")

    def _check_steps(self, config: BaseModel) -> None:
        """Raises UserError where the run in the folder has gone further than `train.steps`."""
        train = getattr(config, "train", None)
        done = self._done() or 0
        if train is not None and train.minutes is None and train.steps < done:
            raise UserError(
                f"train.steps is {train.steps}, but the run in {str(self.path)!r} has done {done} already: "
                "give at least as many, or another folder"
            )

    def save(self, state: TrainState) -> None:
        """Writes the state atomically and drops older ones, and those of later steps that the run went back from."""
        path = checkpoint.step_path(self.states, state.step)
        checkpoint.save_tensors(path, state.tensors(), state.numbers())
        checkpoint.prune(self.states, STATES_KEPT, state.step)
        self._newest, self._looked = path, True

    def resume(self, state: TrainState, source: str | None = None) -> bool:
        """Loads the newest whole state into `state`; False where there is none.

        `source` names what the run must have learnt from so far (`state.notes["source"]`). Raises UserError where that
        was something else, or the state belongs to other networks.
        """
        path = self._whole()
        if path is not None:
            tensors, numbers = checkpoint.load_tensors(path)
            notes = numbers.get("notes")
            if source is not None and isinstance(notes, dict) and notes.get("source", source) != source:
                raise UserError(
                    f"the run in {str(self.path)!r} has learnt from something else: its data or its autoencoder has "
                    "changed; bring back what it began with, or give --out another folder"
                )
            try:
                state.load(tensors, numbers)
            except (KeyError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{str(path)!r} does not fit this configuration: {reason[:300]}") from error
        self._begun = True
        if self._claimed is not None:  # not before: data at another place may have turned out to be other data
            checkpoint.write_text(self.path / "config.yaml", self._claimed)
        return path is not None


TOGETHER = 2.0


class Interrupt:
    """Set by the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        """Its number; 0 as long as there was none."""


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block the first signal only asks the loop to save and stop.

    Where there are several processes, one that follows within TOGETHER seconds is the same request: a terminal signals
    them and their launcher, and the launcher passes it on.
    """
    interrupt = Interrupt()
    several = launched().world > 1
    t_first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal t_first
        if not interrupt.signal:
            interrupt.signal, t_first = number, time.monotonic()
        elif not several or time.monotonic() - t_first > TOGETHER:
            raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, ask)
    except ValueError:  # not the main thread: signals stay with whoever has it
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def differ(key: str, before: object, now: object) -> bool:
    """Whether a setting keeps a run from going on: another value, of one that may not change, for another place."""
    return before != now and key not in {*MAY_CHANGE, DATA_PATH} and not same_place(before, now)


def same_place(before: object, now: object) -> bool:
    """Whether two settings are equal, or paths of one thing that is there: `d` and `$PWD/d`."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    try:
        return Path(before).samefile(now)
    except (OSError, ValueError):
        return False


def _flat(config: BaseModel) -> dict[str, object]:
    """The settings by dotted key."""

    def walk(tree: dict[str, object], prefix: str) -> dict[str, object]:
        flat: dict[str, object] = {}
        for key, value in tree.items():
            flat |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return flat

    return walk(config.model_dump(mode="json"), "")
