"""A Sphinx extension: mentions of our own names become links to their API pages.

Names in the code cells of a notebook are resolved by the notebook's imports, names in
inline code by these and by the notebook's own module. What is not documented by itself
(a constant) leads to the module that defines it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from ci.pages.anchors import anchored
from ci.pages.listings import listing
from ci.pages.names import Names, Scope
from ci.tools.notebooks import is_badge_line, module_of

# A dotted name as Pygments writes it: spans of names, joined by spans of dots. What
# follows another dot is an attribute of something else, and `name=` an argument.
DOT = '<span class="o">.</span>'
NAME = r'<span class="n[a-z]?">[\w.]+</span>'
CHAIN = re.compile(
    rf"(?<!{re.escape(DOT)}){NAME}(?:{re.escape(DOT)}{NAME})*"
    r'(?!\s*<span class="o">=</span>)'
)


def linked(code: str, find: Callable[[str], str | None]) -> str:
    """Highlighted code in which the names that `find` knows lead somewhere.

    find: from a dotted name to an address, or None. Of a.b.c, where only a.b is known,
    a.b is the link.
    """

    def link(match: re.Match[str]) -> str:
        pieces = match[0].split(DOT)
        for k in range(len(pieces), 0, -1):
            known = DOT.join(pieces[:k])
            if address := find(re.sub(r"<[^>]+>", "", known)):
                where = html.escape(address, quote=True)
                anchor = f'<a class="ours" href="{where}">{known}</a>'
                return DOT.join([anchor, *pieces[k:]])
        return match[0]

    return CHAIN.sub(link, code)


class Mentions(SphinxPostTransform):
    """Put links on the names of lib in a page's code and inline code."""

    default_priority = 400
    formats = ("html",)

    def run(self, **_) -> None:
        page = self.env.docname
        if page.startswith(("_", "api/")):
            return
        self.names = self.env.app.collection_names
        notebook = page.removeprefix("notebooks/") if "/" in page else ""
        self.scope = Scope(self.names, module_of(notebook) if notebook else "")
        for cell in list(self.document.findall(nodes.container)):
            if "cell_input" in cell["classes"]:
                for block in list(cell.findall(nodes.literal_block)):
                    self._code(block)
        for literal in list(self.document.findall(nodes.literal)):
            self._prose(literal)

    def _address(self, found: str | None) -> str | None:
        """The address of what a name stands for, relative to this page."""
        if found is None:
            return None
        builder = self.env.app.builder
        known = self.env.domains.python_domain.objects
        while found and found not in known:
            found = found.rpartition(".")[0]
        if not found or found == "lib":
            return None
        entry = known[found]
        where = builder.get_relative_uri(self.env.docname, entry.docname)
        return f"{where}#{entry.node_id}"

    def _code(self, block: nodes.literal_block) -> None:
        """Replace a code block by its highlighted, linked form."""
        self.scope.read(block.astext())
        highlighter = self.env.app.builder.highlighter
        made = highlighter.highlight_block(block.astext(), block["language"])
        made = linked(made, lambda name: self._address(self.scope.code(name)))
        kind = f"highlight-{block['language']} notranslate"
        block.replace_self(
            nodes.raw("", f'<div class="{kind}">{made}</div>', format="html")
        )

    def _prose(self, literal: nodes.literal) -> None:
        if isinstance(literal.parent, nodes.reference):
            return
        if address := self._address(self.scope.prose(literal.astext())):
            link = nodes.reference("", "", internal=True, refuri=address)
            link["classes"].append("ours")
            literal.replace_self(link)
            link += literal


def slug(title: str) -> str:
    """The anchor of a heading as JupyterLab has it, for which notebooks link."""
    return title.replace(" ", "-")


def adapt(notebook: dict) -> dict:
    """A notebook as its page shows it: the page has buttons where the file has badges.

    The set-up cell is folded, a picture's alt text is put where myst-nb looks, and a
    claim leads to its cell.
    """
    notebook = anchored(notebook)
    for cell in notebook["cells"]:
        metadata = cell["metadata"]
        if cell["cell_type"] == "markdown":
            cell["source"] = _for_the_page("".join(cell["source"]))
        if "setup" in metadata.get("tags", []):
            metadata["tags"] = [*metadata["tags"], "hide-input"]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data:
                data["text/markdown"] = _for_the_page("".join(data["text/markdown"]))
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt and "mystnb" not in metadata:
                metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


def _for_the_page(text: str) -> str:
    """Markdown without badges; what it links to in the collection is on the site."""
    lines = [line for line in text.split("\n") if not is_badge_line(line)]
    text = re.sub(r'<a id="([\w-]+)"></a>', r"(\1)=", "\n".join(lines))

    def link(match: re.Match[str]) -> str:
        said = re.sub(r"`(.+?)`", r"<code>\1</code>", match[1])
        address = listing(match[2].replace("/", "."), int(match[3]))
        return f'<a href="../{address}">{said}</a>'

    return re.sub(r"\[([^]]+)\]\(\.\./lib/([\w/]+)\.py#L(\d+)\)", link, text)


def read_notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """Adapt a notebook before it is parsed; the file to download stays as it is."""
    if Path(app.env.doc2path(page)).suffix == ".ipynb":
        source[0] = json.dumps(adapt(json.loads(source[0])))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.collection_names = Names()
    app.connect("source-read", read_notebook)
    app.add_post_transform(Mentions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
