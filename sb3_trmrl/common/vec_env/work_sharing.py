"""Independent jobs on a few threads, one of which is the caller's: how they are cut, who takes them, when threads end."""

import atexit
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import ClassVar


def n_usable_cores() -> int:
    """:return: Number of processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(n_slots: int, n_threads: int) -> list[slice]:
    """
    Cut the slots into jobs: large ones first, which cost few calls, then smaller and smaller ones, so that all threads end
    at about the same time (guided self-scheduling, Polychronopoulos and Kuck 1987).

    :param n_slots: Number of slots.
    :param n_threads: Number of threads that take the jobs in this order.
    :return: The jobs.
    """
    cuts, start = [], 0
    while start < n_slots:
        # 1.5: a job costs some 8 microseconds by itself, so that more and smaller ones were slower
        size = math.ceil((n_slots - start) / (1.5 * n_threads)) if n_threads > 1 else n_slots
        cuts.append(slice(start, start + size))
        start += size
    return cuts


class WorkSharing:
    """
    Computes a list of independent jobs on the calling thread and ``n_threads - 1`` more, whoever is free takes the next.

    The pool inside of ``mujoco.rollout`` leaves the calling thread idle, which was slower wherever it was tried.

    The further threads start with the first call. They end with :meth:`stop`, at interpreter exit and when nothing refers to
    the object any more; a later call starts new ones. So does one in a fork, which has none of its parent's threads.

    :param jobs: The jobs, each a function of the thread's number.
    :param n_threads: Number of threads, with the calling one.
    """

    _alive: ClassVar["weakref.WeakSet[WorkSharing]"] = weakref.WeakSet()

    def __init__(self, jobs: Sequence[Callable[[int], None]], n_threads: int):
        self._jobs = jobs
        self._n_threads = n_threads
        self._threads: list[threading.Thread] = []
        self._begin: SimpleQueue[Iterator[Callable[[int], None]] | None] = SimpleQueue()
        self._finished: SimpleQueue[BaseException | None] = SimpleQueue()
        WorkSharing._alive.add(self)

    def __del__(self) -> None:
        self.stop()

    def __call__(self) -> None:
        """Do all jobs; an error in one of them is raised here."""
        if len(self._threads) < self._n_threads - 1:
            self._start()
        # Taking the next item of a list's iterator is one operation under the interpreter's lock
        left = iter(self._jobs)
        try:
            for _ in self._threads:
                self._begin.put(left)
            _do(left, 0)
            errors = [error for error in [self._finished.get() for _ in self._threads] if error is not None]
        except BaseException:  # an interrupt, say: do not take what the threads still report for the next call's
            self.stop()
            raise
        if errors:
            raise errors[0]

    def _start(self) -> None:
        # Ends of earlier threads may have been interrupted: begin with fresh queues. Threads refer to the queues only, so
        # that they keep nothing alive.
        self._begin, self._finished = SimpleQueue(), SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._begin, self._finished, number), daemon=True, name="MujocoVecEnv")
            for number in range(1, self._n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, if there are any."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._begin.put(None)
        for thread in threads:
            thread.join()

    @classmethod
    def stop_all(cls) -> None:
        """End the threads of all objects of this class."""
        for sharing in list(cls._alive):
            sharing.stop()


def _do(left: Iterator[Callable[[int], None]], number: int) -> None:
    for job in left:
        job(number)


def _work(
    begin: "SimpleQueue[Iterator[Callable[[int], None]] | None]", finished: "SimpleQueue[BaseException | None]", number: int
) -> None:
    while (left := begin.get()) is not None:
        error: BaseException | None = None
        try:
            _do(left, number)
        except BaseException as caught:
            error = caught
        del left
        finished.put(error)


def _forget_threads() -> None:
    for sharing in list(WorkSharing._alive):
        sharing._threads = []


# Before the interpreter takes its threads down, so that none is in the middle of a step then
atexit.register(WorkSharing.stop_all)
if hasattr(os, "register_at_fork"):
    # The parent's go on: another thread may be in the middle of a step
    os.register_at_fork(after_in_child=_forget_threads)
