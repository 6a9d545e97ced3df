"""A reader's session: JupyterLab in a real browser, run all cells, move a slider."""

import os

import pytest

from ci.tools.browser import (
    CHROMIUM,
    NO_CHROMIUM,
    cell_findings,
    chromium,
    copy_collection,
    explorer_findings,
    jupyterlab,
    open_and_run,
    saved_cells,
)

NOTEBOOK = "11_hippo"
SECONDS = 600  # to run it on a machine that does much else
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the collection, in which the notebook has no outputs."""
    return copy_collection(tmp_path_factory.mktemp("reader") / "copy", [NOTEBOOK])


@pytest.fixture(scope="module")
def page(copy, tmp_path_factory):
    """The notebook, opened in headless Chromium and run from top to bottom."""
    home = tmp_path_factory.mktemp("jupyter")
    with jupyterlab(copy, home) as server, chromium() as browser:
        yield open_and_run(browser, server, NOTEBOOK, SECONDS)


@needs_chromium
@pytest.mark.browser
def test_every_cell_runs_without_error(copy, page):
    assert cell_findings(saved_cells(copy, NOTEBOOK)) == []


@needs_chromium
@pytest.mark.browser
def test_moving_a_slider_changes_the_figure(page):
    assert explorer_findings(page) == []
    if where := os.environ.get("KIT_SCREENSHOT"):
        page.screenshot(path=where)
