"""A Sphinx extension: the source of every module of lib as a page of its own.

autodoc's `[source]` leads there, line by line. The pages have a plain template: two
hundred of them with the theme's sidebar take longer than all the rest.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx

from ci.pages.names import Names

TEMPLATES = Path(__file__).parent / "templates"


def listing(dotted: str, line: int) -> str:
    """The address of a line of a module's source, from the site's root."""
    return f"source/{dotted.removeprefix('lib.')}.html#L-{line}"


def address_of(names: Names, dotted: str) -> str | None:
    """The address of the source of a module or a definition; None if not ours."""
    module, rest = dotted, []
    while module and module not in names.modules:
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    line = names.modules[module].lines.get(".".join(rest), 1) if module else 0
    return listing(module, line) if module else None


def write_listings(app: Sphinx, failed: Exception | None) -> None:
    """Write the listing of every module, beside what Sphinx has written."""
    if failed or app.builder.name != "html":
        return
    template = Environment(loader=FileSystemLoader(TEMPLATES)).get_template(
        "listing.html"
    )
    formatter = HtmlFormatter(linespans="L", wrapcode=True)
    folder = Path(app.outdir) / "source"
    folder.mkdir(exist_ok=True)
    for name, module in app.collection_names.modules.items():
        room = name.split(".")[1] if "." in name else "index"
        page = template.render(
            title=name,
            project=app.config.project,
            api=f"api/{room}.html" + f"#module-{name}" * ("." in name),
            body=highlight(module.text, PythonLexer(), formatter),
        )
        path = folder / listing(name, 1).split("/")[1].split("#")[0]
        path.write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the listings, and let `sphinx.ext.linkcode` find them."""

    def resolve(domain: str, info: dict[str, str]) -> str | None:
        if domain != "py" or not info["module"]:
            return None
        words = f"{info['module']}.{info['fullname']}"
        found = address_of(app.collection_names, words)
        return f"../{found}" if found else None  # API pages stand one folder deep

    app.connect("build-finished", write_listings)
    app.config.linkcode_resolve = resolve
    app.setup_extension("sphinx.ext.linkcode")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
