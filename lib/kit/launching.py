"""One training on several devices, from a notebook, a command or a comparison.

`accelerate` starts the processes and tells each its number; `lib.kit.parallel` makes
one gradient of theirs. In a notebook, on eight GPUs:

    from lib.kit.launching import together
    from lib.speech.recipes import Run, pretrained

    together(pretrained, corpus, "best_rq", Run(path="model.pt"), processes=8)

The first process writes model.pt and its checkpoint, which the same call goes on from.
`data_parallel` does so for a trial of `lib.kit.trials` with a setting `processes`.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

from lib.kit import parallel
from lib.kit.checks import count
from lib.kit.results import write_json
from lib.kit.trials import plain

RESULT = "together.json"  # what the first process of a trial found


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
    launch = parallel.carrier().notebook_launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # A free port of this machine; what went wrong is told below, once.
    meeting = dict(rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", rdzv_id="speech")
    elastic, shown = logging.getLogger("torch.distributed.elastic"), sys.stdout
    before = elastic.level
    elastic.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):  # "on 2 CUDAs", whatever there is
            launch(
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
    with redirect_stdout(shown), parallel.session():
        function(*args)


# -- trials ---------------------------------------------------------------------------


def devices(asked: int = 0, device: str = "auto") -> int:
    """How many processes train one model: as asked, or with 0 one a GPU, else one.

    device: where it trains, as a notebook has it. Raises ValueError below 0.
    """
    count("processes", asked, 0)
    if asked or not device.startswith(("auto", "cuda")):
        return asked or 1
    import torch

    return max(1, torch.cuda.device_count())


def data_parallel(trial: Callable[..., dict[str, Any]]) -> Callable[..., dict]:
    """A trial of `lib.kit.trials` whose setting `processes` says how many run it.

    Each process runs the trial, the first in its folder, the others in folders beside
    it that are gone afterwards; `lib.kit.parallel` makes one gradient of theirs.
    The result is the first's, as JSON holds it. Raises RuntimeError where a process
    fails, and as `together`.
    """

    @wraps(trial)
    def several(folder: Path, **settings: Any) -> dict[str, Any]:
        if (processes := settings.get("processes", 1)) == 1:
            return trial(folder, **settings)
        together(_part, trial, folder, settings, processes=processes)
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        (folder / RESULT).unlink()
        return found

    return several


def _part(trial: Callable, folder: Path, settings: dict[str, Any]) -> None:
    """What each process of a trial does; all see the trials beside their folder."""
    if parallel.first():
        write_json(folder / RESULT, plain(trial(folder, **settings)))
        return
    own = folder.with_name(f".{folder.name}.{parallel.rank()}")
    shutil.rmtree(own, ignore_errors=True)  # of one that was killed
    own.mkdir()
    try:
        trial(own, **settings)
    finally:
        shutil.rmtree(own, ignore_errors=True)
