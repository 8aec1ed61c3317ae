"""Results computed ahead by threads, returned in order."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Prefetch(Generic[Result]):
    """Results of `work(n)` for n = start, start + 1, ... (below `end`), at most `ahead` of them computed in advance.

    `next` raises what `work` raised for that result, and StopIteration at the end. `data_wait_seconds` is its total
    waiting time.
    """

    def __init__(
        self, work: Callable[[int], Result], start: int, workers: int, ahead: int | None = None, end: int | None = None
    ) -> None:
        """workers = 0 computes within `next`; `ahead` defaults to one more than workers."""
        self._work = work
        self._next = start
        self._end = end
        self._ahead = max(1, workers + 1 if ahead is None else ahead)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="read") if workers else None
        self._waiting: deque[Future[Result]] = deque()
        self._closed = False
        self.data_wait_seconds = 0.0
        self._fill()

    def next(self) -> Result:
        if self._closed:
            raise RuntimeError("reading was closed")
        t_start = time.perf_counter()
        try:
            if self._pool is None:
                return self._work(self._claim())
            if not self._waiting:
                raise StopIteration
            return self._waiting.popleft().result()
        finally:
            self.data_wait_seconds += time.perf_counter() - t_start
            self._fill()

    def close(self) -> None:
        """Cancels what has not started and waits for the rest; may be called twice."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def _claim(self) -> int:
        n = self._next
        if self._end is not None and n >= self._end:
            raise StopIteration
        self._next += 1
        return n

    def _fill(self) -> None:
        while (
            self._pool is not None
            and len(self._waiting) < self._ahead
            and (self._end is None or self._next < self._end)
        ):
            self._waiting.append(self._pool.submit(self._work, self._claim()))
