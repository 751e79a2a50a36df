"""Work that goes on beside other work, and ends with it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class _StoppedError(Exception):
    """The other work failed."""


class InBackground(Generic[T]):
    """Runs work in a thread for as long as the block lasts.

    Where the block ends by an error, the work is stopped the next time that it tells how far it is, and its
    own error, if any, is dropped.

    Args:
        work: called with a function that it tells how far it got.
    """

    def __init__(self, work: Callable[[Callable[[int], None]], T]) -> None:
        self._work = work
        self._told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._stopped = False
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> InBackground[T]:
        self._future: Future[T] = self._pool.submit(self._run)
        return self

    def _run(self) -> T:
        try:
            return self._work(self._tell)
        finally:
            self._told.put(None)

    def _tell(self, done: int) -> None:
        if self._stopped:
            raise _StoppedError
        self._told.put(done)

    def finish(self, advance: Callable[[int], None]) -> T:
        """Waits for the work, and returns what it returned; `advance` is told all that it told.

        Raises:
            Exception: what the work raised.
        """
        while (done := self._told.get()) is not None:
            advance(done)
        return self._future.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = kind is not None
        self._pool.shutdown(wait=True)
