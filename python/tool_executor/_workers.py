"""Threads of our own: for functions of the library that wait, and for tools that are functions.

They are daemons: one that is stuck in a user's function does not hold up the end of the program.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any, Callable, Deque, Generic, List, Optional, TypeVar

from ._errors import StartError

T = TypeVar("T")

_IDLE_S = 10.0


class Workers:
    """A pool that grows to `most` threads, which end when they had nothing to do for a while."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._changed = threading.Condition()
        self._jobs: Deque[Callable[[], None]] = deque()
        self._idle = 0
        self._count = 0
        self._number = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Has `job` run by a thread, in its turn. It must not raise.

        Raises `StartError` where the machine has no thread for it.
        """
        with self._changed:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._changed.notify()
                return
            if self._count >= self._most:
                return
            self._count += 1
            self._number += 1
            name = f"{self._name}-{self._number}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError as error:
            with self._changed:
                self._count -= 1
                if self._count > 0:
                    return  # another one takes it
                self._jobs.remove(job)
            raise StartError(f"no thread: {error}") from error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._jobs:
                    if not self._changed.wait(_IDLE_S) and not self._jobs:
                        self._idle -= 1
                        self._count -= 1
                        return
                self._idle -= 1
                job = self._jobs.popleft()
            job()
            del job  # what it holds is not to live as long as this thread waits


class Job(Generic[T]):
    """What a worker computes for a thread that waits, or no longer waits."""

    def __init__(self, function: Callable[[], T], dispose: Optional[Callable[[T], None]]) -> None:
        self._function = function
        self._dispose = dispose
        self._lock = threading.Lock()
        self._abandoned = False
        self._done = threading.Lock()
        self._done.acquire()
        self._value: List[T] = []
        self._error: Optional[BaseException] = None
        self._callback: Optional[Callable[[], None]] = None

    def run(self) -> None:
        """Computes it. Called by a worker."""
        try:
            self._value.append(self._function())
        except BaseException as error:
            self._error = error
        with self._lock:
            abandoned = self._abandoned
            callback = self._callback
        if abandoned:
            self._throw_away()
        self._done.release()
        if callback is not None:
            callback()

    def call_when_done(self, callback: Callable[[], None]) -> None:
        """Has `callback` called by the worker. To be said before it is submitted."""
        self._callback = callback

    def wait(self) -> T:
        """Waits for it. A signal's handler that raises ends the wait."""
        self._done.acquire()
        return self.result()

    def result(self) -> T:
        """What was computed."""
        if self._error is not None:
            raise self._error
        return self._value.pop()

    def abandon(self) -> None:
        """Nothing waits for it any more: what it gives, now or later, is thrown away."""
        with self._lock:
            self._abandoned = True
            done = bool(self._value)
        if done:
            self._throw_away()

    def _throw_away(self) -> None:
        if self._dispose is not None and self._value:
            self._dispose(self._value.pop())


def _new() -> Workers:
    return Workers("tool-executor-wait", 32)


_waiting = _new()


def _after_fork() -> None:
    # The threads are the parent's, and so may be the lock.
    global _waiting
    _waiting = _new()


os.register_at_fork(after_in_child=_after_fork)


def start(job: Job[Any]) -> None:
    """Has a worker compute a job."""
    _waiting.submit(job.run)


def interruptibly(function: Callable[[], T], dispose: Optional[Callable[[T], None]] = None) -> T:
    """Calls a function that waits outside of Python.

    Signals are handled by the main thread alone, and only while it runs Python; so there a worker
    waits in its place. After an interrupt the function goes on, and what it gives is disposed of.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    job = Job(function, dispose)
    try:
        start(job)
        return job.wait()
    except BaseException:
        job.abandon()
        raise
