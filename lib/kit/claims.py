"""Claims: what a notebook asserts or measures, with source, table and verdict.

Three kinds. An *identity* must hold to floating-point tolerance. A *theorem* is a
closed form, limit or bound that must hold within a stated tolerance. A *trend* is an
empirical ordering or scaling law, measured over seeds and printed whichever way it
falls. A failed identity or theorem fails the run, after the table has been shown.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

READ = ("paper", "code", "abstract", "second-hand", "derived here")
LEFT = 'style="text-align:left"'  # notebook front ends align tables to the right
MARKS = {"holds": "✓", "FAILED": "✗", "seen": "✓", "opposite": "✗"}


class ClaimError(AssertionError):
    """An identity or theorem did not hold; the text names it."""


@dataclass
class Claim:
    """One row of the claims table, as it stands in the JSON."""

    id: str
    kind: str
    statement: str
    source: str
    read: str
    expected: str
    measured: str
    verdict: str
    value: Any
    details: dict[str, Any] = field(default_factory=dict)


def number(value: float) -> str:
    """A number with four significant digits that all stand in the text.

    It always has decimals or an exponent, so that nbval never takes it for an integer.
    """
    value = float(value)
    if math.isnan(value) or math.isinf(value):
        return str(value)
    if value == 0:
        return "0.000"
    short = f"{value:.3e}"
    size = int(short.partition("e")[2])  # after rounding: 9.9999 has the size of 10
    return f"{value:.{3 - size}f}" if -4 < size < 3 else short


def floats(value: Any) -> np.ndarray:
    """A number, sequence or tensor (of any device, with or without gradient)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    elif isinstance(value, list | tuple):
        value = [floats(item) if hasattr(item, "detach") else item for item in value]
    return np.asarray(value, dtype=float)


def _numbers(value: Any, noise: float = 0.0) -> str:
    """The first six numbers; counts (Python's or numpy's integers) stay integers.

    noise: what is smaller reads as zero, since rounding differs between machines.
    """
    flat = np.atleast_1d(floats(value)).ravel()
    flat = np.where(np.abs(flat) < noise, 0.0, flat)
    whole = not hasattr(value, "detach") and np.asarray(value).dtype.kind in "iub"
    shown = [str(int(x)) if whole else number(x) for x in flat[:6]]
    return ", ".join(shown) + (f", ... ({flat.size})" if flat.size > 6 else "")


def _plain(value: Any) -> Any:
    """A value as JSON knows it; nan and inf become words."""
    value = floats(value)
    flat = [x if math.isfinite(x) else str(x) for x in value.ravel().tolist()]
    return flat[0] if value.ndim == 0 else flat


def interval(effects: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent effects (one a seed).

    Raises ValueError for fewer than two effects.
    """
    from scipy.special import stdtrit

    effects = floats(effects)
    n = effects.size
    if n < 2:
        raise ValueError(f"an interval needs at least two effects, but {n} was given.")
    if not np.isfinite(effects).all():
        return math.nan, math.nan
    half = stdtrit(n - 1, 0.5 + level / 2) * effects.std(ddof=1) / math.sqrt(n)
    return float(effects.mean() - half), float(effects.mean() + half)


class Claims:
    """The claims of one notebook, in the order in which they are tested.

    notebook: its name, such as "11_hippo".
    """

    def __init__(self, notebook: str) -> None:
        self.notebook = notebook
        self.claims: list[Claim] = []

    def _add(self, claim: Claim) -> None:
        if claim.read not in READ:
            raise ValueError(
                f"claim {claim.id} says it was read from {claim.read!r}; say how: one "
                f"of {', '.join(READ)}."
            )
        # Running a cell again replaces its claim instead of listing it twice.
        for place, old in enumerate(self.claims):
            if old.id == claim.id:
                self.claims[place] = claim
                return
        self.claims.append(claim)

    def identity(
        self,
        id: str,
        statement: str,
        *,
        residual: float,
        tol: float,
        source: str,
        read: str = "derived here",
    ) -> None:
        """An equality that must hold to rounding: residual <= tol.

        residual: the largest deviation, absolute or relative as the statement says (or
        all deviations). The table prints the tolerance as a bound, since rounding
        differs between machines; the JSON keeps the residual.
        """
        deviations = np.abs(floats(residual))
        if not deviations.size:
            raise ValueError(f"identity {id} was given no residual: nothing is tested.")
        residual = float(deviations.max())
        holds = residual <= tol  # False for nan
        self._add(
            Claim(
                id=id,
                kind="identity",
                statement=statement,
                source=source,
                read=read,
                expected=f"residual <= {tol:g}",
                measured=f"<= {tol:g}" if holds else f"{residual:.3e}",
                verdict="holds" if holds else "FAILED",
                value=_plain(residual),
                details={"tolerance": tol},
            )
        )

    def theorem(
        self,
        id: str,
        statement: str,
        *,
        measured: Any,
        source: str,
        expected: Any = None,
        rtol: float = 0.0,
        atol: float = 0.0,
        at_most: Any = None,
        at_least: Any = None,
        hypotheses: str = "",
        read: str = "derived here",
    ) -> None:
        """A closed form (expected, rtol or atol) or a bound (at_most, at_least).

        measured, expected and bounds: scalars or sequences of equal length (a scalar
        holds for each element). hypotheses: what the theorem assumes and how the run
        meets it, shown beside the statement.
        """
        if (expected is None) == (at_most is None and at_least is None):
            raise ValueError(
                f"theorem {id} needs either an expected value or a bound (at_most, "
                "at_least), not both and not neither."
            )
        value = floats(measured)
        if not value.size:
            raise ValueError(f"theorem {id} was given no value: nothing is tested.")
        for limit in (expected, at_most, at_least):
            shape = value.shape if limit is None else floats(limit).shape
            if shape not in ((), value.shape):
                raise ValueError(
                    f"theorem {id} compares {value.shape} measured values with {shape} "
                    "expected ones: give as many of each, or one expected value."
                )
        if expected is not None:
            if not (rtol or atol):
                raise ValueError(f"theorem {id} needs a tolerance: give rtol or atol.")
            target = floats(expected)
            holds = bool(np.isclose(value, target, rtol=rtol, atol=atol).all())
            parts = [f"rtol {rtol:g}"] * bool(rtol) + [f"atol {atol:g}"] * bool(atol)
            words = f"{_numbers(expected)} ({', '.join(parts)})"
        else:
            holds, words = not np.isnan(value).any(), []
            if at_least is not None:
                holds &= (value >= floats(at_least)).all()
                words.append(f">= {_numbers(at_least)}")
            if at_most is not None:
                holds &= (value <= floats(at_most)).all()
                words.append(f"<= {_numbers(at_most)}")
            words = " and ".join(words)
        self._add(
            Claim(
                id=id,
                kind="theorem",
                statement=statement,
                source=source,
                read=read,
                expected=words,
                measured=_numbers(measured, noise=1e-6 * atol),
                verdict="holds" if holds else "FAILED",
                value=_plain(measured),
                details={"hypotheses": hypotheses} if hypotheses else {},
            )
        )

    def trend(
        self,
        id: str,
        statement: str,
        *,
        effects: Sequence[float],
        source: str,
        expect: tuple[float | None, float | None] = (0, None),
        unit: str = "",
        published: str = "",
        hypotheses: str = "",
        read: str = "paper",
    ) -> None:
        """An empirical effect, one number a seed, with its 95 % interval and verdict.

        effects: (seeds,) differences, or fitted exponents. expect: the open interval in
        which the paper's effect lies; (0, None) means "positive". *seen*: the interval
        of the mean lies inside; *opposite*: it lies outside; *inconclusive* otherwise.
        Under three seeds it is not judged. No outcome raises; an empty `expect` does.
        hypotheses: what the paper assumes and how the run meets it.
        """
        effects = floats(effects).ravel().tolist()
        low = -math.inf if expect[0] is None else expect[0]
        high = math.inf if expect[1] is None else expect[1]
        if not low < high or (math.isinf(low) and math.isinf(high)):
            raise ValueError(
                f"trend {id} expects an effect in {tuple(expect)}: give (low, None), "
                "(None, high) or (low, high) with low < high."
            )
        details = {"effects": _plain(effects), "unit": unit, "published": published}
        details |= {"hypotheses": hypotheses}
        mean = math.nan  # also where a seed gave nan or inf: no mean to speak of
        if effects and np.isfinite(effects).all():
            mean = float(np.mean(effects))
        if len(effects) < 3:
            seeds = "1 seed" if len(effects) == 1 else f"{len(effects)} seeds"
            verdict = f"not judged ({seeds})"
            measured = f"{number(mean)} {unit}".strip()
        else:
            left, right = interval(effects)
            details["interval"] = _plain([left, right])
            if left > low and right < high:
                verdict = "seen"
            elif right < low or left > high:
                verdict = "opposite"
            else:  # also nan
                verdict = "inconclusive"
            measured = (
                f"{number(mean)} [{number(left)}, {number(right)}] {unit}".strip()
            )
        if math.isinf(high):
            words = f"> {low:g}"
        else:
            words = f"< {high:g}" if math.isinf(low) else f"in ({low:g}, {high:g})"
        self._add(
            Claim(
                id=id,
                kind="trend",
                statement=statement,
                source=source,
                read=read,
                expected=words + (f"; published: {published}" if published else ""),
                measured=measured,
                verdict=verdict,
                value=_plain(mean),
                details={k: v for k, v in details.items() if v},
            )
        )

    def show(self) -> None:
        """Show the table, write the JSON, then raise ClaimError if one has failed."""
        from IPython.display import display

        if not self.claims:
            raise ValueError(f"{self.notebook} shows its claims, but has tested none.")
        self.write()
        bundle = {"text/plain": self.text(), "text/html": self.html()}
        display(bundle, raw=True)
        failed = [c for c in self.claims if c.verdict == "FAILED"]
        if failed:
            words = "; ".join(
                f"{c.id} ({c.statement}): expected {c.expected}, measured {c.measured}"
                for c in failed
            )
            raise ClaimError(
                f"{len(failed)} of {len(self.claims)} claims failed: {words}"
            )

    def statements(self, paper: str, rest: Mapping[str, str] | None = None) -> None:
        """Show a paper statement by statement: hypotheses, what is measured, verdict.

        paper: its arXiv id; every claim whose source names it is a row. rest: what no
        claim tests (theorem or figure), with the reason. Raises ValueError where no
        claim names the paper, so that a wrong id is noticed.
        """
        from IPython.display import display

        rows = []
        for c in sorted(self.claims, key=_order):
            if paper in c.source:
                assumed = c.details.get("hypotheses", "")
                found = f"{c.measured}; expected {c.expected}"
                name = f"{c.id} ({c.kind})"
                rows.append((_stated(c, paper), name, assumed, found, c.verdict))
        if not rows:
            raise ValueError(
                f"no claim of {self.notebook} names {paper} as its source."
            )
        rows += [
            (name, "-", why, "-", "not tested") for name, why in (rest or {}).items()
        ]
        heads = (paper, "claim", "hypotheses", "measured", "verdict")
        cells = [[html.escape(cell) or "-" for cell in row] for row in rows]
        lines = [" | ".join(cell or "-" for cell in row) for row in (heads, *rows)]
        table = _table(heads, cells, f"{paper}, statement by statement")
        display({"text/plain": "\n".join(lines), "text/html": table}, raw=True)

    def write(self) -> Path | None:
        """Write claims.json into this run's folder; None where there is none."""
        from lib.kit.results import note_gpu, output_folder, write_json

        folder = output_folder(self.notebook)
        if folder is None:
            return None
        note_gpu(folder)
        rows = [asdict(claim) for claim in sorted(self.claims, key=_order)]
        return write_json(
            folder / "claims.json", {"notebook": self.notebook, "claims": rows}
        )

    def text(self) -> str:
        """The table as lines of text."""
        lines = []
        for c in sorted(self.claims, key=_order):
            read = f" ({words})" if (words := _read_words(c)) else ""
            lines += [
                f"{c.id} [{c.kind}] {c.verdict}",
                f"   {c.statement}",
                f"   expected {c.expected}; measured {c.measured}",
                f"   source: {c.source}{read}",
            ]
            if hypotheses := c.details.get("hypotheses"):
                lines.append(f"   hypotheses: {hypotheses}")
        return "\n".join(lines)

    def html(self) -> str:
        """The table for a page; no colours of its own, so that it suits any theme."""
        heads = ("", "claim", "source", "expected", "measured", "verdict")
        rows = [_row(c) for c in sorted(self.claims, key=_order)]
        return _table(heads, rows, f"Claims of {html.escape(self.notebook)}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table for a page: rows of escaped cells, the first names its row."""
    head = "".join(f'<th scope="col" {LEFT}>{name}</th>' for name in heads)
    body = ""
    for first, *cells in rows:
        line = "".join(f"<td {LEFT}>{cell}</td>" for cell in cells)
        body += f'<tr><th scope="row" {LEFT}>{first}</th>{line}</tr>'
    return (
        f'<table class="claims"><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _stated(claim: Claim, paper: str) -> str:
    """Which statement of the paper a claim is about: its source without the paper."""
    words = claim.source.replace(paper, "").strip(" ,;:()")
    return words or claim.statement


def _read_words(claim: Claim) -> str:
    """How the source was read, where the source does not say so itself."""
    if claim.read in claim.source:
        return ""
    return claim.read if claim.read == "derived here" else f"read: {claim.read}"


def _order(claim: Claim) -> list[Any]:
    """C2 before C10, and both in the order of the notebook's first table."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", claim.id)]


def _row(c: Claim) -> list[str]:
    """The cells of a claim, escaped."""
    esc = html.escape
    statement = f"{esc(c.statement)} <em>({c.kind})</em>"
    if hypotheses := c.details.get("hypotheses"):
        statement += f"<br><small>hypotheses: {esc(hypotheses)}</small>"
    source = f"{esc(c.source)}<br><small>{esc(_read_words(c))}</small>"
    mark = MARKS.get(c.verdict, "·")
    verdict = f"<strong>{mark} {esc(c.verdict)}</strong>"
    return [esc(c.id), statement, source, esc(c.expected), esc(c.measured), verdict]


def say(text: str, **values: Any) -> None:
    """Show a sentence with measured values, so that no number is typed by hand.

    ``kit.say("The error falls as $N^{{{slope:.2f}}}$.", slope=-1.5)``: the format
    language of str.format; the result is rendered as Markdown.
    """
    from IPython.display import display

    words = text.format(**values)
    display({"text/markdown": words, "text/plain": words}, raw=True)


def read_claims(path: Path) -> list[dict[str, Any]]:
    """The rows of a claims.json."""
    return json.loads(path.read_text(encoding="utf-8"))["claims"]
