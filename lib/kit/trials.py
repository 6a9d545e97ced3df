"""Trials: the single runs of a long comparison, in fresh processes, each kept.

A trial is a function of this collection with plain settings. It runs in a process of
its own with one thread, so that any number of workers gives the same numbers on one
machine, and its result is cached under a hash of the settings and of the code behind
the function. A comparison that was killed goes on where it was; two that share a trial
run it once. Imported by the notebooks that compare, not by the kit itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lib.kit.cache import CacheError, cache_folder
from lib.kit.checks import need
from lib.kit.processes import Workers, teller
from lib.kit.results import processor, write_json
from lib.kit.sources import behind

FOLDER = "trials"  # inside the cache
RESULT = "result.json"
PACKAGES = ("torch", "numpy", "scipy")  # whose versions can change a number

_behind: dict[str, str] = {}


@dataclass(frozen=True)
class Trial:
    """A trial that is done.

    settings: what it was asked; result: what the function returned, with None for what
    is not finite; folder: where it left its files; key: its hash; seconds: wall time.
    """

    settings: dict[str, Any]
    result: dict[str, Any]
    folder: Path
    key: str
    seconds: float


def folder_of(key: str) -> Path:
    """The folder of a finished trial. Raises CacheError where it is not finished."""
    path = cache_folder() / FOLDER / key
    need(
        (path / RESULT).exists(),
        f"The trial {key} is not finished; run the comparison that it belongs to.",
        CacheError,
    )
    return path


def key_of(function: Callable, settings: Mapping[str, Any]) -> str:
    """The hash under which a trial is kept: its function's name and 16 hex digits.

    Of settings, the code that the function's module imports, versions of packages.
    Raises ValueError for a function that no module has, or settings that are not plain.
    """
    module, name = function.__module__, function.__qualname__
    need(
        module != "__main__" and "." not in name,
        f"{module}.{name} cannot run in another process: give a function of a module.",
    )
    if module not in _behind:
        _behind[module] = hashlib.sha256(
            json.dumps(behind(module)).encode()
        ).hexdigest()
    versions = [f"{package} {metadata.version(package)}" for package in PACKAGES]
    try:
        asked = json.dumps(settings, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The settings of {name} are not plain data ({error}): give numbers, "
            "strings, lists and None."
        ) from None
    text = "\n".join([module, name, asked, _behind[module], *versions])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{module.removeprefix('lib.')}.{name}-{digest}"


def trials(
    function: Callable[..., dict[str, Any]],
    settings: Sequence[Mapping[str, Any]],
    *,
    workers: int | None = None,
    bar: bool = True,
) -> list[Trial]:
    """Run all trials that the cache does not hold; return all of them in order.

    function: of a module, called as function(folder, **settings), folder being
    its own for checkpoints and what it wants kept; settings: plain data, one mapping a
    trial; workers: processes at a time, None for the cores, at most four; bar: show
    progress. Raises RuntimeError with a trial's own last line where one fails; what is
    finished stays, and the others that were running are stopped.
    """
    crew = Workers(workers)
    keys = [key_of(function, chosen) for chosen in settings]
    todo = {k: s for k, s in zip(keys, settings) if not _finished(k)}

    def one(key: str) -> None:
        _run(function, key, todo[key], crew)

    tell = teller(len(todo), function.__qualname__, "trial", bar)
    crew.each(one, list(todo), tell)
    return [_read(key) for key in keys]


def _finished(key: str) -> bool:
    return (cache_folder() / FOLDER / key / RESULT).exists()


def _read(key: str) -> Trial:
    """A finished trial. Raises CacheError for a file that cannot be read."""
    folder = folder_of(key)
    try:
        kept = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return Trial(
            kept["settings"], kept["result"], folder, key, float(kept["seconds"])
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CacheError(
            f"The trial {key} cannot be read ({type(error).__name__}); delete its "
            f"folder in the cache ({FOLDER}) to run it again."
        ) from None


def _run(
    function: Callable,
    key: str,
    settings: Mapping[str, Any],
    crew: Workers,
) -> None:
    """Run one trial in a fresh process. Raises RuntimeError where it fails."""
    from filelock import FileLock

    place = cache_folder() / FOLDER / key
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"{place.parent} cannot be written ({error.strerror}): make it so, or set "
            "COLLECTION_CACHE to a folder elsewhere."
        ) from None
    with FileLock(place / ".lock"):  # another comparison may be at the same trial
        if _finished(key):
            return
        words = ["-m", "lib.kit.trials", function.__module__, function.__qualname__]
        text = json.dumps(settings)
        status, _, said = crew.ask([*words, str(place)], text, native=True)
    if status:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(
            f"The trial {function.__qualname__}({_short(settings)}) ended with "
            f"{status}: {last} Finished trials are kept; run again to go on."
        )


def _short(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


# -- in the fresh process -----------------------------------------------------------


def plain(value: Any) -> Any:
    """A result as JSON can hold it: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def run_here(function: Callable, folder: Path, settings: Mapping[str, Any]) -> None:
    """Run a trial in this process and write its result, whole or not at all.

    The result stands there last, so a folder without it is a trial to be continued.
    """
    begun = time.perf_counter()
    result = function(folder, **settings)
    kept = {
        "settings": dict(settings),
        "result": plain(result),
        "seconds": round(time.perf_counter() - begun, 2),
        "processor": processor(),
    }
    write_json(folder / RESULT, kept)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lib.kit.trials MODULE FUNCTION FOLDER`, settings on standard input."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("module", "function", "folder"):
        parser.add_argument(name)
    asked = parser.parse_args(arguments)
    function = getattr(importlib.import_module(asked.module), asked.function)
    run_here(function, Path(asked.folder), json.load(sys.stdin))


if __name__ == "__main__":
    main()
