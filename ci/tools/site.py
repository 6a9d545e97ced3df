"""./ci/site: build the site from the committed notebooks, and check it.

    ./ci/site                   write _site/; no notebook is executed
    ./ci/site --check-pages     then open every page in a browser (minutes)
    ./ci/site --check           and run every notebook in JupyterLab (half an hour)
    ./ci/site --check 11        the same for one notebook: its page, its run

Warnings are errors. What is built needs no network to be read, from a server or as
files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ci.tools.notebooks import Notebook, UsageError, every_notebook, select
from lib.kit.start import ROOT

SITE = ROOT / "_site"
CONFIGURATION = ROOT / "ci" / "pages"


def build(site: Path, jobs: int) -> bool:
    """Build the site; the old one stays until the new one is complete."""
    from ci.pages.sources import write_sources

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sources, made = Path(folder) / "sources", Path(folder) / "site"
        sources.mkdir()
        write_sources(sources)
        print(f"sources written ({time.monotonic() - began:.0f} s)", flush=True)
        if not sphinx(sources, made, Path(folder) / "doctrees", jobs):
            return False
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(made, site)
    size = sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) / 1e6
    took = time.monotonic() - began
    print(f"{site.name}/ is built: {size:.0f} MB in {took:.0f} s", flush=True)
    return True


def sphinx(sources: Path, made: Path, doctrees: Path, jobs: int) -> bool:
    """Run Sphinx over a folder of sources; every warning is an error."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going"]
    command += ["-j", str(jobs), "-c", str(CONFIGURATION), "-d", str(doctrees)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(sources), str(made)], env=environment)
    if done.returncode:
        print("site: Sphinx found what stands above; nothing was built.")
    return not done.returncode


class Report:
    """Lines of progress, and how many of the checks found something."""

    def __init__(self) -> None:
        self.good = self.bad = 0

    def line(self, name: str, found: Iterable[str], began: float) -> None:
        """Print a check with its findings and its time."""
        found = list(dict.fromkeys(found))
        self.good, self.bad = self.good + (not found), self.bad + bool(found)
        word = "FAILED" if found else "ok"
        print(f"{word:8}{name} ({time.monotonic() - began:.1f} s)", flush=True)
        for sentence in found:
            print(f"        {sentence}", flush=True)


def check_pages(site: Path, chosen: list[Notebook], report: Report) -> None:
    """Links of the whole site; then every page in the browser, or the chosen ones."""
    from ci.pages import checks
    from ci.tools.browser import chromium

    began = time.monotonic()
    report.line("links within the site", checks.link_findings(site), began)
    report.line("nothing from elsewhere", checks.loaded_from_elsewhere(site), began)
    names = checks.pages_of(site)
    if chosen:
        names = [f"notebooks/{notebook.name}.html" for notebook in chosen]
    with chromium() as browser, checks.served(site) as address:
        tab = checks.Watched(browser, address)
        for name in names:
            began = time.monotonic()
            report.line(name, attempt(checks.page_findings, tab, name), began)
        began = time.monotonic()
        report.line("search", attempt(checks.search_findings, tab), began)


def attempt(check: Callable[..., list[str]], *arguments: object) -> list[str]:
    """The findings of a check; one that breaks off is a finding too."""
    try:
        return check(*arguments)
    except Exception as error:
        return [f"broke off: {type(error).__name__}: {str(error)[:300]}"]


def check_notebooks(chosen: list[Notebook], report: Report) -> None:
    """Run notebooks in JupyterLab, one after the other."""
    from ci.tools.browser import (
        chromium,
        copy_collection,
        jupyterlab,
        notebook_findings,
    )

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "jupyter"
        names = [notebook.name for notebook in chosen]
        copy = copy_collection(Path(folder) / "collection", names)
        with jupyterlab(copy, home) as address, chromium() as browser:
            for notebook in chosen:
                began, seconds = time.monotonic(), 300 + 10 * notebook.seconds
                where = (browser, address, copy, notebook.name, seconds)
                found = attempt(notebook_findings, *where)
                report.line(f"{notebook.name} in JupyterLab", found, began)


def main(words: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="./ci/site", description=__doc__.split("\n")[0])
    p.add_argument("notebooks", nargs="*", help="which to check; all of them if none")
    p.add_argument("--check", action="store_true", help="check pages and notebooks")
    p.add_argument("--check-pages", action="store_true", help="check the pages alone")
    p.add_argument("--no-build", action="store_true", help="check the site as it is")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = p.parse_args(words)
    checking = options.check or options.check_pages
    try:
        chosen = select(options.notebooks) if options.notebooks else []
        if (chosen or options.no_build) and not checking:
            raise UsageError("say what to do with it: --check or --check-pages.")
        if options.no_build and not SITE.is_dir():
            raise UsageError("there is no _site/ yet: leave out --no-build.")
        if checking:
            need_chromium()
    except UsageError as error:
        print(f"site: {error}", file=sys.stderr)
        return 2
    if not options.no_build and not build(SITE, options.jobs):
        return 1
    return check(options, chosen) if checking else 0


def need_chromium() -> None:
    """Raise UsageError where there is no browser to check with."""
    from ci.tools.browser import CHROMIUM, NO_CHROMIUM

    if CHROMIUM is None:
        raise UsageError(f"{NO_CHROMIUM}.")


def check(options: argparse.Namespace, chosen: list[Notebook]) -> int:
    """Run the checks that were asked for; 1 where one of them found something."""
    report = Report()
    check_pages(SITE, chosen, report)
    if options.check:
        check_notebooks(chosen or every_notebook(), report)
    print(f"checks: {report.good} passed, {report.bad} failed")
    return 1 if report.bad else 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print("site: interrupted", file=sys.stderr)
            sys.exit(130)
