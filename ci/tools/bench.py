"""./ci/bench: measure our code against named peers, and keep what was found.

A benchmark is a module of ci/benchmarks. It runs in a process of its own for each
number of threads, because libraries read that number when they are imported; peers
that the collection does not need live in an environment of their own. Times are
compared within one run only. The helpers that benchmarks call come first (`compare`,
`peak_memory`, `first_call`, `installed`), then the command.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd

from ci.tools.notebooks import UsageError
from lib.kit.checks import nearest
from lib.kit.results import Recorded, load, output_folder, save_table, versions
from lib.kit.results import write_json as write
from lib.kit.start import ROOT

BENCHMARKS = ROOT / "ci" / "benchmarks"
CONSTRAINTS = ROOT / "ci" / "constraints.txt"
NOT_INSTALLED = "not installed"
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
OVER = 2.0  # a target missed by more than this factor fails --check

Call = Callable[[], object]


class BenchmarkError(RuntimeError):
    """A benchmark cannot go on; the text is a sentence for whoever runs it."""


class Target(NamedTuple):
    """What one number of a benchmark should be, and who says so.

    table: name of the table; row: column values that pick one row (without "threads"
    the fewest measured); column: of the number; at_least or at_most: the value.
    """

    table: str
    row: dict[str, Any]
    column: str
    at_least: float | None = None
    at_most: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Options:
    """What a benchmark's `run` is given: the number of threads, quick or whole.

    `clock` is "cpu" with one thread, which does not feel other work on the machine, and
    "wall" with more, where processor time counts every thread.
    """

    threads: int = 1
    quick: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def clock(self) -> str:
        """The clock for `compare`."""
        return "cpu" if self.threads == 1 else "wall"

    def say(self, text: str) -> None:
        """Show what is being measured now: one line that changes, or lines in a log."""
        line = f"{time.monotonic() - self.began:5.0f} s  {text}"
        terminal = sys.stderr.isatty()
        sys.stderr.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
        sys.stderr.flush()


# --- what benchmarks call ------------------------------------------------------------


def installed(module: str) -> bool:
    """Whether a peer can be imported here, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def compare(
    candidates: dict[str, Call | str],
    rounds: int = 5,
    min_time: float = 0.05,
    clock: str | Callable[[], float] = "cpu",
    *,
    limit: float = 10.0,
    reference: str | None = None,
) -> pd.DataFrame:
    """Time candidates in turns, so that a slow minute of the machine meets them all.

    candidates: calls without arguments by name, or a text that says why there is none
    (`NOT_INSTALLED`); rounds: how often each has its turn; min_time: seconds that one
    turn lasts at least; clock: "cpu", "wall" or a function; limit: what takes longer
    (seconds) in its first call is not called again; reference: name of the candidate
    that the ratios refer to. The first call of each is a warm-up and does not count.
    Returns a row a candidate: method, ms (minimum a call), median (ms), ratio (of the
    minima), calls (in all), note. Raises BenchmarkError for an unknown clock or name.
    """
    if isinstance(clock, str) and clock not in CLOCKS:
        raise BenchmarkError(f"the clock is {clock!r}; take {' or '.join(CLOCKS)}.")
    if reference is not None and reference not in candidates:
        raise BenchmarkError(
            f"the reference {reference!r} is not among the candidates."
        )
    now = CLOCKS[clock] if isinstance(clock, str) else clock

    def sample(call: Call, calls: int) -> float:
        began = now()
        for _ in range(calls):
            call()
        return (now() - began) / calls

    notes = {name: c if isinstance(c, str) else "" for name, c in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    calls = dict.fromkeys(candidates, 0)
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        turns = {}
        for name, call in candidates.items():
            if isinstance(call, str):
                continue
            first, calls[name] = sample(call, 1), 1
            if first > limit:
                samples[name] = [first]
                notes[name] = f"called once: over {limit:g} s"
                continue
            if first < min_time:  # the first call may have paid for more than itself
                first, calls[name] = sample(call, 1), 2
            turns[name] = max(1, math.ceil(min_time / max(first, 1e-7)))
        for _ in range(rounds):
            for name, turn in turns.items():
                samples[name].append(sample(candidates[name], turn))
                calls[name] += turn
    finally:
        if was_on:
            gc.enable()
    best = {name: min(found, default=math.nan) for name, found in samples.items()}
    base = math.nan if reference is None else best[reference]
    rows = [
        {
            "method": name,
            "ms": 1e3 * best[name],
            "median": 1e3 * median(found) if found else math.nan,
            "ratio": best[name] / base if base else math.nan,
            "calls": calls[name],
            "note": notes[name],
        }
        for name, found in samples.items()
    ]
    return pd.DataFrame(rows)


def peak_memory(function: str, kwargs: dict[str, Any] | None = None) -> float:
    """The bytes that one call adds at its peak, in a fresh process.

    function: "package.module:name" of a function that makes the inputs, warms up at a
    small size and returns the call; kwargs: its arguments, as JSON knows them. Results
    that the call returns count. Returns nan where the system cannot say (it must be
    Linux). Raises BenchmarkError when the process fails.
    """
    # Fixed thresholds give every large block back to the system when it is freed, so
    # that what the preparation freed does not hide what the call takes.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return _fresh("memory", function, kwargs, fixed)["bytes"]


def first_call(function: str, kwargs: dict[str, Any] | None = None) -> dict[str, float]:
    """What the first call costs in a fresh process: compilation, tracing, set-up.

    function, kwargs: as for `peak_memory`, but without the warm-up. Returns wall
    seconds: prepare (imports and inputs), first and second (call). Raises
    BenchmarkError when the process fails.
    """
    return _fresh("first", function, kwargs, {})


def _fresh(
    what: str, function: str, kwargs: dict[str, Any] | None, variables: dict[str, str]
) -> dict[str, float]:
    code = "import sys; from ci.tools.bench import worker; worker(*sys.argv[1:])"
    words = [sys.executable, "-c", code, what, function, json.dumps(kwargs or {})]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"{function} failed in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def worker(what: str, function: str, kwargs: str) -> None:
    """The fresh process of `peak_memory` and `first_call`; prints its result."""
    began = time.perf_counter()
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)(**json.loads(kwargs))
    prepared = time.perf_counter()
    if what == "memory":
        found = {"bytes": _growth(call)}
    else:
        marks = [prepared]
        for _ in range(2):
            call()
            marks.append(time.perf_counter())
        first, second = marks[1] - marks[0], marks[2] - marks[1]
        found = {"prepare": prepared - began, "first": first, "second": second}
    print(json.dumps(found))


def _growth(call: Call) -> float:
    def status(key: str) -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", text, re.M)[1])

    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = status("VmRSS")
        kept = call()
        peak = status("VmHWM")
    except (OSError, TypeError):
        return math.nan
    del kept
    return float(max(0, peak - before))


# --- targets -------------------------------------------------------------------------


def _measured(target: Target, tables: dict[str, pd.DataFrame]) -> float:
    """The number a target is about; nan where this run did not measure it."""
    found = tables.get(target.table)
    if found is None or target.column not in found:
        raise BenchmarkError(
            f"a target names the column {target.column!r} of the table "
            f"{target.table!r}, which this benchmark does not have."
        )
    row = dict(target.row)
    if "threads" in found and len(found):
        row.setdefault("threads", found["threads"].min())
    for key, value in row.items():
        found = found[found[key] == value]
    if len(found) > 1:
        raise BenchmarkError(f"the target {_place(target)} fits {len(found)} rows.")
    value = found[target.column].iloc[0] if len(found) else None
    return math.nan if value is None else float(value)


def _place(target: Target) -> str:
    row = ", ".join(str(value) for value in target.row.values())
    return f"{target.table} ({row}) {target.column}"


def judge(targets: Iterable[Target], tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Every target with what was measured, and a verdict.

    targets: of the benchmark; tables: by name, as `run` returned them. Returns a row a
    target: what, target, measured, verdict ("met", "missed", "missed by more than
    half", "not measured"), source. Raises BenchmarkError for a target that names no
    number.
    """
    rows = []
    for target in targets:
        measured = _measured(target, tables)
        if (target.at_least is None) == (target.at_most is None):
            raise BenchmarkError(f"the target {_place(target)} needs one bound.")
        at_most = target.at_most is not None
        bound = target.at_most if at_most else target.at_least
        # How many times too large (or too small) the number is.
        if at_most:
            factor = measured / bound
        else:
            factor = bound / measured if measured else math.inf
        verdict = "met" if factor <= 1 else "missed"
        if factor > OVER:
            verdict = "missed by more than half"
        rows.append(
            {
                "what": _place(target),
                "target": f"{'at most' if at_most else 'at least'} {bound:g}",
                "measured": measured,
                "verdict": "not measured" if math.isnan(measured) else verdict,
                "source": target.source,
            }
        )
    columns = ["what", "target", "measured", "verdict", "source"]
    return pd.DataFrame(rows, columns=columns)


def failures(judged: pd.DataFrame) -> list[str]:
    """A sentence for every target that was missed by more than half."""
    missed = judged[judged["verdict"] == "missed by more than half"]
    return [
        f"{row.what} is {row.measured:.3g}; the target is {row.target}, and it is "
        "missed by more than half."
        for row in missed.itertuples()
    ]


# --- the environment of a benchmark --------------------------------------------------


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that give every library so many threads, set before it is imported."""
    named = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "NUMBA")
    found = {f"{name}_NUM_THREADS": str(threads) for name in named}
    found["OMP_WAIT_POLICY"] = "PASSIVE"  # a spinning thread is no work
    if threads == 1:
        found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return found


def _setup() -> ModuleType:
    """./ci/setup as a module: how the collection's own environment is made."""
    loader = SourceFileLoader("ci_setup", str(ROOT / "ci" / "setup"))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("ci_setup", loader)
    )
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = kept
    return module


def package(requirement: str) -> str:
    """The normal name of the package in a requirement such as `Jax[cpu]==0.9`."""
    name = re.match(r"[\w.-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def _own_constraints(name: str) -> Path:
    return BENCHMARKS / f"{name}.constraints.txt"


def _pins(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {package(line): line for line in lines if package(line)}


def peer_python(name: str, peers: tuple[str, ...]) -> str:
    """The Python that a benchmark runs in, with its peers as far as they can be had.

    name: of the benchmark; peers: its requirements. Without peers it is this one. Else
    `.venv-bench-<name>` is made from the collection's packages and the peers; a peer
    that cannot be installed is named and left out. Raises BenchmarkError when the
    environment itself cannot be made.
    """
    if not peers:
        return sys.executable
    setup = _setup()
    folder = ROOT / f".venv-bench-{name}"
    python, stamp = setup.venv_python(str(folder)), folder / "collection-stamp.json"
    pins = _pins(CONSTRAINTS) | _pins(_own_constraints(name))
    pins = {k: v for k, v in pins.items() if k not in map(package, peers)}
    text = "\n".join([*setup.pip_section(), *peers, *pins.values()])
    key = hashlib.sha256(text.encode()).hexdigest()
    if stamp.exists() and json.loads(stamp.read_text("utf-8")) == {"hash": key}:
        return python
    print(f"bench: making {folder.name} (minutes the first time)", file=sys.stderr)
    if not os.path.exists(python):
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)])
        if made.returncode:
            raise BenchmarkError(f"{folder.name} could not be made; see above.")
    (folder / ".gitignore").write_text("*\n")  # also hides it from lint
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pins.values()) + "\n", encoding="utf-8")

    def install(*wanted: str) -> bool:
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        return not subprocess.run([*pip, "-c", str(constraints), *wanted]).returncode

    if not install(*setup.pip_section()):
        raise BenchmarkError(
            f"pip could not install the collection's packages into {folder.name}: "
            "check the network and try again."
        )
    lacks = []
    if not install(*peers):  # one that cannot be had must not keep the others out
        lacks = [peer for peer in peers if not install(peer)]
    for peer in lacks:
        print(f"bench: {peer} could not be installed; left out.", file=sys.stderr)
    if not lacks:  # else the next run tries again
        write(stamp, {"hash": key})
    return python


def pin_peers(name: str, python: str) -> None:
    """Write what the peers brought with them, next to the benchmark."""
    words = [python, "-m", "pip", "--disable-pip-version-check", "freeze"]
    frozen = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    ours = _pins(CONSTRAINTS)
    # A local label such as +cpu names a build, not a release.
    lines = [line.split("+")[0] for line in frozen.splitlines() if "==" in line]
    lines = sorted(line for line in lines if package(line) not in ours)
    head = f"# Written by ./ci/bench {name} --record; what its peers brought.\n"
    _own_constraints(name).write_text(head + "\n".join(lines) + "\n", "utf-8")


# --- one benchmark -------------------------------------------------------------------


def every_benchmark() -> list[str]:
    """Names of the benchmarks there are."""
    return sorted(p.stem for p in BENCHMARKS.glob("[!_]*.py"))


def find(name: str) -> Path:
    """The module of a benchmark. Raises UsageError with the nearest name."""
    known = every_benchmark()
    if name in known:
        return BENCHMARKS / f"{name}.py"
    listed = ", ".join(known) or "none"
    raise UsageError(
        f"there is no benchmark {name!r}; there is {listed}.{nearest(name, known)}"
    )


def bench_hash(name: str) -> str:
    """The hash of a benchmark's module and of all of ours that it imports.

    Comments and blank lines do not count. Raises UsageError for an unknown name.
    """
    from ci.tools.hashing import canonical, sha, sources

    source = find(name).read_text(encoding="utf-8")
    behind = sources([ast.parse(source)]).items()
    return sha(canonical(source), *(part for pair in behind for part in pair))


def _ended(*_: Any) -> None:
    raise KeyboardInterrupt


def measure(name: str, threads: str, quick: str) -> None:
    """The process of one benchmark and number of threads; leaves tables as files."""
    signal.signal(signal.SIGTERM, _ended)
    module = importlib.import_module(f"ci.benchmarks.{name}")
    options = Options(int(threads), quick == "quick")
    try:
        tables = module.run(options)
    except BenchmarkError as error:
        sys.exit(f"\nbench: {error}")
    except KeyboardInterrupt:  # by now it has ended its own fresh process, if any
        sys.exit(130)
    options.say("done\n" if sys.stderr.isatty() else "done")
    for table, frame in tables.items():
        frame = frame.drop(columns=["threads", "clock"], errors="ignore")
        frame.insert(0, "threads", options.threads)
        frame.insert(1, "clock", options.clock)
        save_table(name, table, frame)
    folder, found = output_folder(name), versions()
    for peer in map(package, module.PEERS):
        try:
            found[peer] = metadata.version(peer)
        except metadata.PackageNotFoundError:
            found[peer] = NOT_INSTALLED
    write(folder / "versions.json", found)
    torch = sys.modules.get("torch")
    if not (torch and torch.cuda.is_initialized()):  # there is one, but it had no part
        (folder / "gpu.json").unlink(missing_ok=True)


def _start(
    name: str, threads: int, quick: bool, python: str, out: Path
) -> dict[str, Any]:
    """Run `measure` in a process of its own and gather the tables as saved."""
    code = "import sys; from ci.tools.bench import measure; measure(*sys.argv[1:])"
    words = [python, "-c", code, name, str(threads), "quick" if quick else "whole"]
    environment = os.environ | thread_environment(threads)
    environment |= {"PYTHONPATH": str(ROOT), "KIT_OUTPUT": str(out)}
    child = subprocess.Popen(words, cwd=ROOT, env=environment)
    try:
        child.wait()
    finally:
        child.terminate()
        child.wait()
    if child.returncode:
        raise BenchmarkError(
            f"{name} failed with {threads} thread{'s' * (threads > 1)}; its words are "
            "above."
        )
    folder = out / name / "tables"
    saved = {p.stem: json.loads(p.read_text("utf-8")) for p in folder.glob("*.json")}
    for path in folder.glob("*.json"):
        path.unlink()
    return saved


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Tables of several numbers of threads, one below the other."""
    whole: dict[str, Any] = {}
    for part in parts:
        for table, saved in part.items():
            if table not in whole:
                whole[table] = saved
            else:
                whole[table]["rows"] += saved["rows"]
    return whole


def record(name: str, tables: dict[str, Any], found: dict[str, Any], out: Path) -> Path:
    """Write results/bench.<name>.json.

    name: of the benchmark; tables: as saved; found: parameters and versions; out: the
    folder of the run. Returns the path.
    """
    from ci.tools.record import provenance

    origin = provenance(bench_hash(name), found["parameters"], out / name)
    content = {
        "notebook": "bench",
        "profile": name,
        "provenance": origin | {"versions": found["versions"]},
        "claims": [],
        "tables": tables,
    }
    path = ROOT / "results" / f"bench.{name}.json"
    return write(path, content)


# --- the command ---------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line of ./ci/bench."""
    p = argparse.ArgumentParser(
        prog="./ci/bench", description="Measure our code against named peers."
    )
    p.add_argument("name", nargs="?", help="of a benchmark (--list shows them)")
    p.add_argument(
        "--record", action="store_true", help="write results/bench.NAME.json"
    )
    p.add_argument(
        "--check", action="store_true", help="fail where a target is missed by half"
    )
    p.add_argument(
        "--threads", nargs="+", type=int, default=[1], metavar="N", help="1 by default"
    )
    p.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    p.add_argument("--list", action="store_true", help="show the benchmarks, run none")
    return p


def list_benchmarks() -> list[str]:
    """A line a benchmark: its name, what it measures, what is recorded."""
    lines = []
    for name in every_benchmark():
        text = ast.get_docstring(ast.parse(find(name).read_text("utf-8"))) or ""
        path = ROOT / "results" / f"bench.{name}.json"
        state = "not recorded"
        if path.exists():
            p = load(path).provenance
            state = f"recorded on {p['date']}"
            if p["hash"] != bench_hash(name):
                state += ", stale (older than its code)"
        lines.append(f"{name}: {text.partition(chr(10))[0]} ({state})")
    return lines


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def show(title: str, frame: pd.DataFrame) -> None:
    """Print a table with three significant digits."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in frame:
        number = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if number else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*map(_cell, row))
    width = None if sys.stdout.isatty() else 200  # a log has no edge to wrap at
    Console(highlight=False, markup=False, width=width).print(table)
    print()


def bench(options: argparse.Namespace) -> int:
    """Do what is asked for; return the exit code."""
    if options.list:
        print("\n".join(list_benchmarks()) or "there is no benchmark yet.")
        return 0
    if options.name is None:
        raise UsageError(f"name one of: {', '.join(every_benchmark())}.")
    find(options.name)
    if min(options.threads) < 1:
        raise UsageError("--threads takes whole numbers of at least 1.")
    if options.quick and options.record:
        raise UsageError("a quick run is not recorded: leave out --quick.")
    module = importlib.import_module(f"ci.benchmarks.{options.name}")
    python = peer_python(options.name, module.PEERS)
    with tempfile.TemporaryDirectory() as folder:
        out, threads = Path(folder), sorted(set(options.threads))
        saved = _together(
            [_start(options.name, n, options.quick, python, out) for n in threads]
        )
        run = Recorded("bench", options.name, {}, [], saved)
        tables = {name: run.table(name) for name in saved}
        for name, frame in tables.items():
            show(name, frame)
        judged = (
            module.judged(tables)
            if hasattr(module, "judged")
            else judge(module.TARGETS, tables)
        )
        show("targets", judged)
        if options.record:
            found = {
                "parameters": {"threads": ", ".join(map(str, threads))},
                "versions": json.loads(
                    (out / options.name / "versions.json").read_text("utf-8")
                ),
            }
            if module.PEERS:
                pin_peers(options.name, python)
            save = {"columns": list(judged), "rows": _rows(judged)}
            path = record(options.name, saved | {"targets": save}, found, out)
            print(f"recorded {path.relative_to(ROOT)}")
    return report(judged) if options.check else 0


def _rows(frame: pd.DataFrame) -> list[list[Any]]:
    """Rows as JSON knows them: a number that was not measured is null."""
    return [
        [None if isinstance(x, float) and math.isnan(x) else x for x in row]
        for row in frame.itertuples(index=False)
    ]


def report(judged: pd.DataFrame) -> int:
    """Say which targets fail; 1 if any, else 0."""
    missed = failures(judged)
    for sentence in missed:
        print(sentence)
    if not missed:
        counted = int((judged["verdict"] != "not measured").sum())
        print(f"{counted} of {len(judged)} targets measured, none missed by half.")
    return 1 if missed else 0


def main(words: list[str] | None = None) -> int:
    """Entry point; a mistake is one sentence and exit code 2."""
    options = parser().parse_args(words)
    signal.signal(signal.SIGTERM, _ended)
    try:
        return bench(options)
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except (BenchmarkError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; nothing was recorded.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
