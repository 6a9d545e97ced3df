"""Checks of the built site: its links as text, its pages in a real browser."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ci.tools.browser import explorer_findings
from lib.kit.start import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = ROOT / "ci" / "pages" / "vendor" / "axe.min.js"
SEARCHES = {"selective_scan": "api/scan", "BiRQ": "notebooks/32_speech_ssl"}
SERIOUS = ("serious", "critical")

# What a page shows when all its scripts are done: formulas that are still source text
# or that MathJax could not read, pictures without a description or without a picture.
FACTS = r"""async () => {
    if (window.MathJax) await MathJax.startup.promise;
    const found = [];
    const skip = "script, style, pre, code, textarea, mjx-container, noscript";
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode.textContent;
        if (!/\\\(|\\\[|\$\$|\$[^\s$][^$]*\$/.test(text)) continue;
        if (walk.currentNode.parentElement.closest(skip)) continue;
        found.push(`formula not rendered: ${text.trim().slice(0, 80)}`);
    }
    const formulas = document.querySelectorAll(".math").length;
    const rendered = document.querySelectorAll("mjx-container").length;
    if (rendered < formulas) found.push(`${rendered} of ${formulas} formulas rendered`);
    for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
        found.push(`MathJax cannot read: ${error.textContent.slice(0, 80)}`);
    for (const image of document.images) {
        const name = image.src.slice(0, 80);
        if (!image.alt.trim()) found.push(`picture without alt text: ${name}`);
        await image.decode().catch(() => found.push(`missing picture: ${name}`));
    }
    return found;
}"""
# axe-core's findings of some weight: all rules as the page opens, contrast in the dark.
AUDIT = """async (impacts) => {
    const audit = async (mode, options) => {
        document.documentElement.dataset.theme = mode;
        const { violations } = await axe.run(document, options);
        return violations.filter((v) => impacts.includes(v.impact)).map((v) =>
            `axe, ${mode}, ${v.impact}: ${v.id} (${v.nodes.length}x), ` +
            v.nodes[0].target);
    };
    const only = { runOnly: ["color-contrast"], resultTypes: ["violations"] };
    const light = await audit("light", { resultTypes: ["violations"] });
    return [...light, ...await audit("dark", only)];
}"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """A line for each request would bury the findings."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site on a free port of this machine; yields its address."""
    handler = partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pages_of(site: Path) -> list[str]:
    """Every page of the site, the landing page first and the listings last."""
    found = [path.relative_to(site).as_posix() for path in site.rglob("*.html")]
    found = [name for name in found if not name.startswith("_")]
    return sorted(found, key=lambda n: (n.startswith("source/"), n != "index.html", n))


def link_findings(site: Path) -> list[str]:
    """Links and pictures of all pages that lead nowhere within the site.

    Patterns, not a parser: the pages are Sphinx's own and take a second this way.
    """
    anchors, links = {}, {}
    for page in pages_of(site):
        text = (site / page).read_text(encoding="utf-8")
        text = re.sub(r"(<script\b[^>]*)>.*?</script>", r"\1>", text, flags=re.S)
        anchors[page] = set(re.findall(r'\s(?:id|name)="([^"]*)"', text))
        links[page] = set(re.findall(r'<\w[^<>]*\s(?:href|src)="([^"]*)"', text))
    return [
        f"{page}: the link {link} leads nowhere"
        for page in links
        for link in sorted(links[page])
        if not _leads_somewhere(site, page, html.unescape(link), anchors)
    ]


def _leads_somewhere(
    site: Path, page: str, link: str, anchors: dict[str, set[str]]
) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme in ("https", "http", "mailto", "data")
    here = (site / page).parent
    target = (here / unquote(parts.path)).resolve() if parts.path else site / page
    if not target.exists() or not target.is_relative_to(site):
        return False
    name = target.relative_to(site).as_posix()
    anchor = unquote(parts.fragment)
    return not anchor or name not in anchors or anchor in anchors[name]


def loaded_from_elsewhere(site: Path) -> list[str]:
    """What pages and style sheets would load from another host."""
    found = []
    loads = r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]*)"'
    for page in pages_of(site):
        text = (site / page).read_text(encoding="utf-8")
        found += [f"{page}: loads {link}" for link in set(re.findall(loads, text))]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        for link in re.findall(
            r"(?:@import|url\()\s*['\"]?((?:https?:)?//[^'\")]*)", text
        ):
            found.append(f"{sheet.name}: loads {link}")
    return found


class Watched:
    """A tab that notes what goes wrong while a page loads and is used."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.address = address
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(120_000)
        self.found: list[str] = []
        note = self.found.append
        self.page.on("pageerror", lambda error: note(f"error in a script: {error}"))
        self.page.on(
            "console",
            lambda m: m.type == "error" and note(f"console error: {m.text[:200]}"),
        )
        self.page.on("requestfailed", lambda r: note(f"failed request: {r.url[:150]}"))
        self.page.on("request", self._request)
        self.page.on(
            "response",
            lambda r: r.status >= 400 and note(f"status {r.status}: {r.url[:150]}"),
        )

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:", "about:")):
            self.found.append(f"request to another host: {request.url[:150]}")

    def open(self, name: str) -> Page:
        """Load a page, and forget what was found on the one before."""
        self.found.clear()
        self.page.goto(f"{self.address}/{name}", wait_until="load")
        return self.page


def page_findings(tab: Watched, name: str) -> list[str]:
    """Everything that is wrong with one page."""
    page = tab.open(name)
    explorers = page.locator('script[type="application/vnd.jupyter.widget-view+json"]')
    if explorers.count():
        page.wait_for_selector(".jupyter-widgets img:visible")
        tab.found += explorer_findings(page)
    tab.found += page.evaluate(FACTS)
    page.add_script_tag(path=AXE)
    tab.found += page.evaluate(AUDIT, SERIOUS)
    return list(tab.found)


def search_findings(tab: Watched) -> list[str]:
    """Methods that the search should find, and does not."""
    missing = []
    for words, wanted in SEARCHES.items():
        page = tab.open(f"search.html?q={words}")
        page.wait_for_selector("#search-results .search-summary")
        page.wait_for_function(
            "!document.querySelector('#search-progress')?.textContent.includes('...')"
        )
        links = page.locator("#search-results li a")
        found = links.evaluate_all("all => all.map(a => a.href)")
        if not any(wanted in link for link in found):
            missing.append(f"{words} is not found on {wanted} ({len(found)} results)")
        missing += tab.found
    return missing
