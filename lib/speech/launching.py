"""One training on several devices, started from a notebook or the command line.

`accelerate` starts the processes and tells each its number; `lib.kit.parallel` makes
one gradient of theirs. In a notebook, on eight GPUs:

    from lib.speech.launching import together
    from lib.speech.recipes import Run, pretrained

    together(pretrained, corpus, "best_rq", Run(path="model.pt"), processes=8)

The first process writes model.pt and its checkpoint, which the same call goes on from.
Not imported by notebooks that train on one device.
"""

from __future__ import annotations

import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from lib.kit import parallel
from lib.kit.checks import count


@contextmanager
def session() -> Iterator[None]:
    """`parallel.session`, or nothing more inside one."""
    if parallel.size() > 1:
        yield
        return
    with parallel.session():
        yield


def together(function: Callable[..., Any], *args: Any, processes: int) -> None:
    """Call a training in several processes that make one gradient, and wait for them.

    function: what trains, with a path to write to, as `pretrained` and `recogniser` of
    `lib.speech.recipes`; what it returns is lost; args: of it; processes: one a device,
    or of a CPU; 1 calls it here. The processes are forks: nothing may have touched a
    CUDA device before. Raises ValueError for another number, ModuleNotFoundError
    without accelerate, RuntimeError where a process failed, with its own words;
    KeyboardInterrupt and SystemExit for Ctrl-C and a kill, after all have ended.
    """
    count("processes", processes)
    if processes == 1:
        function(*args)
        return
    try:
        from accelerate import notebook_launcher
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; several processes need it: install the "
            "hub group (./ci/setup --extra hub, or pip install accelerate)."
        ) from None
    # A free port of this machine; what went wrong is told below, once.
    meeting = dict(rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", rdzv_id="speech")
    elastic, shown = logging.getLogger("torch.distributed.elastic"), sys.stdout
    before = elastic.level
    elastic.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):  # "on 2 CUDAs", whatever there is
            notebook_launcher(
                _inside, (shown, function, *args), num_processes=processes, **meeting
            )
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        said = failure.message  # torch gives a text, or one inside a mapping
        said = said["message"] if isinstance(said, dict) else said
        last = str(said).strip().splitlines()[-1:]
        words = "".join(last).removeprefix("RuntimeError: ")
        raise RuntimeError(f"Process {number} of {processes} failed: {words}") from None
    except SignalException as stop:  # torch's own name for Ctrl-C and kill
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.sigval) from None
    finally:
        elastic.setLevel(before)


def _inside(shown: TextIO, function: Callable[..., Any], *args: Any) -> None:
    with redirect_stdout(shown), session():
        function(*args)
