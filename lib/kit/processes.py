"""Processes of our own: how many at a time, what they find around them, their end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from lib.kit.checks import count
from lib.kit.start import ROOT, fixed_environment

Job, Answer = TypeVar("Job"), TypeVar("Answer")


def workers_default() -> int:
    """Processes that run together unless told otherwise: the cores, at most four."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(4, cores)


def child_environment(native: bool = False) -> dict[str, str]:
    """The environment of a process with one thread that finds this collection.

    native: leave out what the runner fixes so that every x86-64 processor gives the
    same numbers, at half the speed of some; thread counts and hash seed stay.
    """
    fixed = fixed_environment()
    stays = {n: v for n, v in fixed.items() if n.endswith("_THREADS")}
    stays["PYTHONHASHSEED"] = fixed["PYTHONHASHSEED"]
    given = {n: v for n, v in os.environ.items() if not (native and n in fixed)}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    stays["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return given | stays


class Workers:
    """Fresh processes, some at a time; none outlives an error or Ctrl-C here.

    number: at a time, None for the default. Raises ValueError for none.
    """

    def __init__(self, number: int | None = None) -> None:
        self.number = workers_default() if number is None else number
        count("The number of workers", self.number)
        self.running: set[subprocess.Popen] = set()
        self.stopped = threading.Event()

    def ask(
        self, words: Sequence[str], text: str, native: bool = False
    ) -> tuple[int, str, str]:
        """Run this Python on a text; return its exit status, output and complaints.

        words: behind the interpreter's name; text: for its standard input; native: of
        `child_environment`.
        """
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(native),
            text=True,
            encoding="utf-8",
        )
        self.running.add(process)
        if self.stopped.is_set():  # between the last look and now
            process.kill()
        try:
            said, complained = process.communicate(text)
        except BrokenPipeError:  # it ended before it read
            said, complained = process.communicate()
        finally:
            self.running.discard(process)
        return process.returncode, said, complained

    def each(
        self,
        one: Callable[[Job], Answer],
        jobs: Sequence[Job],
        tell: Callable[[int], None] = lambda done: None,
    ) -> list[Answer]:
        """one(job) of all jobs, in their order; `one` may `ask`.

        tell: called with the number of finished jobs. Raises the first error; jobs that
        wait are not begun then, and processes that run are killed.
        """

        def unless_stopped(job: Job) -> Answer | None:
            if self.stopped.is_set():
                return None
            try:
                return one(job)
            except BaseException:
                self.stopped.set()  # before this thread takes the next job
                raise

        pool = ThreadPoolExecutor(self.number)
        try:
            futures = [pool.submit(unless_stopped, job) for job in jobs]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                tell(done)
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C too: leave no process behind
            self.stopped.set()
            for process in list(self.running):
                process.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def teller(total: int, what: str, unit: str, bar: bool = True) -> Callable[[int], None]:
    """A progress bar on stderr, to be called with the number of units done.

    bar: False for one that shows nothing, as with no units.
    """
    if not (bar and total):
        return lambda done: None
    from tqdm import tqdm

    shown = tqdm(total=total, desc=what, unit=unit, file=sys.stderr)

    def tell(done: int) -> None:
        shown.update(done - shown.n)
        if done == total:
            shown.close()

    return tell
