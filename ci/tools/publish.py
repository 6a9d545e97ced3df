"""Write what is generated: the public address, and the README's table of notebooks.

python -m ci.tools.publish URL    set the address ('' removes it) and rewrite
"""

from __future__ import annotations

import re
import sys

import nbformat

from ci.tools.notebooks import (
    UsageError,
    every_notebook,
    normalise,
    public_url,
    write,
)
from lib.kit.collection import collection_map
from lib.kit.start import ROOT

BEGIN = "<!-- notebooks: generated from their front matter, see ci/tools/publish.py -->"
END = "<!-- end of notebooks -->"


def readme_text(text: str) -> str:
    """The README with its table brought up to date."""
    if BEGIN not in text or END not in text:
        raise UsageError(
            f"README.md lost the marks {BEGIN!r} and {END!r}: restore them."
        )
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{collection_map('notebooks/')}\n{END}{tail}"


def update_readme() -> bool:
    """Write the README's table; say whether it changed."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = readme_text(old)
    if new != old:
        path.write_text(new, encoding="utf-8")
    return new != old


def set_public(url: str) -> None:
    """Write the public address into pyproject.toml, set-up cells and badges."""
    if url and not re.fullmatch(r"(https://|file:///|git@)[\w./:@~+-]+", url):
        raise SystemExit(
            f"setup: {url!r} is not an address that git can clone: give for example "
            "https://github.com/owner/name (or '' to remove it)."
        )
    path = ROOT / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    new, count = re.subn(
        r'^Repository = "[^"]*"', f'Repository = "{url}"', text, flags=re.M
    )
    if count != 1:
        raise SystemExit("setup: pyproject.toml has no line `Repository = ...`.")
    path.write_text(new, encoding="utf-8")
    for notebook in every_notebook():
        nb = nbformat.read(notebook.path, as_version=4)
        write(normalise(nb, notebook.name, public_url()), notebook.path)
    update_readme()
    print(f"public address: {url or 'none'}")


if __name__ == "__main__":
    set_public(sys.argv[1])
