"""BibTeX of the collection, and of every paper that a notebook cites.

A notebook's section *References* is the source: its items give authors, title and
arXiv number, and no second list is kept by hand.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

import yaml

from ci.tools.notebooks import Notebook, every_notebook, public_url
from lib.kit.start import ROOT

LINK = re.compile(r"\[(?:arXiv:)?(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)")
TITLE = re.compile(r"\*([^*]+)\*")
SMALL = {"a", "an", "and", "are", "as", "can", "do", "for", "from", "how", "in", "is"}
SMALL |= {"of", "on", "the", "to", "via", "what", "with"}


@dataclass
class Paper:
    """A cited paper, as the notebooks write it."""

    title: str
    authors: str = ""
    arxiv: str = ""
    where: str = ""
    notebooks: list[str] = field(default_factory=list)

    @property
    def year(self) -> str:
        """The year in the item's words, else that of the arXiv number."""
        if found := re.search(r"\b(19|20)\d\d\b", self.where):
            return found[0]
        return f"20{self.arxiv[:2]}" if self.arxiv else ""

    @property
    def known(self) -> tuple[bool, int, int]:
        """How much an item says: the fullest of several is kept."""
        listed = bool(self.authors) and "et al" not in self.authors
        return listed, len(self.title), len(self.authors)

    @property
    def people(self) -> list[str]:
        """The authors one by one; "others" stands for those that are not named."""
        words = re.sub(r",? (?:et al\.?|and others)$", ", others", self.authors)
        return [name.strip() for name in words.split(",") if name.strip()]


def papers_of(item: str) -> list[Paper]:
    """The papers of one item of a list of references.

    An item may hold several links; what stands before each belongs to it.
    """
    found, end = [], 0
    for link in LINK.finditer(item):
        found.append(_paper(item[end : link.start()], link[1]))
        end = link.end()
    rest = item[end:].strip(" .;")
    if not found:
        return [_paper(item, "")] if TITLE.search(item) else []
    if rest:
        found[-1].where = f"{found[-1].where} {rest}".strip()
    return found


def _paper(words: str, arxiv: str) -> Paper:
    words = words.strip(" .;:,")
    if title := TITLE.search(words):
        authors, where = words[: title.start()], words[title.end() :]
        where = re.sub(r"^\((.*?)\)[. ]*", r"\1, ", where.strip(" .,")).strip(", ")
        return Paper(title[1].strip(" ."), authors.strip(" ."), arxiv, where)
    return Paper("", arxiv=arxiv, where=words)  # "The journal version": not its title


def items(source: str) -> list[str]:
    """The items of the list under the heading *References* of a cell."""
    _, heading, text = source.partition("## References")
    return [line[2:] for line in text.split("\n") if heading and line[:2] == "- "]


def collected(notebooks: Iterable[Notebook]) -> list[Paper]:
    """Every paper that notebooks cite, each once, with the notebooks that cite it.

    A paper that only a notebook's front matter names is there with its number alone.
    """
    found: dict[str, Paper] = {}
    for notebook in notebooks:
        sources = [c.source for c in notebook.nb.cells if c.cell_type == "markdown"]
        cited = [p for s in sources for item in items(s) for p in papers_of(item)]
        cited += [Paper("", arxiv=p) for p in notebook.front.get("papers") or []]
        for paper in cited:
            key = paper.arxiv or paper.title
            best = max(found.get(key, paper), paper, key=lambda p: p.known)
            best.notebooks = found[key].notebooks if key in found else []
            if notebook.name not in best.notebooks:
                best.notebooks.append(notebook.name)
            found[key] = best
    return sorted(found.values(), key=lambda p: (p.year, p.arxiv, p.title))


def _plain(text: str) -> str:
    """Letters without accents, for a key."""
    split = unicodedata.normalize("NFKD", text)
    return re.sub(r"[^a-z0-9]", "", split.encode("ascii", "ignore").decode().lower())


def keys(papers: list[Paper]) -> list[str]:
    """A BibTeX key for each paper: first author, year, first word of the title."""
    made: list[str] = []
    for paper in papers:
        words = [_plain(w) for w in re.split(r"[\s:-]+", paper.title)]
        words = [w for w in words if w and w not in SMALL] or ["paper"]
        person = _plain(paper.people[0].split()[-1]) if paper.people else ""
        key = f"{person}{paper.year}{words[0]}"
        while key in made:
            key += "b"
        made.append(key)
    return made


def bibtex(paper: Paper, key: str) -> str:
    """The entry of a paper."""
    title = paper.title or f"arXiv:{paper.arxiv}"
    lines = {"title": f"{{{title}}}", "author": " and ".join(paper.people)}
    lines["year"] = paper.year
    if paper.arxiv:
        lines |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
        lines["url"] = f"https://arxiv.org/abs/{paper.arxiv}"
    lines["note"] = paper.where
    return _entry("misc", key, lines)


def collection() -> str:
    """The entry of the collection, from CITATION.cff."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    names = [
        a.get("name") or f"{a['family-names']}, {a['given-names']}"
        for a in cff["authors"]
    ]
    lines = {"title": f"{{{cff['title']}}}"}
    lines["author"] = " and ".join(f"{{{name}}}" for name in names)
    lines["version"] = str(cff["version"])
    lines["year"] = str(cff.get("date-released", ""))[:4]
    lines["url"] = public_url()
    return _entry("software", "state_soup_speculation", lines)


def _entry(kind: str, key: str, lines: dict[str, str]) -> str:
    """An entry without its empty lines; BibTeX reads & and % as commands."""
    kept = {k: re.sub(r"([&%#])", r"\\\1", v) for k, v in lines.items() if v}
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in kept.items())
    return f"@{kind}{{{key},\n{body}\n}}"


def _item(paper: Paper) -> str:
    title = escape(paper.title or f"arXiv:{paper.arxiv}")
    parts = [f"{escape(paper.authors)}. " * bool(paper.authors), f"<em>{title}</em>"]
    if paper.where:
        parts.append(f" ({escape(paper.where)})")
    if paper.year and paper.year not in paper.where:
        parts.append(f", {paper.year}")
    if paper.arxiv:
        address = f"https://arxiv.org/abs/{paper.arxiv}"
        parts.append(f'. <a href="{address}">arXiv:{paper.arxiv}</a>')
    cited = ", ".join(
        f'<a href="notebooks/{name}.html">{name[:2]}</a>' for name in paper.notebooks
    )
    return f"<li>{''.join(parts)}. Cited in {cited}.</li>"


def _copied(text: str, name: str) -> str:
    """A block of BibTeX; the script gives it a button."""
    return (
        f'<pre class="bibtex" tabindex="0" aria-label="BibTeX of {name}">'
        f"{escape(text)}</pre>"
    )


def page(papers: list[Paper]) -> str:
    """The page as Markdown."""
    entries = "\n\n".join(map(bibtex, papers, keys(papers)))
    listed = "\n".join(map(_item, papers))
    return f"""# How to cite

## The collection

{_copied(collection(), "the collection")}

Please cite the papers of the notebooks you used, too.

## The papers

{len(papers)} papers, as the notebooks' references have them (a missing author or year
is missing there), by year.

<ol class="papers">
{listed}
</ol>

## BibTeX of all papers

{_copied(entries, "all papers")}
"""


def titles(papers: Iterable[Paper]) -> dict[str, str]:
    """The titles of the papers by arXiv number."""
    return {paper.arxiv: paper.title for paper in papers if paper.arxiv and paper.title}


def all_papers() -> list[Paper]:
    """The papers of the collection."""
    return collected(every_notebook())
