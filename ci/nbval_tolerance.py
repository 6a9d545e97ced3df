"""Numeric tolerance for nbval: a pytest plugin, loaded with `-p ci.nbval_tolerance`.

nbval compares every output of a notebook as text. With this plugin the text around
the numbers must still be equal, while the numbers themselves are compared within a
tolerance: `--nb-rtol` and `--nb-atol` for a run, and for one cell the tags
`nbval-rtol=1e-3`, `nbval-atol=1e-6` and `nbval-approx-integers`.
"""

import math
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

RTOL = 1e-6
ATOL = 1e-12
ROUNDED_DIGITS = 4  # from this many digits on, the last one may flip by rounding
SHOWN_DEVIATIONS = 5
PROPERTY = "nbval-deviation"
APPROX_INTEGERS = "nbval-approx-integers"


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may lie apart: max(atol, rtol * larger magnitude)."""

    rtol: float = RTOL
    atol: float = ATOL
    approx_integers: bool = False


class Deviation(NamedTuple):
    """A difference that passed and what was allowed, both relative to the number."""

    relative: float
    allowed: float


class Verdict(NamedTuple):
    """The result of a comparison: equal or not, why not, largest deviation passed."""

    same: bool
    complaint: str = ""
    largest: Deviation | None = None


# --- text -> skeleton and numbers ---------------------------------------------------

NUMBER = "\0"  # stands for a number in a skeleton; cannot occur in a notebook's text

TOKEN = re.compile(
    r"""
    # An HTML tag with its attributes is text, taken as it stands.
    (?P<tag> < /?[A-Za-z][\w-]*
        (?: \s+ [A-Za-z_:@][\w:.-]*
            (?: \s*=\s* (?: "[^"]*" | '[^']*' | [^\s"'<>=]+ ) )? )*
        \s*/?> )
  | (?P<address> (?<!\w) (?: (?<=at[ ]) 0x[0-9a-fA-F]+ | 0x7f[0-9a-f]{10} ) (?!\w) )
  | (?P<version> (?<![\w.]) [0-9]+ (?: \.[0-9]+ ){2,} )
  | (?P<number>
        # numpy prints 1.5-2.j, but pads to 1. -2.j: an imaginary part owns its sign.
        (?: (?<![\w.)]) [-+]
          | [-+] (?= (?: [0-9.]+ (?: e[-+]?[0-9]+ )? | nan | inf ) j )
          | (?<![\w.]) )
        (?: (?: nan | NaN | inf | Infinity ) (?= j?(?!\w) )
          | (?: [0-9]+
                # A bare point is the number's own only where an array prints it;
                # elsewhere it ends a sentence, and "500." must stay an integer.
                (?: \.[0-9]+
                  | \. (?= e[-+]?[0-9] | [0-9\s.,+\-ejnaif]* [\])] )
                )?
              | \.[0-9]+
            )
            # "9e12f" begins a digest, not a number with an exponent.
            (?: [eE][-+]?[0-9]{1,4} (?= j?(?!\w) ) )?
        ) )
  | (?P<rule> -{3,} )
  | (?P<blank> [ \t]+ )
    """,
    re.VERBOSE,
)
# Sound is like pixels: its last bit may differ; its digest is what is compared.
SOUND = re.compile(r"data:audio/\w+;base64,[A-Za-z0-9+/=]*")
FOLDED = {"address": "0x...", "rule": "---", "blank": " "}
ARRAY = re.compile(rf"\[[{NUMBER},.\s+j-]*\]")
# Padding beside a number depends on the printed width of its neighbours.
PADDING = re.compile(rf" ?({NUMBER}j?)(?: (?=[\]),|\n]|\Z))?")


def split(text: str) -> tuple[str, list[str]]:
    """Return the skeleton of a text and its numbers, as printed, in order."""
    numbers: list[str] = []

    def fold(match: re.Match[str]) -> str:
        if match.lastgroup == "number":
            numbers.append(match[0])
            return NUMBER
        if match.lastgroup == "tag":
            tag = re.sub(r"(?<=at )0x[0-9a-fA-F]+", FOLDED["address"], match[0])
            return SOUND.sub("data:audio", tag)
        return FOLDED.get(match.lastgroup, match[0])

    skeleton = TOKEN.sub(fold, text)
    # numpy wraps a long array by printed width, so inside one a line end is a blank.
    skeleton = ARRAY.sub(lambda array: re.sub(r"\s+", " ", array[0]), skeleton)
    return PADDING.sub(r"\1", skeleton), numbers


# --- comparing ----------------------------------------------------------------------


def is_integer(text: str) -> bool:
    return text.lstrip("+-").isdigit()


def rounding_slack(a: Decimal, b: Decimal) -> Decimal:
    """One unit of the finer last digit, if the longer number shows enough digits."""
    shapes = [number.as_tuple() for number in (a, b)]
    if max(len(shape.digits) for shape in shapes) < ROUNDED_DIGITS:
        return Decimal(0)
    return Decimal(1).scaleb(min(shape.exponent for shape in shapes))


def compare_numbers(reference: str, fresh: str, tolerance: Tolerance) -> Verdict:
    """Compare two printed numbers; decimal arithmetic keeps a unit's slack exact."""
    if reference == fresh:
        return Verdict(True)
    a, b = Decimal(reference), Decimal(fresh)
    expected = f"{reference} expected, {fresh} found"
    if not (a.is_finite() and b.is_finite()):
        same = a == b or (a.is_nan() and b.is_nan())
        return Verdict(same, "" if same else f"{expected}.")
    if a == b:
        return Verdict(True)
    if is_integer(reference) and is_integer(fresh) and not tolerance.approx_integers:
        return Verdict(False, f"{expected}, integers must be equal.")
    scale = max(abs(a), abs(b))
    allowed = max(Decimal(str(tolerance.atol)), Decimal(str(tolerance.rtol)) * scale)
    allowed += rounding_slack(a, b)
    difference = abs(a - b)
    if difference > allowed:
        return Verdict(False, f"{expected}, allowed {float(allowed):.2g}.")
    # Noise around zero is relatively large, and would hide the drift of real numbers.
    if difference <= Decimal(str(min(tolerance.atol, ATOL))):
        return Verdict(True)
    passed = Deviation(float(difference / scale), float(allowed / scale))
    return Verdict(True, largest=passed)


def compare(reference: str, fresh: str, tolerance: Tolerance) -> Verdict:
    """Compare two texts: skeletons exactly, numbers within the tolerance."""
    reference, fresh = str(reference), str(fresh)  # a TolerantText would come back here
    if reference == fresh:
        return Verdict(True)
    skeleton, old_numbers = split(reference)
    fresh_skeleton, new_numbers = split(fresh)
    if skeleton != fresh_skeleton:
        return Verdict(False)
    pairs = zip(old_numbers, new_numbers, strict=True)
    verdicts = [compare_numbers(old, new, tolerance) for old, new in pairs]
    for count, verdict in enumerate(verdicts, start=1):
        if not verdict.same:
            complaint = f"Number {count} of {len(verdicts)}: {verdict.complaint}"
            return Verdict(False, complaint)
    return Verdict(True, largest=largest(verdict.largest for verdict in verdicts))


def largest(deviations: Iterable[Deviation | None]) -> Deviation | None:
    """Return the largest of the deviations, None where none is."""
    return max((found for found in deviations if found), default=None)


def same(
    reference: str,
    fresh: str,
    rtol: float = RTOL,
    atol: float = ATOL,
    approx_integers: bool = False,
) -> bool:
    """Return whether two output texts agree, numbers within the tolerance."""
    return compare(reference, fresh, Tolerance(rtol, atol, approx_integers)).same


# --- options and tags ---------------------------------------------------------------


def tolerance_value(text: str) -> float:
    """Read a tolerance: a finite number, not negative."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"A tolerance is a finite number >= 0, but {text} was given.")
    return value


def known_tags() -> list[str]:
    """The tags that start with `nbval-` and mean something, as one would write them."""
    from nbval.plugin import metadata_tags

    theirs = [tag for tag in metadata_tags if tag.startswith("nbval-")]
    return ["nbval-rtol=NUMBER", "nbval-atol=NUMBER", APPROX_INTEGERS, *sorted(theirs)]


def read_tags(tags: Iterable[str], default: Tolerance) -> tuple[Tolerance, str]:
    """Return a cell's tolerance, and a sentence about the tags that are wrong or ""."""
    tolerance, wrong, known = default, [], known_tags()
    for tag in tags:
        name, _, value = tag.partition("=")
        if tag == APPROX_INTEGERS:
            tolerance = replace(tolerance, approx_integers=True)
        elif name in ("nbval-rtol", "nbval-atol"):
            try:
                field = name.removeprefix("nbval-")
                tolerance = replace(tolerance, **{field: tolerance_value(value)})
            except ValueError:
                wrong.append(tag)
        elif tag.startswith("nbval-") and tag not in known:
            wrong.append(tag)
    if not wrong:
        return tolerance, ""
    names = ", ".join(wrong)
    complaint = f"The cell is tagged {names}, which is unknown or malformed; "
    return tolerance, f"{complaint}known tags are {', '.join(known)}."


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nbval")
    for name, default, kind in (("r", RTOL, "relative"), ("a", ATOL, "absolute")):
        group.addoption(
            f"--nb-{name}tol",
            type=tolerance_value,
            default=default,
            metavar="NUMBER",
            help=f"{kind} tolerance for numbers in outputs (default {default})",
        )


# --- nbval's items ------------------------------------------------------------------


@dataclass(frozen=True)
class CellState:
    """What this plugin knows about one notebook cell."""

    tolerance: Tolerance
    complaint: str
    deviations: list[Deviation | None]


STATE = pytest.StashKey[CellState]()


class TolerantText(str):
    """An output text whose `==` and `!=`, which nbval uses, apply the tolerance."""

    state: CellState
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        verdict = compare(self, other, self.state.tolerance)
        self.state.deviations.append(verdict.largest)
        return verdict.same

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a notebook cell a `sanitize` whose texts compare with its tolerance.

    Every value that nbval compares (text, HTML, LaTeX, streams, error name and value)
    goes through `sanitize`.
    """
    from nbval.plugin import IPyNbCell

    if not isinstance(item, IPyNbCell):
        return
    options, tags = item.config.option, item.cell.metadata.get("tags") or []
    default = Tolerance(options.nb_rtol, options.nb_atol)
    state = CellState(*read_tags(tags, default), deviations=[])
    sanitize = item.sanitize

    def tolerant(value: object) -> object:
        value = sanitize(value)
        if not isinstance(value, str):
            return value
        text = TolerantText(value)
        text.state = state
        return text

    item.stash[STATE] = state
    item.sanitize = tolerant


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run cells as JupyterLab does, once the file's kernel is up.

    nbval asks for `store_history=False`, and IPython then does not see that a cell
    ends in a semicolon, and shows its value.
    """
    if STATE not in item.stash:
        return
    kernel = item.parent.kernel
    execute = kernel.kc.execute
    if getattr(execute, "stores_history", False):
        return

    def execute_with_history(code: str, **options: object) -> str:
        return execute(code, **options | {"store_history": True})

    execute_with_history.stores_history = True
    kernel.kc.execute = execute_with_history
    if kernel.language == "python":
        # In memory only: kernels side by side would share the reader's history file.
        execute("get_ipython().history_manager.enabled = False", silent=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note a cell's largest deviation, and fail a cell that has a wrong tag."""
    try:
        return (yield)
    finally:
        if state := item.stash.get(STATE, None):
            if deviation := largest(state.deviations):
                # pytest-xdist carries an item's properties to the main process.
                item.user_properties.append((PROPERTY, list(deviation)))
            if state.complaint:  # only now, since the cells below may need this one
                item.raise_cell_error(state.complaint)


@pytest.hookimpl(wrapper=True)
def pytest_assertrepr_compare(left: object, right: object) -> Generator[None, Any, Any]:
    """Say on top of pytest's comparison of two outputs which number differs."""
    explanations = yield
    if isinstance(left, TolerantText) and isinstance(right, str):
        complaint = compare(left, right, left.state.tolerance).complaint
        if complaint:
            rest = next((lines for lines in explanations if lines), [])
            return [[complaint, *rest]]
    return explanations


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the cells whose numbers moved most: drift, seen before it fails."""
    rows = [
        (Deviation(*value), report.nodeid)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if not rows:
        return
    rows.sort(reverse=True)
    terminalreporter.section("largest deviations within tolerance")
    for deviation, nodeid in rows[:SHOWN_DEVIATIONS]:
        notebook, _, cell = nodeid.partition("::")
        terminalreporter.line(
            f"{notebook}, {cell}: {deviation.relative:.1e} "
            f"(allowed {deviation.allowed:.1e})"
        )
