"""Our docstrings as reStructuredText, which autodoc reads.

They are plain prose: a sentence; the arguments as `name: what it is`; what is returned
and raised; the source. Formulas are written as one types them, x_{k-1} and e^{tA}, so
most of their characters would be markup. Everything is escaped here, and what is meant
is put back: arguments as a list, indices and powers below and above the line, names as
links to what they name, arXiv numbers as links to the papers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

# Regular expressions of the words that carry an index in a formula.
GREEK = (
    "alpha|beta|gamma|delta|epsilon|eps|zeta|eta|theta|kappa|lam|lambda|mu|nu|xi|pi|rho"
    "|sigma|tau|phi|chi|psi|omega|Delta|Gamma|Lambda|Phi|Psi|Omega|Sigma|Theta"
)
OPERATORS = "sum|prod|min|max|argmin|argmax|lim|grad|log"
# What carries an index without braces: a letter, or two as in Ab; a Greek name; an
# operator. Other words before an underscore are names of Python.
LETTERS = "[A-Za-z]|[A-Z][a-z]|[a-z][A-Z]"
BASE = rf"(?<![\w`])(?:{LETTERS}|{GREEK}|{OPERATORS})'?"
TOKENS = re.compile(
    r"(?P<code>``.+?``)"
    r"|`(?P<name>[^`]+)`"
    r"|(?<![\w*])\*(?P<stress>\w(?:[^*]*\w)?)\*(?![\w*])"
    r"|(?<![\w./])(?P<paper>\d{4}\.\d{5})(?!\w)"
    rf"|(?P<base>{BASE})_(?P<index>\w{{1,3}}(?!\w))"
    r"|(?<=[\w')])_(?P<below>\{[^}]+\})"
    r"|\^(?P<above>\{[^}]+\}|\([^()]+\)|-?\d+/\d+(?![\w/])|-?\w+|[*+-](?!\w))"
)
FOUND = Callable[[str], "str | None"]


def escaped(text: str) -> str:
    """Text in which no character is markup."""
    return re.sub(r"([\\*`_|])", r"\\\1", text).replace("::", ":\\:")


def role(name: str, text: str, target: str = "") -> str:
    """A role that may stand within a word."""
    inner = re.sub(r"([\\`<>])", r"\\\1", text)
    return rf"\ :{name}:`{inner}{f' <{target}>' if target else ''}`\ "


def inline(text: str, find: FOUND) -> str:
    """One paragraph of a docstring as reStructuredText.

    find: gives the full dotted name of what a name in single quotes means, or None.
    """
    parts, end = [], 0
    for match in TOKENS.finditer(text):
        parts += [escaped(text[end : match.start()]), _token(match, find)]
        end = match.end()
    return "".join([*parts, escaped(text[end:])])


def _token(match: re.Match[str], find: FOUND) -> str:
    kind = match.lastgroup
    said = match[kind]
    if kind == "code":
        return rf"\ {said}\ "
    if kind == "name":
        target = find(said.removesuffix("()"))
        return role("py:obj", said, target) if target else rf"\ ``{said}``\ "
    if kind == "stress":
        return rf"\ *{escaped(said)}*\ "
    if kind == "paper":
        return rf"\ `{said} <https://arxiv.org/abs/{said}>`__\ "
    bare = said[1:-1] if said[0] in "{(" else said
    if kind == "index":
        return escaped(match["base"]) + role("sub", bare)
    return role("sub" if kind == "below" else "sup", bare)


def blocks(text: str) -> list[tuple[str, str]]:
    """A docstring's paragraphs in order, each as ("prose" or "code", text)."""
    found = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith(" "):
            found.append(("code", block))
        else:
            found.append(("prose", " ".join(block.split())))
    return found


def sentences(text: str, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """A paragraph cut where an argument, a return value, an error or a source begins.

    Returns pairs of a heading ("" for plain prose) and what is said under it.
    """
    known = "|".join(sorted(map(re.escape, arguments), key=len, reverse=True))
    names = rf"(?:{known})(?:(?:, | and )(?:{known}))*" if known else r"(?!)"
    begin = rf"(?:^|(?<=[.;)] ))(?:({names}): |(Returns|Raises|Sources?)(?::? ))"
    marks = list(re.finditer(begin, text))
    if not marks:
        return [("", text)]
    found = [("", text[: marks[0].start()].strip())] if marks[0].start() else []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        said = text[mark.end() : after.start() if after else len(text)].strip()
        more = ""
        if mark[1] and not (after and after[1]):  # what follows the last argument
            said, _, more = said.partition(". ") if ". " in said else (said, "", "")
        found.append((mark[1] or mark[2], said.rstrip(";.") + "." * bool(mark[2])))
        found += [("", more)] if more else []
    return found


def to_rst(text: str, arguments: Sequence[str], find: FOUND) -> list[str]:
    """The lines of a docstring as reStructuredText.

    arguments: the names of the documented thing's arguments, which become a list.
    """
    lines: list[str] = []
    for kind, block in blocks(text):
        if kind == "code":
            lines += ["::", "", *(f"   {line}" for line in block.split("\n")), ""]
            continue
        for heading, said in sentences(block.removesuffix("::"), arguments):
            words = inline(said, find)
            if heading in arguments or "," in heading or " and " in heading:
                lines.append(f"* **{escaped(heading)}**: {words}")
            elif heading:
                colon = ":" * heading.startswith("Source")
                lines += ["", rf"**{heading}{colon}** {words}", ""]
            else:  # the blank keeps "A. Gu" from being the first item of a list
                lines += ["", rf"\ {words}", ""]
        lines.append("")
    return lines


def arguments_of(thing: Any) -> list[str]:
    """The names of what a function or class takes."""
    try:
        return list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return []


def keep_ours(app: Sphinx, doctree: nodes.document) -> None:
    """Let the types in signatures lead to our classes, by the names of their module.

    Sphinx would search all of lib for a class `Corpus`, and find two.
    """
    for xref in list(doctree.findall(addnodes.pending_xref)):
        module = xref.get("py:module")
        if module and xref.get("refspecific") is not None and _signature(xref):
            found = app.collection_names.in_module(xref["reftarget"], module)
            if found:
                xref["reftarget"], xref["refspecific"] = found, False
            else:
                xref.replace_self(xref.children)


def _signature(node: nodes.Node) -> bool:
    while node is not None and not isinstance(node, addnodes.desc_signature):
        node = node.parent
    return node is not None


def setup(app: Sphinx) -> dict[str, bool]:
    """Let autodoc read our docstrings through `to_rst`."""
    names = app.collection_names

    def process(_app, _what, name, thing, _options, lines) -> None:
        module = name  # `lib.kit.claims.Claims.show` stands in `lib.kit.claims`
        while module and module not in names.modules:
            module = module.rpartition(".")[0]
        if module:
            find = partial(names.in_module, module=module)
            lines[:] = to_rst("\n".join(lines), arguments_of(thing), find)

    app.connect("autodoc-process-docstring", process)
    app.connect("doctree-read", keep_ours)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
