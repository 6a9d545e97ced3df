"""./ci/test: lint, tests, every notebook with another seed, and nbval over the outputs.

    ./ci/test          everything
    ./ci/test 11       one notebook: its lint, its module's tests, papermill and nbval

Each step runs even when an earlier one failed, so that one call shows all there is to
mend; the exit code is that of the whole.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ci.tools.contract import problems
from ci.tools.notebooks import Notebook, UsageError, every_notebook, select
from ci.tools.publish import readme_text
from ci.tools.run import stale_lines
from lib.kit.collection import parts
from lib.kit.start import ROOT, fixed_environment

SEED = 1  # the fixed other seed: the committed outputs are of seed 0
CELL_SECONDS = "300"  # no cell of a default run may take longer


def _call(command: list[str], **variables: str) -> bool:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def _python(*words: str, **variables: str) -> bool:
    return _call([sys.executable, "-m", *words], **variables)


def _of_module(module: str, folder: Path, prefix: str = "") -> list[Path]:
    """A module's files in a folder, without those of a longer-named neighbour."""
    known = {e["module"] for part in parts() for e in part["notebooks"]}
    longer = tuple(prefix + m for m in known if m.startswith(f"{module}_"))
    found = [
        path
        for path in sorted(folder.glob(f"{prefix}{module}*"))
        if path.stem == prefix + module or path.stem.startswith(f"{prefix}{module}_")
    ]
    return [p for p in found if not (longer and p.stem.startswith(longer))]


def lint(chosen: list[Notebook], whole: bool) -> bool:
    """Ruff, the notebook contract, and the README's generated table."""
    paths = ["."]
    if not whole:
        paths = [str(n.path) for n in chosen]
        for module in (n.module for n in chosen):
            paths += [str(path) for path in _of_module(module, ROOT / "lib")]
    good = _python("ruff", "check", "--quiet", *paths)
    good &= _python("ruff", "format", "--check", "--quiet", *paths)
    if not good:
        print("ruff: mend with `.venv/bin/ruff check --fix .` and `ruff format .`")
    for notebook in chosen:
        for sentence in problems(notebook.path):
            good = False
            print(f"{notebook.name}: {sentence}")
    names = tuple(f"results/{n.name}." for n in chosen)
    for sentence in stale_lines():
        if whole or sentence.startswith(names):
            # The default outputs are renewed in a minute; a long run's are only marked.
            good &= ".default.json" not in sentence
            print(sentence)
    return good & readme_is_current()


def readme_is_current() -> bool:
    """Whether the README's generated table is that of the notebooks."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    try:
        if readme_text(readme) == readme:
            return True
        print("README.md: its table is older than the notebooks: ./ci/run --record.")
    except UsageError as error:
        print(error)
    return False


def unit_tests(chosen: list[Notebook], whole: bool, jobs: int) -> bool:
    """pytest over ci/tests, or over the tests of the chosen notebooks' modules."""
    tests = ROOT / "ci" / "tests"
    paths = [tests]
    if not whole:
        paths = [
            path
            for module in (n.module for n in chosen)
            for path in _of_module(module, tests, "test_")
        ]
    if not paths:
        print("no tests of its own")
        return True
    words = ["-q", "-p", "no:cacheprovider"]
    if len(paths) > 1 or whole:
        words += ["-n", str(jobs), "--dist", "loadfile"]
    # One thread each, as in the notebooks: two at work do not fight for the cores.
    return _python("pytest", *words, *map(str, paths), **fixed_environment())


def other_seed(chosen: list[Notebook], jobs: int) -> bool:
    """Every notebook through papermill with one fixed other seed."""
    words = ["--fresh", "-p", f"seed={SEED}", "--timeout", CELL_SECONDS]
    words += ["--name", "test-seed", "--jobs", str(jobs)]
    return _python("ci.tools.run", *[n.name for n in chosen], *words)


def outputs(chosen: list[Notebook], jobs: int) -> bool:
    """nbval: every committed output against a fresh one, longest notebook first."""
    order = sorted(chosen, key=lambda n: -n.seconds)
    words = ["-p", "ci.nbval_tolerance", "-p", "no:cacheprovider", "-q"]
    words += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", CELL_SECONDS]
    if len(order) > 1:
        words += ["-n", str(min(jobs, len(order))), "--dist", "loadfile"]
        words += ["--no-loadscope-reorder"]
    paths = [str(n.path.relative_to(ROOT)) for n in order]
    with tempfile.TemporaryDirectory() as folder:
        fixed = fixed_environment() | {"KIT_OUTPUT": folder}
        return _python("pytest", *words, *paths, **fixed)


def main(words: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="./ci/test", description="Prove the collection.")
    p.add_argument("notebooks", nargs="*", help="number or name; everything if none")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = p.parse_args(words)
    if options.jobs < 1:
        p.error(f"--jobs is {options.jobs}, but must be at least 1.")
    try:
        chosen = select(options.notebooks)
    except UsageError as error:
        print(f"test: {error}", file=sys.stderr)
        return 2
    whole = not options.notebooks
    if whole and not every_notebook():
        print("test: there are no notebooks", file=sys.stderr)
        return 2
    steps: list[tuple[str, Callable[[], bool]]] = [
        ("lint", lambda: lint(chosen, whole)),
        ("tests", lambda: unit_tests(chosen, whole, options.jobs)),
        ("notebooks with another seed", lambda: other_seed(chosen, options.jobs)),
        ("committed outputs", lambda: outputs(chosen, options.jobs)),
    ]
    rows = []
    for name, step in steps:
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        good = step()
        rows.append((name, good, time.monotonic() - began))
    print("\n=== summary")
    for name, good, seconds in rows:
        print(f"{'passed' if good else 'FAILED':8}{name} ({seconds:.0f} s)")
    bad = sum(not good for _, good, _ in rows)
    print(f"steps: {len(rows) - bad} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("test: interrupted", file=sys.stderr)
        sys.exit(130)
