"""One session of a run: what all training loops do after the gradients of a step are computed.

A loop fetches a batch, computes gradients, steps the optimizer, and then calls `count`, `record` and `finish` in this
order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol

from sfumato.data.dataset import Item, LatentSource, Source
from sfumato.data.loader import Loader
from sfumato.errors import Interrupted
from sfumato.training.batches import Reading, changed_batch, open_batches, small_groups
from sfumato.training.log import RunLog
from sfumato.training.run import Interrupt, RunFolder, interruptible
from sfumato.training.source import source_key
from sfumato.training.state import TrainState
from sfumato.training.steps import RUN_GOES_ON, Length, check_progress, check_result, count_step, progress
from sfumato.training.threads import thread_choice
from sfumato.training.trackers import Tracking
from sfumato.training.workers import Workers

Values = Mapping[str, float | list[float]]


class Reported(Length, Protocol):
    """The settings of a loop that concern its length and its log."""

    @property
    def log_every(self) -> int: ...

    @property
    def max_skipped(self) -> int: ...


class Resumable(Reported, Reading, Protocol):
    """The settings of a loop whose run is saved: batches, log and saving."""

    @property
    def save_every(self) -> int: ...

    @property
    def track(self) -> Tracking: ...


@dataclass(frozen=True)
class Periodic:
    """An action of the leading process every `every` steps (0: never) and after the last; its numbers are logged."""

    every: int
    act: Callable[[], Values | None]


class Averaged(Protocol):
    """The average of networks that the processes have in parts, whole in the leading one while it is shown or saved."""

    def gather(self) -> None:
        """Makes it whole; every process calls it."""

    def release(self) -> None:
        """Frees the memory of that."""


class Session(Generic[Item]):
    """Counting and checking, the log, previews, saving, stopping on a signal; `data` yields the batches."""

    def __init__(
        self,
        data: Loader[Item],
        log: RunLog,
        interrupt: Interrupt,
        settings: Reported,
        state: TrainState,
        workers: Workers,
        step_images: int,
        periodic: Sequence[Periodic] = (),
        save: Periodic | None = None,
        way_out: str = RUN_GOES_ON,
        averaged: Averaged | None = None,
    ) -> None:
        """Args:
        step_images: samples in a step, over all processes.
        periodic: run after a step in this order, before saving.
        save: also done after a signal.
        way_out: advice for the user if gradients stay non-finite.
        averaged: where the processes have parts of the networks; they then save together.
        """
        self.data, self.log = data, log
        self._interrupt, self._settings, self._state, self._workers = interrupt, settings, state, workers
        self._step_images, self._periodic, self._save, self._way_out = step_images, periodic, save, way_out
        self._averaged = averaged
        self._images_before = state.images
        self._threads = thread_choice(workers)

    @property
    def done(self) -> float:
        """The share of the run that is over, in [0, 1]."""
        return progress(self._settings, self._state)

    def goes_on(self) -> bool:
        """Whether there is another step: False at the run's end and after a signal."""
        return self.done < 1 and not self._state.stopped_by

    def count(self, finite: bool, elapsed: float) -> None:
        """Counts a step of `elapsed` seconds. Raises UserError if too many were skipped."""
        if self._threads is not None and (change := self._threads.after_step(elapsed)) is not None:
            self.log.say(change)
        count_step(self._state, finite, self._step_images, self._workers.mean(elapsed))
        check_progress(self._state, self._settings.max_skipped, self._way_out)
        if self.done == 1:
            check_result(self._state, self._way_out)

    @property
    def next_size(self) -> tuple[int, int]:
        """The sides of the next batch's images or latents; all batches of a step have one."""
        h, w = self.data.peek().values.shape[-2:]
        return h, w

    @property
    def log_due(self) -> bool:
        """Whether the step counted last is logged."""
        return self._state.step % self._settings.log_every == 0 or self.done == 1

    def record(self, values: Values, headline: str) -> None:
        """Logs the step's numbers and the counters if due; updates the progress bar."""
        state, done = self._state, self.done
        if self.log_due:
            counters = {"images": state.images, "seconds": state.seconds, "skipped": state.skipped}
            self.log.record(state.step, {**values, "data_wait_seconds": self.data.data_wait_seconds, **counters})
        self.log.advance(state.step, done, state.images - self._images_before, headline)

    def finish(self) -> None:
        """Previews, evaluates and saves if due; shares a signal, so that all processes stop after the same step."""
        state, last = self._state, self.done == 1
        state.stopped_by = self._workers.greatest(self._interrupt.signal)
        due = [task for task in self._periodic if task.every and (state.step % task.every == 0 or last)]
        save = self._save
        if save is not None and state.step % save.every and not last and not state.stopped_by:
            save = None
        if self._averaged is not None and (due or save is not None):
            self._averaged.gather()
        if self._workers.leads:
            for task in due:
                self._act(task)
            if due:
                self.log.show_previews(state.step)
        if save is not None and (self._workers.leads or self._averaged is not None):
            self._act(save)
        if self._averaged is not None:
            self._averaged.release()

    def _act(self, task: Periodic) -> None:
        values = task.act()
        if values is not None:
            self.log.record(self._state.step, values)


def resume(folder: RunFolder, state: TrainState, source: LatentSource, further: str | None = None) -> None:
    """Resumes from the newest state in `folder`, if there is one, and notes what the run is trained on.

    `further` identifies what belongs to that beside the latents, such as a codebook. Raises UserError if the run was
    trained on something else so far.
    """
    folder.resume(state, source_key(source, *([] if further is None else [further])))


def raise_if_stopped(state: TrainState) -> TrainState:
    """The state of a training that reached its end. Raises Interrupted if a signal stopped it."""
    if state.stopped_by:
        raise Interrupted(state.stopped_by)
    return state


@contextmanager
def open_session(
    title: str,
    source: Source[Item],
    settings: Resumable,
    state: TrainState,
    folder: RunFolder,
    workers: Workers,
    periodic: Sequence[Periodic],
    export: Callable[[], None],
    averaged: Averaged | None = None,
) -> Iterator[Session[Item]]:
    """The session of a run that is saved in `folder`: opens data and log at the step of `state`, and catches signals.

    `export` writes the averaged model, if a step has changed it. It comes before the state: if killed in between, the
    run repeats the steps since the last state.
    """

    def save() -> None:
        if workers.leads and state.step > state.skipped:
            export()
        folder.save(state)

    done = progress(settings, state)
    step_images = settings.batch * settings.accumulate * workers.world
    with (
        open_batches(source, settings, state, workers) as data,
        RunLog(folder.path, title, state.step, done, workers.leads, settings.track) as log,
        interruptible() as interrupt,
    ):
        for remark in (folder.source_remark, changed_batch(state, step_images), small_groups(source, step_images)):
            if remark is not None:
                log.say(remark)
        saving = Periodic(settings.save_every, save)
        session = Session(
            data, log, interrupt, settings, state, workers, step_images, periodic, saving, averaged=averaged
        )
        yield session
        if state.stopped_by and session.done < 1:
            workers.explain_end()
            log.say(f"stopped after step {state.step}; the same command resumes from there")
