"""Where points run: processes of this machine, or the workers of a Dask cluster.

Both stand behind one concurrent.futures executor that is given the same work,
`execute.attempt`, so the runner has one way to schedule, to stop and to report. Dask is
imported only when a sweep or --cluster asks for it.
"""

from __future__ import annotations

import logging
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from typing import TYPE_CHECKING, Any

from ci.tools import execute
from ci.tools.notebooks import UsageError
from lib.kit.start import ROOT

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, WorkerPlugin

ADDRESS = re.compile(r"(tcp|tls)://(\[[\da-fA-F:.]+\]|[^\s/:\[\]]+):\d+")
PATIENCE = 10  # seconds for a scheduler to answer
NEEDED = "the package distributed is not installed (./ci/setup installs it)"

Tell = Callable[[str, str], None]


@dataclass
class Pool:
    """An executor for points.

    work: what it runs on a point's spec. stop: ends the points of a run, by its mark.
    where: a sentence for the reader, empty for plain processes of this machine.
    """

    executor: Executor
    work: Callable[[dict[str, Any]], dict[str, Any]]
    stop: Callable[[str], Any]
    where: str = ""

    def submit(self, spec: dict[str, Any]) -> Future:
        return self.executor.submit(self.work, spec)


@contextmanager
def opened(
    mark: str, jobs: int, address: str | None, sweep: bool, tell: Tell
) -> Iterator[Pool]:
    """The pool for the run with this mark.

    jobs: how many points at once, where no scheduler decides. address: of an existing
    scheduler; without it a sweep starts a cluster of its own, or goes on without one.
    tell: hears the label of a point and what is happening to it. Raises UsageError
    where the address leads nowhere.
    """
    with ExitStack() as stack:
        where = ""
        if address:
            client = _existing(stack, address)
            yield _dask_pool(client, mark, tell, ours=False)
            return
        if sweep:
            try:
                client = _local(stack, jobs)
                pool = _dask_pool(client, mark, tell, ours=True)
            except Exception as error:  # not installed, no ports, no processes, ...
                where = f"{_reason(error)}; processes of this machine run the sweep."
            else:
                yield pool
                return
        executor = stack.enter_context(ThreadPoolExecutor(jobs))
        work = partial(execute.attempt, tell=tell)
        yield Pool(executor, work, execute.stopped.add, where)


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return NEEDED
    words = (str(error).splitlines() or [""])[0]
    return f"no Dask cluster starts here ({type(error).__name__}: {words})"


def check_address(address: str) -> None:
    """Raise UsageError for what cannot be the address of a scheduler."""
    if not ADDRESS.fullmatch(address):
        raise UsageError(
            f"--cluster is {address!r}, but the address of a Dask scheduler is "
            "tcp://HOST:PORT (or tls://HOST:PORT), as `dask scheduler` prints it."
        )


def lost_words(error: Exception) -> str | None:
    """A sentence for a point that the cluster, not the notebook, has failed."""
    if type(error).__name__ == "KilledWorker":
        return (
            "every worker that tried it was lost (killed, or out of memory?), so Dask "
            "gave it up; the others go on"
        )
    if isinstance(error, CancelledError):
        return "the cluster lost it: the scheduler has ended or cannot be reached"
    return None


# --- Dask ----------------------------------------------------------------------------


def _existing(stack: ExitStack, address: str) -> Client:
    """A client of a scheduler that somebody has started."""
    try:
        from distributed import Client
    except ImportError:
        raise UsageError(f"--cluster cannot be used: {NEEDED}.") from None
    _quiet()
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
        return stack.enter_context(client)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address} ({type(error).__name__}): check "
            "the address, and that the scheduler is up and can be reached from here."
        ) from None


def _local(stack: ExitStack, workers: int) -> Client:
    """A client of a new cluster on this machine: processes of one thread each.

    A lost worker is replaced by its nanny, and its point goes to another. Dask's own
    `allowed-failures` gives a point up once it has taken four workers with it.
    """
    import dask
    from distributed import Client, LocalCluster

    _quiet()
    # A worker is given one point at a time, so that none waits behind a long one.
    with dask.config.set({"distributed.scheduler.worker-saturation": 1.0}):
        cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=True,
            memory_limit=None,  # what needs memory is in the workers' children
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    stack.enter_context(cluster)
    client = stack.enter_context(Client(cluster, set_as_default=False))
    _start_workers(cluster, client, workers)
    return client


def _start_workers(cluster: LocalCluster, client: Client, workers: int) -> None:
    """Start processes that are deaf to Ctrl-C, as it is the runner that stops them.

    They inherit that from here. A Ctrl-C while they come up counts once they are up:
    Dask cannot end what it has half begun.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cluster.scale(workers)
        deadline = time.monotonic() + PATIENCE
        while len(active_children()) < workers and time.monotonic() < deadline:
            time.sleep(0.02)
        signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
        client.wait_for_workers(workers, timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _quiet() -> None:
    """The runner says in its own words what Dask logs of lost workers and links."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _dask_pool(client: Client, mark: str, tell: Tell, ours: bool) -> Pool:
    """Points as Dask tasks; what they tell comes back as events under the run's mark.

    The nested functions travel by value, because neither the scheduler nor a worker
    that somebody else started need know the collection before the plugin comes.
    """

    def point(spec: dict[str, Any]) -> dict[str, Any]:
        from distributed import get_worker

        from ci.tools.execute import attempt

        worker = get_worker()
        return attempt(spec, lambda *words: worker.log_event(spec["run"], words))

    def stop(mark: str) -> None:
        from ci.tools.execute import stopped

        stopped.add(mark)

    try:
        client.register_plugin(_plugin(ours))
    except Exception as error:
        raise UsageError(f"a worker cannot take part: {error}") from None
    client.subscribe_topic(mark, lambda event: tell(*event[1]))
    executor = client.get_executor(pure=False)
    stop_all = partial(client.run, stop, on_error="ignore")
    return Pool(executor, point, stop_all, _where(client, ours))


def _where(client: Client, ours: bool) -> str:
    """How many workers there are, and the dashboard's address if it has one."""
    count = len(client.scheduler_info(n_workers=-1)["workers"])
    words = f"Dask: {count} worker{'s' * (count != 1)}"
    words += " on this machine" if ours else ""
    words += "" if count else " yet; the points wait for one"

    def drawn(dask_scheduler: Any) -> bool:
        return bool(dask_scheduler.http_application.applications)

    # A link is made up even where bokeh is missing or the dashboard was turned off.
    link = client.dashboard_link if client.run_on_scheduler(drawn) else ""
    return words + (f"; dashboard {link}" if link else "")


def _plugin(ours: bool) -> WorkerPlugin:
    """What makes a worker ready for points, also one that joins or is replaced later.

    It finds the collection in the shared folder, must have the runner's Python (the
    keys of finished points rest on it), and is deaf to Ctrl-C where it is ours.
    """
    from distributed import WorkerPlugin

    class Collection(WorkerPlugin):
        name = "state-soup-speculation"

        def __init__(self, root: str, python: str) -> None:
            self.root, self.python, self.ours = root, python, ours

        def setup(self, worker: Any) -> None:
            import os
            import platform
            import signal
            import sys

            if not os.path.isdir(os.path.join(self.root, "ci", "tools")):
                raise RuntimeError(
                    f"it does not see {self.root}; workers share the folder of the "
                    "collection, under the same path"
                )
            python = ".".join(platform.python_version_tuple()[:2])
            if (found := f"{python} {platform.machine()}") != self.python:
                raise RuntimeError(f"it has Python {found}, the runner {self.python}")
            for name, module in list(sys.modules.items()):
                place = str(getattr(module, "__file__", ""))
                if name.split(".")[0] in ("ci", "lib") and self.root not in place:
                    del sys.modules[name]  # of another copy that used this worker
            sys.path.insert(0, self.root)
            if self.ours:
                signal.signal(signal.SIGINT, lambda *_: None)

    python = ".".join(platform.python_version_tuple()[:2])
    return Collection(str(ROOT), f"{python} {platform.machine()}")
