"""Headless Chromium, and JupyterLab as a reader uses it: run all cells, move sliders.

What the browser test and `./ci/site --check` share. Playwright drives the Chromium that
is on the path; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.kit.start import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
NO_CHROMIUM = "no Chromium on the path: install Debian's `chromium`"
SETTINGS = {"windowingMode": "none"}  # else cells below the fold are not in the page
SECONDS = 120  # the longest that one step of a page may take on a busy machine

# What the menu entries Run All Cells and Save do; both promises wait for the end. Menus
# themselves open too late on a busy machine to be clicked reliably.
RUN_ALL = """async (seconds) => {
    const run = async () => {
        const app = window.jupyterapp;
        await app.restored;
        await app.shell.currentWidget.context.ready;
        await app.shell.currentWidget.sessionContext.ready;
        await app.commands.execute('notebook:run-all-cells');
        await app.commands.execute('docmanager:save');
    };
    const late = new Error(`not done after ${seconds} s`);
    const limit = new Promise((_, no) => setTimeout(no, 1000 * seconds, late));
    await Promise.race([run(), limit]);
}"""
SHUT_DOWN = "() => jupyterapp.shell.currentWidget.sessionContext.shutdown()"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium that reaches this machine and nothing else."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
    arguments.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def copy_collection(place: Path, names: list[str]) -> Path:
    """A copy of the collection, so that JupyterLab's saving changes nothing here.

    names: notebooks that lose their outputs: what is there later was made in the copy.
    """
    place.mkdir()
    for name in ("lib", "data", "results", "notebooks"):
        skip = shutil.ignore_patterns("cache", "runs", "__pycache__")
        shutil.copytree(ROOT / name, place / name, ignore=skip)
    shutil.copy(ROOT / "environment.yml", place)
    for name in names:
        path = place / "notebooks" / f"{name}.ipynb"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["metadata"].pop("widgets", None)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        path.write_text(json.dumps(notebook), encoding="utf-8")
    return place


@contextmanager
def jupyterlab(copy: Path, home: Path) -> Iterator[str]:
    """JupyterLab over a copy on a free port; yields its address.

    home: an empty folder for settings of its own, and for the server's log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracker = home / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text(json.dumps(SETTINGS))
    with (home / "log").open("w") as log:
        child = subprocess.Popen(
            _server(copy, port),
            cwd=copy,
            env=_settings(home),
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _await_server(address, child, home / "log")
            yield address
        finally:
            child.terminate()
            child.wait(20)


def _server(copy: Path, port: int) -> list[str]:
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser"]
    command += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1"]
    command += ["--IdentityProvider.token=", "--ServerApp.allow_root=True"]
    command += [f"--ServerApp.root_dir={copy}", "--ServerApp.disable_check_xsrf=True"]
    return [*command, "--LabApp.expose_app_in_browser=True"]


def _settings(home: Path) -> dict[str, str]:
    kinds = ("CONFIG", "DATA", "RUNTIME")
    environment = os.environ | {f"JUPYTER_{k}_DIR": str(home / k) for k in kinds}
    return environment | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }


def _await_server(address: str, child: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        if child.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")
        time.sleep(0.3)


def open_and_run(
    browser: Browser | BrowserContext, address: str, name: str, seconds: float
) -> Page:
    """Open a notebook in JupyterLab and run it from top to bottom.

    seconds: how long opening it, and running it, may each take.
    """
    page = browser.new_page()
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.set_default_timeout(1000 * seconds)
    page.goto(f"{address}/lab/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.evaluate(RUN_ALL, seconds)
    return page


def notebook_findings(
    browser: Browser, address: str, copy: Path, name: str, seconds: float
) -> list[str]:
    """Run a notebook in JupyterLab as a reader does, and move its explorers."""
    context = browser.new_context()
    try:
        page = open_and_run(context, address, name, seconds)
        return cell_findings(saved_cells(copy, name)) + explorer_findings(page)
    finally:
        for page in context.pages:
            with suppress(Exception):  # a page that never came up has no kernel
                page.evaluate(SHUT_DOWN)
        context.close()


def saved_cells(copy: Path, name: str) -> list[dict[str, Any]]:
    """The code cells of a notebook as JupyterLab last saved it."""
    path = copy / "notebooks" / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code"]


def cell_findings(cells: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the code cells of a notebook that was run from the top."""
    found = []
    for place, cell in enumerate(cells, 1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                said = f"{output['ename']}: {output['evalue']}"
                found.append(f"cell {cell['id']} failed: {said[:200]}")
            if output.get("name") == "stderr":
                found.append(f"cell {cell['id']} wrote to stderr")
        if cell["execution_count"] != place:
            found.append(f"cell {cell['id']} was not run in its place")
    if not any("claims" in cell["metadata"].get("tags", []) for cell in cells):
        found.append("there is no cell of claims")
    return found


def explorer_findings(page: Page) -> list[str]:
    """Move every slider and drop-down of every explorer; say which do nothing."""
    boxes = page.locator(".widget-vbox:has(.noUi-handle), .widget-vbox:has(select)")
    found = [] if boxes.count() else ["there is no explorer"]
    for k in range(boxes.count()):
        box = boxes.nth(k)
        box.scroll_into_view_if_needed()
        knobs = box.locator(".noUi-handle, select")
        for j in range(knobs.count()):
            if said := _move(page, box, knobs.nth(j)):
                found.append(f"explorer {k + 1}, knob {j + 1}: {said}")
    return found


def _picture(box: Locator) -> tuple[str | None, ...]:
    """The one picture of an explorer that is shown, by its data and its alt text."""
    shown = box.locator("img:visible")
    return tuple(
        image.get_attribute(name) for image in shown.all() for name in ("src", "alt")
    )


def _move(page: Page, box: Locator, knob: Locator) -> str:
    """Move one knob by a step; say what is wrong where no new picture comes."""
    before = _picture(box)
    if len(before) != 2 or not before[1]:
        return f"{len(before) // 2} pictures with alt text are shown, and not one"
    if knob.evaluate("knob => knob.tagName") == "SELECT":
        knob.evaluate("""knob => {
            knob.selectedIndex = (knob.selectedIndex + 1) % knob.options.length;
            knob.dispatchEvent(new Event("change", { bubbles: true }));
        }""")
    else:
        knob.focus()
        now, end = map(knob.get_attribute, ("aria-valuenow", "aria-valuemax"))
        page.keyboard.press("ArrowLeft" if now == end else "ArrowRight")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        after = _picture(box)
        if len(after) == 2 and after[0] != before[0] and after[1] != before[1]:
            return ""
        page.wait_for_timeout(100)
    return "it moved and the picture stayed"
