"""The scoreboard: every recorded claim, published beside ours, small beside full size.

The page is a plain table that reads without JavaScript; `static/scoreboard.js` adds the
filters from the data that each row carries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ci.pages.anchors import KINDS, places
from ci.tools.hashing import stale
from ci.tools.notebooks import every_notebook
from lib.kit.claims import MARKS
from lib.kit.parameters import ParameterError
from lib.kit.results import Recorded, results_table

PROFILES = ("default", "long", "full")
COUNTED = "00_start_here"  # its claims are about the others' records
PAPER = re.compile(r"(?<![\w.])\d{4}\.\d{5}(?!\w)")
# The table takes the room in which other pages have their contents.
NO_CONTENTS = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"
NONE = '<span class="none">–</span>'


@dataclass
class Row:
    """One claim of one notebook: what it says, and what each profile measured."""

    notebook: str
    id: str
    kind: str
    statement: str
    source: str
    read: str
    hypotheses: str
    expected: str
    published: str
    measured: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)

    @property
    def papers(self) -> list[str]:
        """The arXiv numbers in the source, each once."""
        return list(dict.fromkeys(PAPER.findall(self.source)))

    @property
    def outcomes(self) -> list[str]:
        """The verdicts without details: "not judged (2 seeds)" is "not judged"."""
        return sorted({v.split(" (")[0] for v in self.verdicts.values()})


def row_of(notebook: str, claim: Mapping[str, Any]) -> Row:
    """The row of a recorded claim, still without measurements."""
    details = claim.get("details", {})
    expected, _, published = claim["expected"].partition("; published: ")
    return Row(
        notebook=notebook,
        id=claim["id"],
        kind=claim["kind"],
        statement=claim["statement"],
        source=claim["source"],
        read=claim["read"],
        hypotheses=details.get("hypotheses", ""),
        expected=expected,
        published=published or details.get("published", ""),
    )


def rows_of(runs: Iterable[Recorded]) -> list[Row]:
    """The claims of recorded runs, one row a notebook and claim, the profiles beside.

    What a claim says is taken from the smallest profile that has it: a larger one may
    name larger sizes in its statement.
    """
    rows: dict[tuple[str, str], Row] = {}
    kept = [run for run in runs if run.notebook != COUNTED]
    for run in sorted(kept, key=lambda r: (r.notebook, PROFILES.index(r.profile))):
        for claim in run.claims:
            key = (run.notebook, claim["id"])
            row = rows.setdefault(key, row_of(run.notebook, claim))
            row.measured[run.profile] = claim["measured"]
            row.verdicts[run.profile] = claim["verdict"]
    return sorted(rows.values(), key=_order)


def _order(row: Row) -> tuple[str, list[Any]]:
    parts = re.split(r"(\d+)", row.id)
    return row.notebook, [int(p) if p.isdigit() else p for p in parts]


def outdated(runs: Iterable[Recorded]) -> set[tuple[str, str]]:
    """Notebook and profile of the runs that are older than their code."""
    known = {notebook.name: notebook for notebook in every_notebook()}
    found = set()
    for run in runs:
        try:
            old = run.notebook not in known or stale(
                known[run.notebook], run.profile, run.provenance["hash"]
            )
        except ParameterError:  # a profile that no longer fits its notebook
            old = True
        if old:
            found.add((run.notebook, run.profile))
    return found


def _paper_links(source: str) -> str:
    return PAPER.sub(
        lambda m: f'<a href="https://arxiv.org/abs/{m[0]}">{m[0]}</a>', escape(source)
    )


def _measured(row: Row, profile: str, old: bool) -> str:
    if profile not in row.measured:
        return NONE
    verdict = row.verdicts[profile]
    mark = MARKS.get(verdict, "·")
    word = verdict.split(" (")[0].replace(" ", "-").lower()
    note = "<br><small>older than its code</small>" if old else ""
    return (
        f"{escape(row.measured[profile])}<br>"
        f'<strong class="verdict {word}">{mark} {escape(verdict)}</strong>{note}'
    )


def coded() -> set[tuple[str, str]]:
    """Notebook and claim wherever the page of the notebook has a place for it."""
    return {
        (notebook.name, name)
        for notebook in every_notebook()
        for names in places(notebook.nb).values()
        for name in names
    }


def table_row(
    row: Row,
    profiles: Iterable[str],
    old: set[tuple[str, str]],
    code: set[tuple[str, str]] = frozenset(),
) -> str:
    """A row of the table, with the data by which the page filters.

    old: notebook and profile of stale runs; code: notebook and claim with a place.
    """
    facts = {
        "notebook": row.notebook,
        "kind": row.kind,
        "papers": " ".join(row.papers),
        "verdicts": "|".join(row.outcomes),
    }
    data = " ".join(f'data-{k}="{escape(v, quote=True)}"' for k, v in facts.items())
    page = f"notebooks/{row.notebook}.html"
    statement = f"{escape(row.statement)} <em>({row.kind})</em>"
    if row.hypotheses:
        statement += f"<br><small>hypotheses: {escape(row.hypotheses)}</small>"
    read = "" if row.read in row.source else f"<br><small>{escape(row.read)}</small>"
    cells = [
        statement,
        f"{_paper_links(row.source)}{read}",
        escape(row.expected),
        escape(row.published) or NONE,
        *(_measured(row, p, (row.notebook, p) in old) for p in profiles),
    ]
    name = f'<a href="{page}#claims">{row.notebook[:2]} {escape(row.id)}</a>'
    if (row.notebook, row.id) in code:
        which = f'aria-label="code of claim {row.notebook[:2]} {row.id}"'
        name += f'<br><small><a href="{page}#{row.id}" {which}>code</a></small>'
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr {data}><th scope="row">{name}</th>{body}</tr>'


def _choice(name: str, label: str, values: Mapping[str, str]) -> str:
    options = "".join(
        f'<option value="{escape(v, quote=True)}">{escape(words)}</option>'
        for v, words in values.items()
    )
    return (
        f'<label>{label} <select name="{name}"><option value="">all</option>'
        f"{options}</select></label>"
    )


def filters(rows: list[Row], titles: Mapping[str, str]) -> str:
    """The form above the table; it is hidden until the script shows it.

    titles: of the papers, by arXiv number.
    """
    papers = sorted({paper for row in rows for paper in row.papers})
    named = {p: f"{p} {titles[p]}"[:70] if p in titles else p for p in papers}

    def same(values: Iterable[str]) -> dict[str, str]:
        return {value: value for value in values}

    kinds = [k for k in KINDS if k in {r.kind for r in rows}]
    verdicts = sorted({outcome for row in rows for outcome in row.outcomes})
    return (
        '<form id="claim-filters" hidden aria-label="Filter the claims">'
        + _choice("notebook", "Notebook", same(dict.fromkeys(r.notebook for r in rows)))
        + _choice("paper", "Paper", named)
        + _choice("kind", "Kind", same(kinds))
        + _choice("verdict", "Verdict", same(verdicts))
        + '<label>Words <input type="search" name="words"></label>'
        + '<button type="reset">Show all</button>'
        + '<output aria-live="polite"></output></form>'
    )


def table(
    rows: list[Row],
    old: set[tuple[str, str]],
    code: set[tuple[str, str]] = frozenset(),
) -> str:
    """The table of all claims; see `table_row`."""
    profiles = [p for p in PROFILES if any(p in row.measured for row in rows)]
    heads = ["claim", "statement", "source", "expected", "published"]
    heads += [f"measured, {profile}" for profile in profiles]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(table_row(row, profiles, old, code) for row in rows)
    return (
        '<div class="wide-table" tabindex="0" role="region" aria-label="All claims">'
        '<table id="claims-table"><caption>All recorded claims</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def intro(rows: list[Row]) -> str:
    """What the page shows, with the numbers of claims and of profiles."""
    counts = ", ".join(
        f"{sum(profile in row.measured for row in rows)} in the profile *{profile}*"
        for profile in PROFILES
    )
    return f"""Every claim of every notebook, as it was last recorded: {counts}. The
columns stand side by side: what the paper published, what the run of the notebook
measured (*default*), and what longer and larger runs measured (*long*, *full*).
An *identity* must hold to rounding, a *theorem* within a stated tolerance; a *trend* is
measured over seeds and printed whichever way it falls. A claim's name leads to the
table of its notebook, *code* to the cell that makes it. A published number is never
printed as if it had been measured here."""


def page(titles: Mapping[str, str]) -> str:
    """The page as Markdown."""
    runs = results_table()
    rows = rows_of(runs)
    return (
        f"{NO_CONTENTS}# Scoreboard of all claims\n\n{intro(rows)}\n\n"
        f"{filters(rows, titles)}\n\n{table(rows, outdated(runs), coded())}\n"
    )
