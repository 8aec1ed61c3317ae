"""Ends a process whose launcher or peers no longer respond: it would wait for them for hours.

Every process increments a counter in the rendezvous store and reads those of the others. That the launcher has ended
shows in a changed parent process. All checks run in threads beside the training, those before the processes have met
beside their rendezvous.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

INTERVAL = 1.0
"""Seconds between two heartbeats."""
SILENCE = 15.0
"""Seconds without a heartbeat after which a process counts as lost; torchrun may take 30 more to kill it."""
GRACE = 25.0
"""Seconds to finish the step and save if the processes themselves still respond."""

ENDING = 5.0
"""Seconds that the end of a process waits for a thread that speaks to the store."""
MEETING = 55.0
"""Seconds after its start within which a process has to meet the others."""


class Watch:
    """How long each counter has not changed; independent of threads and stores."""

    def __init__(self, count: int, now: float) -> None:
        self._beats: list[bytes | None] = [None] * count
        self._changed = [now] * count
        self._looked = now

    def update(self, beats: Sequence[bytes], now: float) -> None:
        """Records the current counters."""
        for i, beat in enumerate(beats):
            if beat != self._beats[i]:
                self._beats[i], self._changed[i] = beat, now

    def silent(self, now: float, limit: float = SILENCE) -> list[int]:
        """The indices of counters that have not changed for more than `limit` seconds.

        Empty if this process itself has not checked for long: it was suspended, as with the lid of a laptop closed,
        and so were the others.
        """
        slept, self._looked = now - self._looked > limit / 2, now
        if slept:
            self._changed = [now] * len(self._changed)
        return [i for i, changed in enumerate(self._changed) if now - changed > limit]


class Heartbeat:
    """Sends the heartbeat of process `rank` of `world`, and watches the others and the launcher."""

    def __init__(self, rank: int, world: int, launcher: int | None) -> None:
        """launcher: its process number, None if this process may outlive its parent. It is watched from `start` on."""
        self._rank, self._world, self._launcher = rank, world, launcher
        self._watch: Watch | None = None
        self._lock, self._over, self._met = threading.Lock(), threading.Event(), threading.Event()
        self._early: Store | None = None
        self._store_lost = self._reported = False
        self._threads: list[threading.Thread] = []

    def start(self, connect: "Callable[[], Store | None]") -> None:
        """Starts watching the launcher, which may end before the rendezvous, and the time until all have met.

        connect: opens the rendezvous store, or waits for it, in a thread.
        """
        atexit.register(self.stop)
        self._thread("watch", self._watching)
        self._thread("announce", self._announcing, connect)

    def meet(self, store: "Store | None", all_met: Callable[[], None]) -> None:
        """Starts watching the others through the rendezvous store, if there is one. `all_met` waits for them."""
        if store is not None:
            self._beat(store, 0)
        all_met()
        self._met.set()
        if store is not None:
            self._watch = Watch(self._world + 1, time.monotonic())  # the last entry: the store itself responds
            self._thread("heartbeat", self._beating, store)

    def stop(self) -> None:
        """Stops watching, before the process group is destroyed and before the interpreter ends.

        A thread that is inside the store's C++ code when the interpreter ends aborts the process: std::terminate.
        """
        self._over.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(ENDING)
        atexit.unregister(self.stop)

    def _thread(self, name: str, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def explain(self) -> None:
        """Prints why a run ends early that is not finished, if the launcher's end is the reason.

        Another process may have seen it first and ended the training of all, before this one looked.
        """
        if self._launcher_ended():
            self._report(self._launcher_cause())

    def _beat(self, store: "Store", count: int) -> None:
        store.set(f"beat {self._rank}", str(count))

    def _beating(self, store: "Store") -> None:
        """Increments the own counter and reads the others; a store that does not respond blocks only this thread."""
        keys = [f"beat {rank}" for rank in range(self._world)]
        count = 0
        while not self._over.wait(INTERVAL):
            count += 1
            try:
                self._beat(store, count)
                beats = store.multi_get(keys)
            except RuntimeError:
                self._store_lost = True
                return
            with self._lock:
                if self._watch is not None:
                    self._watch.update([*beats, str(count).encode()], time.monotonic())

    def _announcing(self, connect: "Callable[[], Store | None]") -> None:
        """Increments a counter until all have met, so that the others can see which is missing."""
        store, count = connect(), 0
        self._early = store
        while store is not None and not self._met.is_set() and not self._over.wait(INTERVAL):
            count += 1
            try:
                store.set(f"early {self._rank}", str(count))
            except RuntimeError:
                return

    def _missing(self) -> list[int] | None:
        """The ranks whose early counters do not move, None if the store does not answer."""
        store, found = self._early, list[list[int]]()

        def counters(store: "Store") -> list[bytes | None]:
            keys = [f"early {rank}" for rank in range(self._world)]
            return [store.get(key) if store.check([key]) else None for key in keys]

        def look(store: "Store") -> None:
            before = counters(store)
            time.sleep(3 * INTERVAL)
            after = counters(store)
            found.append([rank for rank in range(self._world) if before[rank] == after[rank] and rank != self._rank])

        if store is not None:
            asking = threading.Thread(target=look, args=(store,), daemon=True)
            asking.start()
            asking.join(5 * INTERVAL)  # a store whose process is stopped never answers
        if not found:
            return [0] if self._launcher is None and self._rank else None  # the first hosts the store
        return found[0]

    def _check_meeting(self, waited: float) -> None:
        if self._met.is_set() or waited <= MEETING:
            return
        missing = self._missing()
        if self._met.is_set():
            return
        if missing:
            who = f"process {', '.join(map(str, missing))} of {self._world} has not met the others"
        else:
            who = f"the {self._world} processes have not met"
        self._end(f"{who} within {MEETING:.0f} s of the start", 0, missing or ())

    def _watching(self) -> None:
        waited, looked = 0.0, time.monotonic()
        while not self._over.wait(INTERVAL):
            now = time.monotonic()
            waited += min(now - looked, 2 * INTERVAL)  # not while this process was stopped itself
            looked = now
            self._check_meeting(waited)
            if self._launcher_ended():
                self._end(self._launcher_cause(), GRACE)
            elif self._store_lost:
                self._end("the process that hosts the rendezvous has ended", GRACE)
            with self._lock:
                silent = [] if self._watch is None else self._watch.silent(time.monotonic())
            if self._world in silent and self._launcher is None:
                silent = [0]  # which hosts the store
            elif self._world in silent:
                self._end(f"the launcher (process {self._launcher}) has not answered for {SILENCE:.0f} s", 0)
            lost = [rank for rank in silent if rank != self._rank]
            if lost:
                names = ", ".join(map(str, lost))
                self._end(f"process {names} of {self._world} has not answered for {SILENCE:.0f} s", 0, lost)

    def _launcher_ended(self) -> bool:
        return self._launcher is not None and os.getppid() != self._launcher

    def _launcher_cause(self) -> str:
        return f"the launcher (process {self._launcher}) has ended"

    def _report(self, cause: str, lost: Sequence[int] = ()) -> None:
        """Prints the cause once, in the lowest rank that is left."""
        with self._lock:
            first, self._reported = not self._reported, True
        if first and all(rank in lost for rank in range(self._rank)):
            _print(f"sfumato: {cause}, so this run ends: the same command resumes from the last state")

    def _end(self, cause: str, grace: float, lost: Sequence[int] = ()) -> None:
        """Ends this process and reports why; with `grace`, SIGTERM first lets it save."""
        if self._over.is_set():
            return
        self._report(cause, lost)
        if grace:
            os.kill(os.getpid(), signal.SIGTERM)
            if self._over.wait(grace):
                time.sleep(grace)  # it ends by itself, and this thread with it
        os._exit(1)


def _print(sentence: str) -> None:
    """Writes to standard error, if it is still open."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        return
