"""A call that may never return: it runs on a side thread and is given up after a while.

Decoders hang on some damaged files, deep in C where no signal reaches them. They release the interpreter, so the thread
that waits can go on: it leaves the stuck thread behind (it dies with the process) and starts another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
Call = tuple[Callable[[], object], SimpleQueue]  # what to do, and where its outcome goes


class Patience:
    """One side thread a process, made on the first call; safe to pickle and to fork."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._calls: SimpleQueue[Call] | None = None
        self._process = 0

    def __call__(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises; TimeoutError after `seconds`."""
        if self._calls is None or self._process != os.getpid():  # a fork inherits the queue without its thread
            self._calls, self._process = SimpleQueue(), os.getpid()
            Thread(target=_serve, args=(self._calls,), daemon=True, name="decode").start()
        outcome: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._calls.put((call, outcome))
        try:
            value, error = outcome.get(timeout=self.seconds)
        except Empty:
            self._calls = None
            raise TimeoutError(f"no answer within {self.seconds:g} s") from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def __setstate__(self, state: dict[str, float]) -> None:
        self.__init__(state["seconds"])  # type: ignore[misc]


def _serve(calls: SimpleQueue) -> None:
    while True:
        call, outcome = calls.get()
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))
        del call, outcome
