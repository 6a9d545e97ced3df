"""A reader's session: JupyterLab in a real browser, run all cells, move a slider."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from lib.kit.start import ROOT

NOTEBOOK = "11_hippo"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path: install Debian's `chromium`"
)
SETTINGS = {"windowingMode": "none"}  # else cells below the fold are not in the page

# What the menu entries Run All Cells and Save do; both promises wait for the end. Menus
# themselves open too late on a busy machine to be clicked reliably.
RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    await app.shell.currentWidget.context.ready;
    await app.shell.currentWidget.sessionContext.ready;
    await app.commands.execute('notebook:run-all-cells');
    await app.commands.execute('docmanager:save');
}"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the collection, so that JupyterLab's saving changes nothing here."""
    place = tmp_path_factory.mktemp("reader") / "collection"
    place.mkdir()
    for name in ("lib", "data", "results", "notebooks"):
        skip = shutil.ignore_patterns("cache", "runs", "__pycache__")
        shutil.copytree(ROOT / name, place / name, ignore=skip)
    shutil.copy(ROOT / "environment.yml", place)
    # Without outputs: what is there afterwards was made in the browser.
    path = place / "notebooks" / f"{NOTEBOOK}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def server(copy, tmp_path_factory):
    """JupyterLab on a free port, with settings of its own; yields its address."""
    home = tmp_path_factory.mktemp("jupyter")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracker = home / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text(json.dumps(SETTINGS))
    kinds = ("CONFIG", "DATA", "RUNTIME")
    environment = os.environ | {f"JUPYTER_{k}_DIR": str(home / k) for k in kinds}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser"]
    command += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1"]
    command += ["--IdentityProvider.token=", "--ServerApp.allow_root=True"]
    command += [f"--ServerApp.root_dir={copy}", "--ServerApp.disable_check_xsrf=True"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with (home / "log").open("w") as log:
        child = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=log, stderr=log
        )
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError):
                    urllib.request.urlopen(f"{address}/api", timeout=5).close()
                    break
                assert child.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.3)
            yield address
        finally:
            child.terminate()
            child.wait(20)


@pytest.fixture(scope="module")
def page(server):
    """The notebook, opened in headless Chromium and run from top to bottom."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{server}/lab/tree/notebooks/{NOTEBOOK}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.evaluate(RUN_ALL)
        yield page
        browser.close()


def _saved(copy: Path) -> list[dict]:
    """The code cells of the notebook as JupyterLab last saved it."""
    path = copy / "notebooks" / f"{NOTEBOOK}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def cells(copy, page) -> list[dict]:
    """The code cells after the run, as they were saved."""
    return _saved(copy)


@needs_chromium
@pytest.mark.browser
def test_every_cell_runs_without_error(cells):
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert any("claims" in c["metadata"].get("tags", []) for c in cells)


@needs_chromium
@pytest.mark.browser
def test_moving_a_slider_changes_the_figure(cells, page):
    # Of the pictures that were drawn ahead, just one is shown.
    picture = page.locator(".jupyter-widgets img:visible")
    handles = page.locator(".jupyter-widgets .noUi-handle")
    handles.first.scroll_into_view_if_needed()
    before = picture.first.get_attribute("src")
    words = picture.first.get_attribute("alt")
    assert picture.count() == 1
    for k in range(handles.count()):
        handle = handles.nth(k)
        handle.focus()
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute(
            "aria-valuemax"
        )
        page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
        page.wait_for_timeout(1000)
        assert picture.count() == 1
        after = picture.first.get_attribute("src")
        assert after != before, f"slider {k} moved and the picture stayed"
        assert picture.first.get_attribute("alt") != words
        before, words = after, picture.first.get_attribute("alt")
    if where := os.environ.get("KIT_SCREENSHOT"):
        page.screenshot(path=where)
