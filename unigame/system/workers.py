"""Jobs side by side, each in a process of its own, and bars that show how far all of them are.

A job that trains a small model on a CPU gains little from a second thread, and a machine with two
cores does two such jobs in hardly more time than one. Imports nothing heavy.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from unigame.system.progress import Display
from unigame.system.threads import quota, usable_cores

Tell = Callable[[str, int, int], None]
"""What is being done, how many of it are done, of how many."""

_MOMENT = 0.5  # seconds of listening between two looks at whether a job has failed
_WATCH = 2.0  # seconds between two looks at whether the process that started us is still there


def cores() -> int:
    """Cores that this process may keep busy."""
    return min(usable_cores(), quota() or usable_cores())


def run_all(
    jobs: Sequence[tuple[str, Any]],
    do: Callable[[Any, Tell], None],
    workers: int,
    progress: Display,
    done: Callable[[], None],
) -> None:
    """Do all jobs, ``workers`` at a time; the first fault of one ends the others.

    Args:
        jobs: a name for people, and what ``do`` is given. With several workers both must pickle.
        do: does one, and tells how far it is; a function of a module.
        workers: 1 does them one after another in this process.
        progress: shows a bar for each thing that a job tells of.
        done: called once a job is done.
    """
    bars = _Bars(progress)
    if workers == 1 or len(jobs) < 2:
        for name, job in jobs:
            do(job, bars.of(name))
            done()
        return
    with _pool(min(workers, len(jobs))) as (executor, said):
        left = [executor.submit(_work, do, job, name, said) for name, job in jobs]
        while left:
            bars.drain(said)
            for one in [one for one in left if one.done()]:
                one.result()  # a fault of a worker is raised here
                left.remove(one)
                done()
        while not said.empty():  # nobody says any more
            bars.drain(said)


class _Bars:
    """One bar for each job and each thing done in it."""

    def __init__(self, progress: Display) -> None:
        self.progress, self.tasks = progress, dict[tuple[str, str], Any]()

    def of(self, name: str) -> Tell:
        """What a job in this process tells."""
        return lambda what, done, total: self.tell(name, what, done, total)

    def tell(self, name: str, what: str, done: int, total: int) -> None:
        """Move a bar."""
        if (name, what) not in self.tasks:
            self.tasks[name, what] = self.progress.add_task(f"  {name}: {what}", total=total)
        self.progress.update(self.tasks[name, what], completed=done)

    def drain(self, said: queue.Queue[tuple[str, str, int, int]]) -> None:
        """Move the bars of what the workers say, for a moment: some never fall silent."""
        end = time.monotonic() + _MOMENT
        with suppress(queue.Empty):
            while (left := end - time.monotonic()) > 0:
                self.tell(*said.get(timeout=left))


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Processes that do jobs, and the queue of what they say; stopped with us."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // workers)
    with context.Manager() as manager, _threads(threads):
        said, others = manager.Queue(), multiprocessing.active_children()
        executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),)
        )
        try:
            yield executor, said
        except BaseException:  # also Ctrl-C: what is half done is done again
            for child in multiprocessing.active_children():
                if child not in others:
                    child.terminate()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within: processes that are started have so many threads, unless the user has said otherwise.

    Too many threads on a core do not share it, they wait for each other.
    """
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _begin(parent: int) -> None:
    """In a new process: Ctrl-C reaches all of a terminal, but it is ours that stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone, killed without a chance to say so."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)


def _work(do: Callable[[Any, Tell], None], job: Any, name: str, said: Any) -> None:
    """One job in a process of its own."""
    do(job, lambda what, done, total: said.put((name, what, done, total)))
