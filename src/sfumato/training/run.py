"""A run's folder: its configuration, its saved states, resuming, and stopping on a signal."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from sfumato import checkpoint
from sfumato.config import parse, read_source, to_yaml
from sfumato.errors import Interrupted, UserError
from sfumato.outputs import check_folder, written
from sfumato.stored_format import FORMAT
from sfumato.training.averages import snapshots
from sfumato.training.launch import launched
from sfumato.training.source import CHANGED, NOTE, UNCHECKED, is_same
from sfumato.training.state import TrainState
from sfumato.training.trackers import check_tracker
from sfumato.training.workers import Workers
from sfumato.versions import tidy

STATES_KEPT = 2
MAY_CHANGE = {
    "train.steps",
    "train.minutes",
    "train.step_limits",
    "train.optimiser.learning_rate",
    "train.optimiser.precision",
    "train.discriminator.learning_rate",
    "train.discriminator.precision",
    "train.denoiser.learning_rate",
    "train.denoiser.precision",
    "train.precision",
    "train.checkpointing",
    "train.shard",
    "train.save_every",
    "train.preview_every",
    "train.preview_images",
    "train.log_every",
    "train.track",
    "train.max_skipped",
    "train.workers",
    "train.evaluation.every",
}
"""Settings that may differ between the sessions of one run."""

DATA_PATH = "data.path"
"""May differ, too, if the data is the same: its content identifies it, which `RunFolder.resume` checks."""


class RunFolder:
    """`config.yaml`, `states/`, `log.jsonl`, `previews/*.png`, `snapshots/` and `model/` of one run."""

    def __init__(self, path: Path) -> None:
        if os.path.exists(path) and not os.path.isdir(path):  # False for a name that no file can have
            raise UserError(f"--out {str(path)!r} is a file: give the folder of a new or an interrupted run")
        self.path = path
        self.states = path / "states"
        self.previews = path / "previews"
        self.model = path / "model"
        self.snapshots = path / snapshots.FOLDER
        self.best = path / "best"
        self.data_moved = False
        """Whether `claim` was called with another path of the data than the run in the folder had."""
        self.source_remark: str | None = None
        """A remark on the run's data for the user, made by `resume`."""
        self._claimed: str | None = None
        self._started = False
        self._newest: Path | None = None
        self._searched = False

    @contextmanager
    def session(self, workers: Workers, cache: Path | None = None) -> Iterator[None]:
        """Within the block only this run is trained here; a UserError in it, before the first step, leaves no trace.

        The leading process takes the folder's lock, and removes what a killed session left; the others are informed
        whether it succeeded, and end silently if not. Raises UserError if another process trains here, or the folder
        or `cache` cannot be written to.
        """
        refusal: UserError | None = None
        with ExitStack() as held:
            if workers.leads:
                try:
                    held.enter_context(written(self.path, "--out", cache, lambda: self._started))
                    self._tidy()
                except UserError as error:
                    refusal = error
            if workers.any(refusal is not None):
                raise refusal or SystemExit(2)
            yield

    def _tidy(self) -> None:
        for folder in (self.model, self.best, self.states, self.snapshots, self.previews):
            tidy(folder)

    def _newest_state(self) -> Path | None:
        """The newest intact state, searched for once. Raises UserError if there are states but none is intact."""
        if not self._searched:
            self._newest, self._searched = checkpoint.newest(self.states, print), True
        return self._newest

    def _done(self) -> int | None:
        """The step of the newest intact state."""
        path = self._newest_state()
        return next((step for step, saved in checkpoint.saved_steps(self.states) if saved == path), None)

    def claim(self, config: BaseModel) -> None:
        """Creates the folder, or checks that the run in it has this configuration; `config.yaml` is written here for a
        new run, and by `resume` for an existing one.

        Raises UserError naming the first setting that differs, unless it is one of MAY_CHANGE or the data's path, and
        if no saved state of the run is intact.
        """
        check_folder(self.path)
        check_tracker(getattr(getattr(config, "train", None), "track", "none"))
        self._searched = False
        file = self.path / "config.yaml"
        if not checkpoint.saved_steps(self.states):
            file.unlink(missing_ok=True)  # nothing was trained with that configuration yet
        if file.exists():
            before, now = flat(self._stored(file, type(config))), flat(config)
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
            raise UserError(f"{str(self.previews)!r} cannot be created: {error.strerror or error}") from None
        self._claimed = f"format: {FORMAT}\n{to_yaml(config)}"
        if not file.exists():
            checkpoint.write_text(file, self._claimed)

    def _stored(self, file: Path, schema: type[BaseModel]) -> BaseModel:
        """The configuration of the run in the folder; settings that did not exist then have their defaults."""
        try:
            return parse(read_source(str(file)), schema, str(file))
        except (UserError, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--out {str(self.path)!r} holds a run that this command cannot resume ({error}); give another folder"
            ) from None

    def describe(self, say: Callable[[str], None]) -> None:
        """Reports whether a run starts here or is resumed."""
        done = self._done()
        say(f"a new run in {self.path}" if done is None else f"resuming after step {done} of the run in {self.path}")

    def _check_steps(self, config: BaseModel) -> None:
        """Raises UserError if the run in the folder is past `train.steps`."""
        train = getattr(config, "train", None)
        done = self._done() or 0
        if train is not None and train.minutes is None and train.steps < done:
            raise UserError(
                f"train.steps is {train.steps}, but the run in {str(self.path)!r} has done {done} already: "
                "give at least as many, or another folder"
            )

    def save(self, state: TrainState) -> None:
        """Writes the state atomically; removes older ones, and those of later steps if the run was set back.

        Only the leading process calls it, or all of them where the processes have parts of the state.
        """
        path = checkpoint.step_path(self.states, state.step, state.in_parts)
        if state.in_parts:
            from sfumato.training.state_files import save_parts

            save_parts(path, state)
            if launched().rank:
                return
        else:
            checkpoint.save_tensors(path, state.tensors(), state.numbers())
        checkpoint.prune(self.states, STATES_KEPT, state.step)
        self._newest, self._searched = path, True

    def resume(self, state: TrainState, source: str | None = None, strict: bool = True) -> bool:
        """Loads the newest intact state into `state`; False if there is none.

        `source` identifies what the run learns from (`source.source_key`) and is noted in the state. Where it differs
        from that of the saved state, or the two cannot be compared, `source_remark` is a sentence for the user.
        Raises UserError where it differs and `strict` is set, and where the state belongs to other networks.
        """
        path = self._newest_state()
        if path is not None:
            tensors, numbers = self._loaded(path, state)
            notes = numbers.get("notes")
            stored = notes.get(NOTE) if isinstance(notes, dict) else None
            same = None if source is None else is_same(stored, source)
            if source is not None and same is not True:
                self.source_remark = UNCHECKED if same is None else CHANGED
            if same is False and strict:
                raise UserError(
                    f"the run in {str(self.path)!r} was trained on something else: its data or its autoencoder has "
                    "changed; restore what it started with, or give --out another folder"
                )
            try:
                state.load(tensors, numbers)
            except (KeyError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{str(path)!r} does not fit this configuration: {reason[:300]}") from error
        if source is not None:
            state.notes[NOTE] = source
        self._started = True
        if self._claimed is not None:  # only now: data at another path may have turned out to be other data
            checkpoint.write_text(self.path / "config.yaml", self._claimed)
        return path is not None

    def _loaded(self, path: Path, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and counters of a saved state, in parts if those of `state` are."""
        if not path.is_dir() and not state.in_parts:
            return checkpoint.load_tensors(path)
        from sfumato.training.state_files import load_state

        return load_state(path, state)


TOGETHER = 2.0


class Interrupt:
    """Set by the first SIGINT or SIGTERM; a second one ends the process immediately."""

    def __init__(self) -> None:
        self.signal = 0
        """The signal's number; 0 as long as there was none."""


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block the first signal only requests that the loop save and stop.

    With several processes, a signal that follows within TOGETHER seconds is the same request: a terminal signals
    them and their launcher, and the launcher forwards it.
    """
    interrupt = Interrupt()
    several = launched().world > 1
    t_first = 0.0

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal t_first
        if not interrupt.signal:
            interrupt.signal, t_first = number, time.monotonic()
        elif not several or time.monotonic() - t_first > TOGETHER:
            raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, request_stop)
    except ValueError:  # not the main thread: signals stay with whoever has it
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def differ(key: str, before: object, now: object) -> bool:
    """Whether a setting prevents resuming a run: it has another value, must not change, and is not the same path."""
    return before != now and key not in {*MAY_CHANGE, DATA_PATH} and not same_place(before, now)


def same_place(before: object, now: object) -> bool:
    """Whether two settings are equal, or paths of the same existing file or folder, such as `d` and `$PWD/d`."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    try:
        return Path(before).samefile(now)
    except (OSError, ValueError):
        return False


def flat(config: BaseModel) -> dict[str, object]:
    """The settings by dotted key."""

    def flatten(tree: dict[str, object], prefix: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in tree.items():
            found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return flatten(config.model_dump(mode="json"), "")
