"""Tests of the numeric tolerance for nbval: what must pass, and what must fail."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from ci.nbval_tolerance import Tolerance, compare, read_tags, same, split

ROOT = Path(__file__).resolve().parents[2]

# --- the comparison -----------------------------------------------------------------

EQUAL = {
    "equal text": ("loss 0.5", "loss 0.5"),
    "last digit of four": ("loss 0.4921", "loss 0.4922"),
    "rounding up to one": ("0.9999", "1.0000"),
    "rounding over a power": ("9.9999e-05", "1.0000e-04"),
    "shorter after rounding": ("0.49999", "0.5"),
    "one unit of the finer print": ("1.0", "1.0001"),
    "within rtol": ("1.00000001", "1.00000002"),
    "exponent": ("1.0000001e-30", "1.0000002e-30"),
    "exponent against decimal": ("1e-05", "0.00001"),
    "capital exponent": ("1.2E5", "1.2e+05"),
    "noise below atol": ("max error 2.2e-16", "max error -4.4e-16"),
    "noise against zero": ("0.0", "1.3e-17"),
    "percentage": ("accuracy 93.21%", "accuracy 93.22%"),
    "nan spellings": ("nan", "NaN"),
    "inf": ("-inf", "-Infinity"),
    "zero signs": ("-0.0", "0.0"),
    "integer zero sign": ("-0", "0"),
    "blanks": ("a   0.5  b", "a 0.5 b"),
    "padding to the left": (f"x={9.99999:8.5f}|", f"x={10.0:8.5f}|"),
    "padding to the right": ("0.5     |", "0.50000001|"),
    "table rules": ("a\n-----\n0.5", "a\n-------\n0.5"),
    "markdown table": ("| a |\n|---:|\n| 0.50000 |", "| a |\n|-----:|\n|0.50001 |"),
    "address": ("<f object at 0x7f12ab34cd56>", "<f object at 0x7fdeadbeef12>"),
    "address on the heap": ("<f at 0x5581>", "<f at 0x55dd>"),
    "bare address": ("p 0x7f12ab34cd56", "p 0x7fdeadbeef12"),
    "number in HTML": ("<td>0.49210</td>", "<td>0.49211</td>"),
    "LaTeX": (r"$\beta = 1.23456$", r"$\beta = 1.23457$"),
    "complex": ("(1.23456+2.5j)", "(1.23457+2.5j)"),
    "complex array": (
        "[-0.5 +3.j 1.+2.j  ]",
        "[-0.50000001+3.j 1.        +2.00000001j]",
    ),
    "imaginary noise": ("(1.5+1e-17j)", "(1.5-1e-17j)"),
    "array width": ("[1. 2.]", "[1.         2.00000001]"),
    "array sign": ("[0. 1.]", "[-1.e-17  1.e+00]"),
    "array wrap": ("array([0.1,\n       0.2, 0.3])", "array([0.1, 0.2, 0.3])"),
    "torch": ("tensor([ 1.0000, -0.5000])", "tensor([ 1.0001, -0.5000])"),
}

DIFFERENT = {
    "beyond the last digit": ("loss 0.4921", "loss 0.4931"),
    "two units of the last digit": ("0.4921", "0.4923"),
    "too few digits for slack": ("0.492", "0.493"),
    "leading zeros are no digits": ("0.0001", "0.0002"),
    "beyond rtol": ("1.00000001", "1.00001001"),
    "exponent changed": ("1.5e-05", "1.5e-06"),
    "imaginary sign": ("(1.5+2.5j)", "(1.5-2.5j)"),
    "imaginary unit": ("[1.5+2.5j]", "[1.5+2.5]"),
    "sign": ("1.5", "-1.5"),
    "integer": ("steps 100000", "steps 100001"),
    "integer ends a sentence": ("Kept 12345678.", "Kept 12345679."),
    "integer before a sentence": ("Kept 12345678. 3 left", "Kept 12345679. 3 left"),
    "large integer": ("9" * 40, "9" * 39 + "8"),
    "nan for a number": ("loss 0.5", "loss nan"),
    "number for a nan": ("loss nan", "loss 0.5"),
    "inf sign": ("inf", "-inf"),
    "inf for nan": ("inf", "nan"),
    "inf for a number": ("inf", "1e300"),
    "label": ("loss 0.5", "cost 0.5"),
    "label glued to a digit": ("x2 = 1.5", "x3 = 1.5"),
    "name with digits": ("r2_score 0.5", "r3_score 0.5"),
    "name of a row": ("C1 0.5", "C2 0.5"),
    "word that holds nan": ("nantes", "infes"),
    "percent sign": ("93.21%", "93.21"),
    "number missing": ("0.5 0.5", "0.5"),
    "number added": ("[1. 2.]", "[1. 2. 3.]"),
    "line missing": ("a 0.5\nb 0.5", "a 0.5"),
    "line joined": ("a 0.5\nb 0.5", "a 0.5 b 0.5"),
    "rows swapped": ("a 0.5\nb 0.6", "b 0.6\na 0.5"),
    "numbers swapped": ("a 0.5\nb 0.6", "a 0.6\nb 0.5"),
    "version": ("torch 2.11.0", "torch 2.11.1"),
    "version with a suffix": ("2.11.0rc1", "2.11.0rc2"),
    "date": ("2026-08-21", "2026-08-22"),
    "short hexadecimal": ("mask 0x1f", "mask 0x2f"),
    "digest": ("sha 3f9a12e07", "sha 3f9a12e08"),
    "digest like a number": ("1234567891e5f", "1234567892e5f"),
    "attribute": ('<i width="0.50000001">1</i>', '<i width="0.50000002">1</i>'),
    "bare attribute": ("<i width=0.50000001>1</i>", "<i width=0.50000002>1</i>"),
    "tag": ("<td>0.5</td>", "<th>0.5</th>"),
    "tag with a digit": ("<h1>0.5</h1>", "<h2>0.5</h2>"),
    "short rule": ("a -- b", "a --- b"),
}


@pytest.mark.parametrize(("reference", "fresh"), EQUAL.values(), ids=EQUAL)
def test_equal(reference: str, fresh: str) -> None:
    assert same(reference, fresh)
    assert same(fresh, reference)


@pytest.mark.parametrize(("reference", "fresh"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(reference: str, fresh: str) -> None:
    assert not same(reference, fresh)
    assert not same(fresh, reference)


NUMBERS = {
    "1-2": ["1", "2"],
    "1 -2": ["1", "-2"],
    "f(2)-3": ["2", "3"],
    "x=-3, y=+4": ["-3", "+4"],
    "2026-08-21": ["2026", "08", "21"],
    "x2 C1 r2_score _7 v3.1": [],
    "1.2.3 and 10.0.0.1": [],
    "1.5e-3, 2E5, .5, 7.": ["1.5e-3", "2E5", ".5", "7"],
    "[7. 8.e-05]": ["7.", "8.e-05"],
    "nan -inf NaN Infinity nano info": ["nan", "-inf", "NaN", "Infinity"],
    "12.5% 3ms 640x480": ["12.5", "3", "640"],
    "1,234.5": ["1", "234.5"],
    '<td style="width: 1.5em">2.5</td>': ["2.5"],
    "a < 0.51 and b > 0.3": ["0.51", "0.3"],
}


@pytest.mark.parametrize(("text", "numbers"), NUMBERS.items(), ids=NUMBERS)
def test_number_tokens(text: str, numbers: list[str]) -> None:
    assert split(text)[1] == numbers


def test_approximate_integers_are_compared_like_other_numbers() -> None:
    assert not same("kept 1000", "kept 1009", rtol=1e-2)
    assert same("kept 1000", "kept 1009", rtol=1e-2, approx_integers=True)
    assert not same("kept 1000", "kept 1020", rtol=1e-2, approx_integers=True)
    assert not same("kept 98", "kept 99", approx_integers=True)


def test_tolerances_are_inclusive_and_the_larger_one_counts() -> None:
    assert same("0.1", "0.2", rtol=0, atol=0.1)
    assert not same("0.1", "0.2", rtol=0, atol=0.099)
    assert same("90.0", "100.0", rtol=0.1, atol=0)
    assert not same("89.0", "100.0", rtol=0.1, atol=0)
    assert same("0.4921", "0.4922", rtol=0, atol=0)


def test_complaint_names_the_number() -> None:
    verdict = compare("1 loss 0.4921", "1 loss 0.4931", Tolerance())
    expected = "Number 2 of 2: 0.4921 expected, 0.4931 found, allowed 0.0001."
    assert verdict.complaint == expected
    verdict = compare("12 rows", "13 rows", Tolerance())
    assert verdict.complaint.endswith("13 found, integers must be equal.")


def test_largest_deviation_leaves_out_noise_around_zero() -> None:
    verdict = compare("1e-20 2.0000001", "2e-20 2.0000002", Tolerance())
    relative, allowed = verdict.largest
    assert math.isclose(relative, 1e-7 / 2.0000002)
    assert math.isclose(allowed, 1e-6 + relative)  # rtol and one unit of the last digit
    assert compare("0.5 7", "0.50 7", Tolerance()).largest is None


FRAME = pd.DataFrame(
    {"rate": [0.49211234, 10.5], "count": [3, 4], "label": ["a1", "b-2"]},
    index=["lin", "legs"],
)


def outputs_of(frame: pd.DataFrame) -> tuple[str, str]:
    return repr(frame), frame._repr_html_()


@pytest.mark.parametrize("kind", [0, 1], ids=["text", "html"])
def test_data_frame(kind: int) -> None:
    def agrees(changed: pd.DataFrame) -> bool:
        return same(outputs_of(FRAME)[kind], outputs_of(changed)[kind])

    assert agrees(FRAME.assign(rate=FRAME.rate * (1 + 1e-8)))
    assert agrees(FRAME.assign(rate=FRAME.rate + 1e-6))
    assert not agrees(FRAME.assign(rate=FRAME.rate * (1 + 1e-4)))
    assert not agrees(FRAME.assign(rate=[np.nan, 10.5]))
    assert not agrees(FRAME.assign(count=[3, 5]))
    assert not agrees(FRAME.assign(label=["a1", "b-3"]))
    assert not agrees(FRAME.rename(columns={"rate": "rates"}))
    assert not agrees(FRAME.iloc[::-1])
    assert not agrees(FRAME.iloc[:1])
    assert not agrees(FRAME[["count", "rate", "label"]])


@pytest.mark.parametrize("show", [repr, str], ids=["repr", "str"])
def test_array_whose_printed_width_changes(show) -> None:
    array = np.linspace(-1, 1, 60).round(3)
    jittered = array * (1 + 1e-8 * np.sin(np.arange(60)))
    assert len(show(array).splitlines()) != len(show(jittered).splitlines())
    assert same(show(array), show(jittered))
    assert not same(show(array), show(jittered[:-1]))
    assert not same(show(array), show(jittered[::-1]))
    one, other = array + 0.5j, jittered * (1 + 1e-9j) + 0.5j
    assert same(show(one), show(other))
    assert not same(show(one), show(other.conj()))
    matrix, other = array.reshape(20, 3), jittered.reshape(20, 3)
    assert same(show(matrix), show(other))
    assert not same(show(matrix), show(other[:-1]))


# --- properties ---------------------------------------------------------------------

unhurried = settings(deadline=None)  # a busy machine is no failure

texts = st.text() | st.text(alphabet=st.sampled_from("0123 .-+eEnaif%<>[](),|x\n\t_="))
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300)


@unhurried
@given(texts)
def test_a_text_agrees_with_itself(text: str) -> None:
    assert same(text, text)


@unhurried
@given(texts, texts)
def test_the_comparison_is_symmetric(one: str, other: str) -> None:
    assert same(one, other, rtol=0.1) == same(other, one, rtol=0.1)


@unhurried
@given(texts)
def test_marks_and_numbers_match(text: str) -> None:
    assume("\0" not in text)
    skeleton, numbers = split(text)
    assert skeleton.count("\0") == len(numbers)
    for number in numbers:
        float(number)


@unhurried
@given(finite, st.floats(-0.9, 0.9), st.sampled_from([1e-9, 1e-6, 1e-3]))
def test_within_rtol_passes(value: float, share: float, rtol: float) -> None:
    changed = value * (1 + share * rtol)
    assume(math.isfinite(changed))
    assert same(f"loss {value!r}", f"loss {changed!r}", rtol=rtol, atol=0)


@unhurried
@given(finite, st.floats(1, 100), st.sampled_from([1e-9, 1e-6, 1e-3]))
def test_beyond_rtol_fails(value: float, share: float, rtol: float) -> None:
    changed = value * (1 + math.pi / 2 * share * rtol)
    assume(math.isfinite(changed))
    assume(len(repr(changed)) > 18)  # a unit of the last digit is then far below rtol
    reference, fresh = f"loss {value!r}", f"loss {changed!r}"
    assert not same(reference, fresh, rtol=rtol, atol=0)


@unhurried
@given(st.integers(), st.integers())
def test_integers_agree_only_if_equal(one: int, other: int) -> None:
    assert same(f"n = {one};", f"n = {other};", rtol=0.5, atol=10) == (one == other)


@unhurried
@given(st.lists(finite, min_size=2, max_size=5), st.integers(0, 3))
def test_a_missing_number_fails(values: list[float], at: int) -> None:
    shorter = values[:at] + values[at + 1 :]
    assume(len(shorter) < len(values))
    assert not same(repr(values), repr(shorter), rtol=1, atol=1e308)


# --- tags ---------------------------------------------------------------------------


def test_tags_set_the_tolerance_of_a_cell() -> None:
    tags = ["keep", "nbval-rtol=1e-3", "nbval-atol=0.5", "nbval-approx-integers"]
    assert read_tags(tags, Tolerance()) == (Tolerance(1e-3, 0.5, True), "")
    ours = ["raises-exception", "nbval-skip", "nbval-ignore-output"]
    assert read_tags(ours, Tolerance(0.1, 0.2)) == (Tolerance(0.1, 0.2), "")


@pytest.mark.parametrize(
    "tag",
    [
        "nbval-rtol=abc",
        "nbval-rtol=-1",
        "nbval-rtol=nan",
        "nbval-rtol",
        "nbval-tol=1",
        "nbval-atol=inf",
        "nbval-approx-integers=1",
        "nbval-ignore-outputs",
        "nbval-",
    ],
)
def test_wrong_tag(tag: str) -> None:
    _, complaint = read_tags(["nbval-skip", tag], Tolerance())
    assert tag in complaint
    for known in ("nbval-rtol=NUMBER", "nbval-approx-integers", "nbval-ignore-output"):
        assert known in complaint


# --- end to end ---------------------------------------------------------------------


class Case(NamedTuple):
    """One notebook cell: its source, its committed outputs, whether nbval passes."""

    passes: bool
    source: str
    outputs: list
    tags: tuple[str, ...] = ()


def stream(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


def shown(kind: str = "display_data", **data: str):
    named = {name.replace("_", "/"): value for name, value in data.items()}
    count = {"execution_count": 1} if kind == "execute_result" else {}
    return new_output(kind, data=named, metadata={}, **count)


def printing(passes: bool, fresh: str, reference: str, *tags: str) -> Case:
    return Case(passes, f"print({fresh!r})", [stream(reference + "\n")], tags)


def displaying(passes: bool, kind: str, fresh: str, reference: str) -> Case:
    data = {f"text/{kind}": fresh}
    source = f"from IPython.display import display\ndisplay({data!r}, raw=True)"
    return Case(passes, source, [shown(**{f"text_{kind}": reference})])


STDERR = "import sys\nprint({!r}, file=sys.stderr)"
TWO = "from IPython.display import display\nfor x in (0.5, 0.6): display(x)"
BOTH = "display({'text/plain': 'a', 'text/html': '<b>a</b>'}, raw=True)"
RAISE = "raise ValueError('loss 0.49210')"
ERROR = new_output("error", ename="ValueError", evalue="loss 0.49211", traceback=[])
DIGEST = "Figure: a parabola [line 0: n=5 first=0.0 last=1.0 mean={}]"
TAG = "nbval-atol=1e-6"

CASES = {
    "equal": printing(True, "loss 0.5", "loss 0.5"),
    "last digit": printing(True, "loss 0.4922", "loss 0.4921"),
    "rtol tag": printing(True, "loss 0.503", "loss 0.501", "nbval-rtol=1e-2"),
    "atol tag": printing(True, "loss 1e-7", "loss 3e-7", TAG),
    "approximate integers": printing(
        True, "kept 1002", "kept 1000", "nbval-rtol=1e-2", "nbval-approx-integers"
    ),
    "result": Case(
        True, "0.123456781", [shown("execute_result", text_plain="0.12345678")]
    ),
    "html": displaying(True, "html", "<td>0.49210</td>", "<td>0.49211</td>"),
    "latex": displaying(True, "latex", "$0.49210$", "$0.49211$"),
    "markdown": displaying(True, "markdown", "**0.49210**", "**0.49211**"),
    "stderr": Case(True, STDERR.format("0.49210"), [stream("0.49211\n", "stderr")]),
    "exception": Case(True, RAISE, [ERROR], ("raises-exception",)),
    "figure": displaying(
        True, "plain", DIGEST.format("0.37501"), DIGEST.format("0.37502")
    ),
    "semicolon": Case(True, "3 + 4;", []),
    "after a semicolon": Case(True, "3 + 4", [shown("execute_result", text_plain="7")]),
    "ignored": printing(True, "took 3 s", "took 5 s", "nbval-ignore-output"),
    "one digit": printing(False, "loss 0.4931", "loss 0.4921"),
    "short number": printing(False, "loss 0.51", "loss 0.50"),
    "beyond the rtol tag": printing(False, "0.53", "0.50", "nbval-rtol=1e-2"),
    "nan": printing(False, "loss nan", "loss 0.5"),
    "integer": printing(False, "kept 1001", "kept 1000"),
    "label": printing(False, "cost 0.5", "loss 0.5"),
    "swapped row": printing(False, "b 0.6\na 0.5", "a 0.5\nb 0.6"),
    "missing row": printing(False, "a 0.5", "a 0.5\nb 0.6"),
    "extra row": printing(False, "a 0.5\nb 0.6", "a 0.5"),
    "no output": Case(False, "pass", [stream("0.5\n")]),
    "missing output": Case(
        False, TWO, [shown(text_plain=x) for x in ("0.5", "0.6", "0.7")]
    ),
    "extra output": Case(False, TWO, [shown(text_plain="0.5")]),
    "unexpected output": Case(False, "print(0.5)", []),
    "extra key": Case(False, BOTH, [shown(text_plain="a")]),
    "swapped outputs": Case(False, TWO, [shown(text_plain=x) for x in ("0.6", "0.5")]),
    "new on stderr": Case(
        False, "print(1)\n" + STDERR.format("Warning"), [stream("1\n")]
    ),
    "other figure": displaying(
        False, "plain", DIGEST.format("0.375"), DIGEST.format("0.475")
    ),
    "html number": displaying(False, "html", "<td>0.4921</td>", "<td>0.4931</td>"),
    "html attribute": displaying(
        False, "html", '<i width="0.50001">1</i>', '<i width="0.50002">1</i>'
    ),
    "latex number": displaying(False, "latex", "$0.4921$", "$0.4931$"),
    "error value": Case(
        False, "raise ValueError('loss 0.5')", [ERROR], ("raises-exception",)
    ),
    "unknown tag": printing(False, "0.5", "0.5", "nbval-tol=1"),
    "malformed tag": Case(False, "later = 1", [], ("nbval-rtol=abc",)),
    "cell with a wrong tag ran": Case(True, "print(later)", [stream("1\n")]),
    "skipped with a wrong tag": printing(False, "0.5", "0.5", "nbval-skip", "nbval-x"),
}


def write_notebook(path: Path, cases: list[Case]) -> None:
    """Write a notebook that looks executed, with the cases' outputs."""
    cells = [
        new_code_cell(
            case.source,
            outputs=case.outputs,
            execution_count=count,
            metadata={"tags": list(case.tags)},
        )
        for count, case in enumerate(cases, start=1)
    ]
    nbformat.write(new_notebook(cells=cells), path)


class Report(NamedTuple):
    """What a run of nbval printed, and the failure text ("" if none) per cell."""

    text: str
    failures: dict[tuple[str, int], str]


def run_nbval(folder: Path, *options: str) -> Report:
    """Run pytest with nbval and the plugin over the notebooks of a folder."""
    command = [sys.executable, "-m", "pytest", "-p", "ci.nbval_tolerance", "--nbval"]
    command += ["--nbval-current-env", "--junitxml=report.xml", "--color=no", *options]
    command += ["-p", "no:cacheprovider", f"--rootdir={folder}", "-c", os.devnull, "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    failures = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        number = int(case.get("name").removeprefix("Cell "))
        wrong = (child for child in case if child.tag in ("failure", "error"))
        found = "".join(child.text for child in wrong)
        failures[case.get("classname"), number] = found
    return Report(done.stdout + done.stderr, failures)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The failure text, "" if it passed, of every case; one kernel runs them all."""
    folder = tmp_path_factory.mktemp("cases")
    write_notebook(folder / "cases.ipynb", list(CASES.values()))
    report = run_nbval(folder)
    assert len(report.failures) == len(CASES), report.text
    return dict(zip(CASES, report.failures.values(), strict=True)) | {"": report.text}


@pytest.mark.parametrize("name", CASES)
def test_cell(name: str, outcome: dict[str, str]) -> None:
    assert (not outcome[name]) == CASES[name].passes, outcome[name]


def test_report_names_the_number(outcome: dict[str, str]) -> None:
    assert "0.4921 expected, 0.4931 found, allowed 0.0001." in outcome["one digit"]
    assert "integers must be equal" in outcome["integer"]
    assert "loss 0.4931" in outcome["one digit"]


@pytest.mark.parametrize("name", ["unknown tag", "malformed tag"])
def test_report_names_the_wrong_tag_and_the_known_ones(
    name: str, outcome: dict[str, str]
) -> None:
    assert CASES[name].tags[0] in outcome[name]
    assert "nbval-rtol=NUMBER" in outcome[name]
    assert "nbval-raises-exception" in outcome[name]


def summary(text: str) -> list[str]:
    """The lines of the summary's section about deviations."""
    _, _, rest = text.partition("largest deviations within tolerance")
    return re.findall(r"^.*\.ipynb, Cell \d+: \S+ \(allowed \S+\)$", rest, re.MULTILINE)


def test_summary_shows_the_five_largest(outcome: dict[str, str]) -> None:
    lines = summary(outcome[""])
    assert len(lines) == 5
    # The cell with the atol tag, then those with an rtol tag, then rounding flips.
    assert lines[0].endswith("Cell 3: 6.7e-01 (allowed 3.3e+00)")
    assert lines[1].endswith("Cell 2: 4.0e-03 (allowed 1.0e-02)")


def test_under_xdist(tmp_path: Path) -> None:
    jitter = printing(True, "loss 0.50000002", "loss 0.50000001")
    wide = printing(True, "loss 0.503", "loss 0.501")
    write_notebook(tmp_path / "a.ipynb", [CASES["semicolon"], wide])
    write_notebook(tmp_path / "b.ipynb", [CASES["one digit"], jitter])
    report = run_nbval(tmp_path, "-n", "2", "--dist", "loadfile", "--nb-rtol=1e-2")
    assert {cell for cell, text in report.failures.items() if text} == set(), (
        report.text
    )
    assert summary(report.text) == [
        "a.ipynb, Cell 1: 4.0e-03 (allowed 1.0e-02)",
        "b.ipynb, Cell 0: 2.0e-03 (allowed 1.0e-02)",
        "b.ipynb, Cell 1: 2.0e-08 (allowed 1.0e-02)",
    ]


def test_sound_is_compared_through_its_digest_only():
    player = '<audio controls aria-label="{}" src="data:audio/wav;base64,{}"></audio>'
    assert same(
        player.format("a tone", "UklGRg=="), player.format("a tone", "UklGRh==")
    )
    assert not same(player.format("a tone", "Ukl="), player.format("a noise", "Ukl="))
    assert not same('<img src="data:image/gif;base64,A=">', '<img src="x">')
