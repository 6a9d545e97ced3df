"""./ci/run: execute notebooks with papermill, in parallel, and keep what they found.

Each point (a notebook with parameters) runs in its own process. A finished point is
found again by its key and not run twice; the executor behind it is a
concurrent.futures one, so that a Dask cluster takes the place of this machine.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import hashlib
import itertools
import json
import math
import os
import re
import signal
import sys
import time
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ci.tools import cluster
from ci.tools.execute import GRACE
from ci.tools.hashing import code_hash, run_key, stale
from ci.tools.notebooks import PROFILES, Notebook, UsageError, every_notebook, select
from ci.tools.publish import update_readme
from ci.tools.record import provenance, record
from ci.tools.sweep import summary, sweep_rows, write_sweep
from lib.kit.claims import read_claims
from lib.kit.parameters import ParameterError, parse_value
from lib.kit.results import results_table, tally, write_json
from lib.kit.start import ROOT

console = Console(stderr=False, highlight=False, soft_wrap=True)


@dataclass
class Point:
    """One notebook with one set of parameters, and what became of it."""

    notebook: Notebook
    values: dict[str, Any]
    profile: str
    label: str
    hash: str
    key: str
    folder: Path = Path()
    state: str = "waiting"
    started: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    def spec(self, options: argparse.Namespace) -> dict[str, Any]:
        """All that a process anywhere needs to run it, as plain data."""
        return {
            "label": self.label,
            "notebook": str(self.notebook.path),
            "name": self.notebook.name,
            "folder": str(self.folder),
            "parameters": self.values,
            "resolved": self.notebook.resolved(self.values),
            "profile": self.profile,
            "hash": self.hash,
            "key": self.key,
            "cells": len(self.notebook.code),
            "timeout": options.timeout,
            "fresh": options.fresh,
            "out": str(options.out),
            "run": options.mark,
        }

    def hear(self, state: str) -> None:
        """What is happening to it, from wherever it runs."""
        if self.state == "running":  # whoever ran it says no more
            words = f"{self.label}: its worker was lost, another begins it again"
            console.print(words, markup=False)
        self.state, self.started = state, time.monotonic()


# --- what to run ---------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line of ./ci/run."""
    p = argparse.ArgumentParser(
        prog="./ci/run",
        description="Execute notebooks headless; print the scoreboard of their claims.",
        epilog="Example: ./ci/run 11 -p N=32 --grid seed=0..4. A sweep (--grid) runs "
        "on Dask and leaves its results in sweep.parquet and sweep.csv.",
    )
    add = p.add_argument
    add("notebooks", nargs="*", help="number, part, name or module; all if none")
    add("-p", metavar="NAME=VALUE", action="append", default=[], dest="values")
    add("--profile", choices=PROFILES, help="a named set of parameters")
    add(
        "--grid",
        nargs="+",
        action="extend",
        metavar="NAME=A,B",
        default=[],
        help="one run a combination: init=legs,lin seed=0..4 sizes=[1,2],[3]",
    )
    add("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once here")
    add(
        "--cluster",
        metavar="ADDRESS",
        help="tcp://HOST:PORT of a Dask scheduler; its workers, one thread each, may "
        "be on other machines that see this folder and --out under the same path",
    )
    add("--fresh", action="store_true", help="run even what is unchanged")
    add("--record", action="store_true", help="write outputs and results back")
    add("--name", help="name of the run's folder; else a time stamp")
    add("--out", type=Path, default=ROOT / "results" / "runs", help="where runs lie")
    add("--timeout", type=int, metavar="S", help="seconds allowed for one cell")
    add("--list", action="store_true", help="show notebooks and parameters, run none")
    return p


def _pair(word: str) -> tuple[str, str]:
    name, mark, value = word.partition("=")
    if not mark or not name:
        raise UsageError(
            f"{word!r} is not NAME=VALUE: write for example -p seed=1 or --grid "
            "seed=0..4, and the notebooks before --grid."
        )
    return name.strip(), value.strip()


def grid_values(text: str) -> list[str]:
    """The values of one grid axis: `legs,lin`, `0..4` or bracketed lists."""
    if found := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise UsageError(f"the range {text} is empty: write it as low..high.")
        return [str(k) for k in range(first, last + 1)]
    pieces = [piece.strip() for piece in re.findall(r"\[[^\]]*\]|[^,]+", text)]
    if not pieces:
        raise UsageError("a grid axis is empty: write for example --grid seed=0..4.")
    return list(dict.fromkeys(pieces))  # the same value twice is one run


def _parsed(notebook: Notebook, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Words of the command line as typed values of this notebook's parameters."""
    values = {}
    for name, text in pairs:
        kind = notebook.types.get(name)
        # An unknown name goes on as text: check_values refuses it with suggestions.
        values[name] = text if kind is None else parse_value(text, kind, name)
    return values


def make_points(options: argparse.Namespace) -> list[Point]:
    """Every point to run, checked; raises before anything has started."""
    chosen = select(options.notebooks)
    if not chosen:
        raise UsageError("there are no notebooks yet: ./ci/new NN_name starts one.")
    _check_options(options)
    given = [_pair(word) for word in options.values]
    axes = [
        [(name, v) for v in grid_values(text)]
        for name, text in map(_pair, options.grid)
    ]
    names = [name for name, _ in given] + [axis[0][0] for axis in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"parameter {twice[0]!r} is given twice: leave one out.")
    points = []
    for notebook in chosen:
        base = _profile_values(notebook, options)
        if base is None:
            continue
        for combination in itertools.product(*axes):
            pairs = given + list(combination)
            values = base | _parsed(notebook, pairs)
            notebook.check_values(values)
            points.append(_point(notebook, values, options.profile or "default", pairs))
    if not points:
        raise UsageError(f"no notebook has a profile {options.profile!r} yet.")
    return points


def _check_options(options: argparse.Namespace) -> None:
    for name in ("jobs", "timeout"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}, but must be at least 1.")
    if options.record and (options.values or options.grid):
        raise UsageError(
            "--record keeps the outputs of the default parameters or of a profile: "
            "leave out -p and --grid."
        )
    if options.cluster:
        cluster.check_address(options.cluster)
    name = options.name
    if name and (not re.fullmatch(r"[\w.+-]+", name) or name.startswith(".")):
        raise UsageError(f"--name is {name!r}; use letters, digits and . _ + - only.")


def _profile_values(
    notebook: Notebook, options: argparse.Namespace
) -> dict[str, Any] | None:
    """The values of the profile asked for; None where a notebook is to be left out."""
    if not options.profile:
        return {}
    found = notebook.profile(options.profile)
    if found is None and options.notebooks:
        raise UsageError(
            f"{notebook.name} has no profile {options.profile!r}: there is no "
            f"notebooks/profiles/{notebook.name}.{options.profile}.yaml."
        )
    return found


def _point(
    notebook: Notebook,
    values: dict[str, Any],
    profile: str,
    pairs: list[tuple[str, str]],
) -> Point:
    label = notebook.name
    if profile != "default":
        label += f".{profile}"
    if pairs:
        words = ",".join(f"{name}={value}" for name, value in pairs)
        safe = re.sub(r"[^\w.,=+[\]-]", "_", words)
        if safe != words or len(safe) > 80:  # still one folder a combination
            safe = safe[:60] + "~" + hashlib.sha256(words.encode()).hexdigest()[:8]
        label += f"--{safe}"
    return Point(
        notebook=notebook,
        values=values,
        profile=profile,
        label=label,
        hash=code_hash(notebook, values),
        key=run_key(notebook, values, profile),
    )


# --- progress ------------------------------------------------------------------------


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _progress(point: Point) -> tuple[str, str]:
    """The cell at work and the time so far."""
    if point.state != "running":
        return "", ""
    try:
        at = json.loads((point.folder / "progress.json").read_text(encoding="utf-8"))
        cell = f"cell {at['cell']} of {at['of']}"
    except (OSError, ValueError):
        cell = "starting"
    return cell, _clock(time.monotonic() - point.started)


def _outcome(point: Point) -> str:
    result = point.result
    if result.get("ok"):
        return "unchanged" if result.get("reused") else "done"
    return "stopped" if result.get("stopped") else "FAILED"


def _view(points: list[Point]) -> Table:
    """What is at work; what is finished has been printed above."""
    table = Table(box=None, pad_edge=False, show_header=False)
    left = [point for point in points if not point.result]
    for point in left:
        if point.state != "waiting":
            table.add_row(point.label, point.state, *_progress(point))
    if waiting := sum(point.state == "waiting" for point in left):
        table.add_row(f"... and {waiting} waiting")
    return table


def _line(point: Point) -> str:
    seconds = point.result.get("seconds", 0)
    time_ = "" if point.result.get("reused") else f"  {_clock(seconds)}"
    return f"{point.label}: {_outcome(point)}{time_}"


class _Display:
    """Progress: a live table on a terminal; elsewhere a line now and then."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points
        self.live = Live(console=console, refresh_per_second=4, transient=True)
        self.told = time.monotonic()

    def __enter__(self) -> _Display:
        if console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.live.stop()

    def finished(self, point: Point) -> None:
        console.print(_line(point), markup=False)

    def tick(self) -> None:
        if console.is_terminal:
            self.live.update(_view(self.points))
        elif time.monotonic() - self.told > 15:
            self.told = time.monotonic()
            for point in self.points:
                if point.state != "waiting" and not point.result:
                    at = [point.state, *filter(None, _progress(point))]
                    console.print(f"{point.label}: {', '.join(at)}", markup=False)


def drive(points: list[Point], pool: cluster.Pool, options: argparse.Namespace) -> bool:
    """Run all points on a pool with live progress; False if interrupted."""
    order = sorted(points, key=lambda p: -p.notebook.seconds)
    futures = {pool.submit(point.spec(options)): point for point in order}
    with _Display(points) as display:
        try:
            _follow(futures, display)
            return True
        except KeyboardInterrupt:
            pool.stop(options.mark)
            for future, point in futures.items():
                if point.state == "waiting":
                    future.cancel()
            _follow(futures, display, patience=GRACE + 5)
            return False


def _follow(
    futures: dict[Future, Point], display: _Display, patience: float = math.inf
) -> None:
    """Settle points as they finish, until all have or the patience (s) ends."""
    deadline = time.monotonic() + patience
    pending = {f for f, p in futures.items() if not (p.result or f.cancelled())}
    while pending and time.monotonic() < deadline:
        done, pending = wait(pending, timeout=0.25, return_when=FIRST_COMPLETED)
        for future in done:
            futures[future].result = _settled(future)
            display.finished(futures[future])
        display.tick()


def _settled(future: Future) -> dict[str, Any]:
    """A point's result; trouble outside the notebook becomes a sentence as well."""
    try:
        return future.result()
    except OSError as error:
        words = disk_words(error)
    except Exception as error:
        words = cluster.lost_words(error)
        words = words or f"the runner failed ({type(error).__name__}: {error})"
    return {"ok": False, "error": words, "seconds": 0}


def disk_words(error: OSError) -> str:
    """A sentence for a folder that cannot be written."""
    where = error.filename or "the results folder"
    reasons = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EROFS: f"{where} lies on a read-only file system",
        errno.EACCES: f"{where} is not yours to write",
        errno.EPERM: f"{where} is not yours to write",
        errno.ENOTDIR: f"{where} is not a folder",
        errno.EEXIST: f"{where} is a file, not a folder",
        errno.ENOENT: f"{where} cannot be made",
    }
    reason = reasons.get(error.errno, f"{where}: {error.strerror or error}")
    return f"the results cannot be written: {reason}. --out FOLDER takes another place."


# --- what came of it -----------------------------------------------------------------


def failure_words(point: Point) -> str:
    """Which notebook, which cell, which error, and where the partial copy lies."""
    result = point.result
    where = ""
    if result.get("cell"):
        where = f", code cell {result['cell']}"
        if result.get("line"):
            where += f" (`{result['line']}`)"
    copy = point.folder / f"{point.notebook.name}.ipynb"
    left = f"\n   partial copy: {_short(copy)}" if copy.exists() else ""
    return f"{point.label}{where}: {result.get('error', 'no reason given')}{left}"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def claims_of(point: Point) -> list[dict[str, Any]]:
    """The claims that a point tested, also when one of them failed it."""
    path = point.folder / "out" / point.notebook.name / "claims.json"
    return read_claims(path) if path.exists() else []


def scoreboard(points: list[Point]) -> Table:
    """The claims of this run, one row a point."""
    table = Table(title="Claims", title_justify="left")
    for name in ("notebook", "run", "identities", "theorems", "trends"):
        table.add_column(name, overflow="fold")
    for point in points:
        counts = tally(claims_of(point))
        table.add_row(point.label, _outcome(point), *counts.values())
    return table


def write_summary(folder: Path, points: list[Point]) -> None:
    """claims.json (the same for the same commit) and run.json (provenance, times)."""
    ran = [p for p in points if p.result]
    write_json(folder / "claims.json", {p.label: claims_of(p) for p in ran})
    runs = {}
    for p in ran:
        values = p.notebook.resolved(p.values)
        out, made = p.folder / "out" / p.notebook.name, p.result.get("made")
        found = provenance(p.hash, values, out, made)
        runs[p.label] = p.result | {"profile": p.profile, "provenance": found}
        runs[p.label].pop("made", None)  # it stands in the provenance
    write_json(folder / "run.json", runs)


def stale_lines(names: set[str] | None = None) -> list[str]:
    """Recorded results that are older than the code that would make them today.

    names: of the notebooks to look at, None for all (some seconds).
    """
    known = {notebook.name: notebook for notebook in every_notebook()}
    lines = []
    try:
        recorded = results_table()
    except ValueError as error:  # a damaged file; the text names it
        return [str(error)]
    for run in recorded:
        if names is not None and run.notebook not in names:
            continue
        name = f"results/{run.notebook}.{run.profile}.json"
        option = "" if run.profile == "default" else f" --profile {run.profile}"
        try:
            if run.notebook not in known:
                lines.append(f"{name} has no notebook.")
            elif stale(known[run.notebook], run.profile, run.provenance["hash"]):
                lines.append(
                    f"{name} is stale (older than its code): "
                    f"./ci/run {run.notebook[:2]}{option} --record renews it."
                )
        except ParameterError as error:
            lines.append(f"{name} is stale: {error}")
    return lines


def waves(points: list[Point], recording: bool) -> list[list[Point]]:
    """00 shows what the others record: while recording it comes after them."""
    late = [p for p in points if p.notebook.name.startswith("00")]
    if not recording or not late or len(late) == len(points):
        return [points]
    return [[p for p in points if p not in late], late]


def list_parameters(chosen: list[Notebook]) -> None:
    """Print each notebook's parameters with types, defaults, rules and help."""
    for notebook in chosen:
        title = f"{notebook.name}  {notebook.front.get('question', '')}"
        console.print(title, markup=False, style="bold")
        for p in notebook.parameters:
            rule = notebook.rules.get(p.name)
            words = f"   {p.name}: {p.type} = {p.default!r}  {p.help}"
            console.print(words + (f"  {rule}" if rule else ""), markup=False)


def _run_folder(options: argparse.Namespace) -> Path:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = options.name or stamp
    folder, k = options.out / name, 1
    if options.name:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    while True:  # two runs in the same second take two folders
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not options.out.is_dir():
                raise
            k += 1
            folder = options.out / f"{name}-{k}"


def run(options: argparse.Namespace) -> int:
    """Run what is asked for; return 0, 1 after a failure, 130 interrupted."""
    if options.list:
        list_parameters(select(options.notebooks))
        return 0
    points = make_points(options)
    options.out, options.mark = options.out.absolute(), uuid.uuid4().hex
    heard = {point.label: point for point in points}
    with cluster.opened(
        mark=options.mark,
        jobs=min(options.jobs, len(points)),
        address=options.cluster,
        sweep=bool(options.grid),
        tell=lambda label, state: heard[label].hear(state),
    ) as pool:
        if pool.where:
            console.print(pool.where, markup=False)
        try:
            folder = _run_folder(options)
            (options.out / ".finished").mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(disk_words(error)) from None
        for point in points:
            point.folder = folder / point.label
        finished, changed = _run_waves(points, pool, options)
    return report(points, folder, finished, changed, options)


def _run_waves(
    points: list[Point], pool: cluster.Pool, options: argparse.Namespace
) -> tuple[bool, list[str]]:
    """Run wave after wave; whether all was run, and the names of what was recorded."""
    changed: list[str] = []
    for wave in waves(points, options.record):
        for point in wave:  # what an earlier wave recorded may belong to the key
            point.key = run_key(point.notebook, point.values, point.profile)
        if not drive(wave, pool, options):
            return False, changed
        if options.record:
            for point in (p for p in wave if p.result.get("ok")):
                changed += _recorded(point, options)
    if options.record and update_readme():
        changed.append("README.md")
    return True, changed


def _recorded(point: Point, options: argparse.Namespace) -> list[str]:
    """Write a finished point back; what cannot be written fails the point."""
    try:
        return record(point.notebook, point.folder, point.spec(options))
    except (OSError, ValueError) as error:
        words = f"it ran, but could not be recorded: {error}"
        point.result |= {"ok": False, "error": words}
        return []


def report(
    points: list[Point],
    folder: Path,
    finished: bool,
    changed: list[str],
    options: argparse.Namespace,
) -> int:
    """Print scoreboard, failures and where everything lies; return the exit code."""
    done = [p for p in points if p.result.get("ok")]
    failed = [p for p in points if p.result and not p.result["ok"]]
    write_summary(folder, points)
    console.print(scoreboard([p for p in points if p.result]))
    for point in failed:
        if not point.result.get("stopped"):
            console.print(f"FAILED {failure_words(point)}", markup=False, style="red")
    if options.grid:
        _show_sweep(points, folder, options)
    ran = None if options.record else {point.notebook.name for point in points}
    for line in stale_lines(ran):
        console.print(line, markup=False, style="yellow")
    for name in changed:
        console.print(f"recorded {name}", markup=False)
    console.print(f"executed copies, claims and provenance: {_short(folder)}")
    if not finished:
        console.print(
            f"Interrupted: {len(done)} of {len(points)} finished and are kept. The "
            "same command goes on with the rest."
        )
        return 130
    console.print(f"{len(done)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _show_sweep(points: list[Point], folder: Path, options: argparse.Namespace) -> None:
    """Write the table of a sweep and show its verdicts along each axis."""
    axes = [name for name, _ in map(_pair, options.grid)]
    ended = [p for p in points if p.result and not p.result.get("stopped")]
    rows = [row for p in ended for row in sweep_rows(p, axes, claims_of(p))]
    if not rows:
        return
    console.print(summary(rows, axes))
    names, trouble = write_sweep(folder, rows)
    if trouble:
        console.print(trouble, markup=False, style="yellow")
    places = " and ".join(_short(folder / name) for name in names)
    console.print(f"one row a point and claim: {places}", markup=False)


def main(words: list[str] | None = None) -> int:
    """Entry point; a mistake of the caller is one sentence and exit code 2."""
    options = parser().parse_args(words)

    def ended(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    try:
        return run(options)
    except (UsageError, ParameterError) as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run: {disk_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run: interrupted; what is finished is kept.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
