"""Tests of kit.claims: verdicts, the table, the JSON, and numbers as text."""

import html.parser
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ci.nbval_tolerance import split
from lib.kit.claims import ClaimError, Claims, interval, number, read_claims, say

Shown = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIT_OUTPUT", str(tmp_path))
    return tmp_path / "11_x"


def identity(residual: Any, tol: float = 1e-9, id: str = "I") -> Claims:
    claims = Claims("11_x")
    claims.identity(id, "a = b", residual=residual, tol=tol, source="algebra")
    return claims


def theorem(measured: Any, **words: Any) -> Claims:
    claims = Claims("11_x")
    claims.theorem("T", "the law", measured=measured, source="Th. 1", **words)
    return claims


def trend(effects: Any, **words: Any) -> Claims:
    claims = Claims("11_x")
    claims.trend("R", "A beats B", effects=effects, source="Table 2", **words)
    return claims


def verdict(claims: Claims) -> str:
    (claim,) = claims.claims
    return claim.verdict


# --- numbers as text -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.000"),
        (-0.0, "0.000"),
        (1, "1.000"),
        (-12.3456, "-12.35"),
        (999.94, "999.9"),
        (999.96, "1.000e+03"),
        (9.99996, "10.00"),
        (1234, "1.234e+03"),
        (0.001234, "0.001234"),
        (0.0009999, "9.999e-04"),
        (0.00099999, "0.001000"),
        (5e-324, "4.941e-324"),
        (1.7e308, "1.700e+308"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32(0.5), "0.5000"),
    ],
)
def test_number(value: float, text: str):
    assert number(value) == text


@given(st.floats(-1e308, 1e308))
@example(9999.7)
@example(0.99999)
@example(999.95)
def test_number_always_shows_four_digits(value: float):
    assume(value != 0)
    text = number(value)
    mantissa = text.partition("e")[0]
    assert len(mantissa.lstrip("-").replace(".", "").lstrip("0")) == 4
    assert "." in mantissa.rstrip(".")
    assert float(text) == pytest.approx(value, rel=5.1e-4, abs=0)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_is_one_number_for_nbval_and_never_an_integer(value: float):
    _, numbers = split(f"measured {number(value)}; source")
    assert numbers == [number(value)]
    assert not numbers[0].lstrip("-").isdigit()


# --- identities ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "residual",
    [0.0, 1e-9, -1e-10, [1e-12, 5e-10], np.zeros((2, 2)), torch.tensor(1e-10)],
)
def test_identity_holds(residual: Any):
    claims = identity(residual)
    assert verdict(claims) == "holds"
    assert claims.claims[0].measured == "<= 1e-09"


@pytest.mark.parametrize(
    "residual",
    [
        1e-8,
        -1.0,
        math.nan,
        math.inf,
        [0.0, math.nan],
        torch.ones(2, requires_grad=True),
    ],
)
def test_identity_fails(residual: Any):
    assert verdict(identity(residual)) == "FAILED"


def test_identity_prints_its_own_tolerance_and_keeps_the_residual():
    (claim,) = identity(2e-12, tol=2.5e-12).claims
    assert (claim.expected, claim.measured) == ("residual <= 2.5e-12", "<= 2.5e-12")
    assert claim.value == 2e-12
    (claim,) = identity(3e-12, tol=2.5e-12).claims
    assert claim.measured == "3.000e-12"


def test_identity_without_a_residual_is_refused():
    with pytest.raises(ValueError, match="identity I was given no residual"):
        identity([])


# --- theorems ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (1.0005, {"expected": 1.0, "rtol": 1e-3}),
        (0.0005, {"expected": 0.0, "atol": 1e-3}),
        ([1.0, 2.0], {"expected": [1.0, 2.001], "rtol": 1e-3}),
        ([1.0, 1.0], {"expected": 1.0, "rtol": 1e-3}),
        (math.inf, {"expected": math.inf, "rtol": 1e-3}),
        (0.5, {"at_most": 0.5}),
        (0.5, {"at_least": 0.5}),
        ([0.2, 0.8], {"at_least": 0.0, "at_most": [0.2, 1.0]}),
        (torch.tensor([1.0, 2.0], requires_grad=True), {"at_least": 1}),
        ([torch.tensor(1.0), 2.0], {"at_least": 1}),
    ],
)
def test_theorem_holds(measured: Any, words: dict[str, Any]):
    assert verdict(theorem(measured, **words)) == "holds"


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (1.002, {"expected": 1.0, "rtol": 1e-3}),
        ([1.0, 2.1], {"expected": [1.0, 2.0], "rtol": 1e-3}),
        (math.nan, {"expected": 1.0, "rtol": 1e-3}),
        (math.nan, {"expected": math.nan, "rtol": 1e-3}),
        (5.0, {"expected": math.inf, "rtol": 1e-3}),
        (-math.inf, {"expected": math.inf, "rtol": 1e-3}),
        (0.51, {"at_most": 0.5}),
        (0.49, {"at_least": 0.5}),
        ([0.2, 1.2], {"at_least": 0.0, "at_most": 1.0}),
        ([0.2, math.nan], {"at_most": 1.0}),
        (0.2, {"at_most": math.nan}),
    ],
)
def test_theorem_fails(measured: Any, words: dict[str, Any]):
    assert verdict(theorem(measured, **words)) == "FAILED"


@pytest.mark.parametrize(
    ("measured", "words", "sentence"),
    [
        (1.0, {"expected": 1.0}, "theorem T needs a tolerance: give rtol or atol"),
        (1.0, {}, "theorem T needs either an expected value or a bound"),
        (
            1.0,
            {"expected": 1.0, "rtol": 1e-3, "at_most": 2},
            "not both and not neither",
        ),
        ([], {"expected": 1.0, "rtol": 1e-3}, "theorem T was given no value"),
        ([], {"at_most": 1.0}, "theorem T was given no value"),
        (
            [1.0, 2.0, 3.0],
            {"expected": [1.0, 2.0], "rtol": 1e-3},
            r"compares \(3,\) .*",
        ),
        (
            [1.0, 2.0],
            {"at_most": [2.0]},
            r"\(2,\) measured values with \(1,\) expected",
        ),
        (1.0, {"at_least": [0.0, 2.0]}, r"\(\) measured values with \(2,\) expected"),
        (1.0, {"at_most": 2, "read": "somewhere"}, "says it was read from 'somewhere'"),
    ],
)
def test_theorem_refuses_what_tests_nothing(
    measured: Any, words: dict[str, Any], sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        theorem(measured, **words)


def test_theorem_words():
    (claim,) = theorem([1.0] * 8, expected=1.0, rtol=1e-3, atol=0.01).claims
    assert claim.expected == "1.000 (rtol 0.001, atol 0.01)"
    assert claim.measured == "1.000, 1.000, 1.000, 1.000, 1.000, 1.000, ... (8)"
    assert claim.value == [1.0] * 8
    (claim,) = theorem(0.5, at_least=0, at_most=1).claims
    assert claim.expected == ">= 0 and <= 1"
    assert claim.value == 0.5


# --- trends --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effects", "expect", "expected"),
    [
        ([1.0, 1.1, 0.9], (0, None), "seen"),
        ([-1.0, -1.1, -0.9], (0, None), "opposite"),
        ([1.0, -1.0, 0.5], (0, None), "inconclusive"),
        ([-1.0, -1.1, -0.9], (None, 0), "seen"),
        ([1.0, 1.1, 0.9], (None, 0), "opposite"),
        ([0.5, 0.51, 0.49], (0.4, 0.6), "seen"),
        ([0.2, 0.21, 0.19], (0.4, 0.6), "opposite"),
        ([0.8, 0.81, 0.79], (0.4, 0.6), "opposite"),
        ([0.6, 0.61, 0.59], (0.4, 0.6), "inconclusive"),
        ([0.2, 0.5, 0.8], (0.4, 0.6), "inconclusive"),
        ([0.0, 0.0, 0.0], (0, None), "inconclusive"),
        ([0.5, 0.5, 0.5], (0, None), "seen"),
        ([1.0, 1.0, math.nan], (0, None), "inconclusive"),
        ([1.0, 1.0, math.inf], (0, None), "inconclusive"),
        ([1.0, 1.0], (0, None), "not judged (2 seeds)"),
        ([1.0], (0, None), "not judged (1 seed)"),
        ([], (0, None), "not judged (0 seeds)"),
        (np.array([1.0, 1.1, 0.9]), (0, None), "seen"),
        (torch.tensor([1.0, 1.1, 0.9]), (0, None), "seen"),
    ],
)
def test_trend_verdict(effects: Any, expect: tuple, expected: str):
    assert verdict(trend(effects, expect=expect)) == expected


@pytest.mark.parametrize("expect", [(None, None), (1, 0), (0, 0), (math.nan, 1)])
def test_trend_refuses_an_empty_expectation(expect: tuple):
    with pytest.raises(ValueError, match="trend R expects an effect in"):
        trend([1.0, 2.0, 3.0], expect=expect)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20).filter(
        lambda x: np.std(x) > 1e-3
    ),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_interval_is_students(effects: list[float], level: float):
    expected = scipy.stats.t.interval(
        level, len(effects) - 1, np.mean(effects), scipy.stats.sem(effects)
    )
    np.testing.assert_allclose(interval(effects, level), expected, rtol=1e-7, atol=1e-7)


def test_interval_needs_two_effects():
    with pytest.raises(ValueError, match="needs at least two effects, but 1 was given"):
        interval([1.0])


def test_trend_words_and_details():
    claims = trend([1.0, 2.0, 3.0], unit="nats", published="2.1 in Table 2")
    (claim,) = claims.claims
    low, high = interval([1.0, 2.0, 3.0])
    assert claim.measured == f"2.000 [{number(low)}, {number(high)}] nats"
    assert claim.expected == "> 0; published: 2.1 in Table 2"
    assert claim.details == {
        "effects": [1.0, 2.0, 3.0],
        "interval": [low, high],
        "unit": "nats",
        "published": "2.1 in Table 2",
    }
    assert trend([1.0], expect=(None, 2)).claims[0].expected == "< 2"
    assert trend([1.0], expect=(0.4, 2)).claims[0].expected == "in (0.4, 2)"
    assert trend([1.0], unit="nats").claims[0].measured == "1.000 nats"


# --- the table -----------------------------------------------------------------------


def three() -> Claims:
    claims = Claims("11_x")
    claims.identity("C1", "x < y & z", residual=0, tol=1e-9, source="<b>me</b>")
    claims.theorem(
        "C2",
        "limit",
        measured=1.0,
        expected=1.0,
        rtol=1e-3,
        source="arXiv:1",
        read="paper",
        hypotheses="N > 3",
    )
    claims.trend("C3", "order", effects=[1.0, 1.1, 0.9], source="Tab. 1", read="code")
    return claims


def test_text_table():
    low, high = map(number, interval([1.0, 1.1, 0.9]))
    assert three().text().splitlines() == [
        "C1 [identity] holds",
        "   x < y & z",
        "   expected residual <= 1e-09; measured <= 1e-09",
        "   source: <b>me</b> (derived here)",
        "C2 [theorem] holds",
        "   limit",
        "   expected 1.000 (rtol 0.001); measured 1.000",
        "   source: arXiv:1 (read: paper)",
        "   hypotheses: N > 3",
        "C3 [trend] seen",
        "   order",
        f"   expected > 0; measured 1.000 [{low}, {high}]",
        "   source: Tab. 1 (read: code)",
    ]


class Table(html.parser.HTMLParser):
    """The cells of a table as text, and every tag that occurs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def test_html_table_has_the_same_cells_and_escapes_them():
    table = Table(three().html())
    assert table.rows[0] == ["", "claim", "source", "expected", "measured", "verdict"]
    assert table.rows[1] == [
        "C1",
        "x < y & z (identity)",
        "<b>me</b>derived here",
        "residual <= 1e-09",
        "<= 1e-09",
        "✓ holds",
    ]
    assert table.rows[2][1] == "limit (theorem)hypotheses: N > 3"
    assert table.rows[3][5] == "✓ seen"
    assert "b" not in table.tags
    assert "color" not in three().html()  # it must suit light and dark pages


def test_statements_are_the_claims_of_one_paper(shown: Shown):
    claims = Claims("21_x")
    claims.theorem(
        "C2",
        "floor",
        measured=1.0,
        at_most=2.0,
        source="2510.00399, Theorem <2>",
        hypotheses="l >= 20: met",
    )
    claims.trend("C1", "s", effects=[1, 2, 3], source="2510.00399", hypotheses="h")
    claims.identity("C3", "other", residual=0, tol=1, source="derived here")
    claims.statements("2510.00399", {"Theorem 9": "constants are lost"})
    ((bundle, _),) = shown
    lines = bundle["text/plain"].split("\n")
    assert lines[0] == "2510.00399 | claim | hypotheses | measured | verdict"
    assert lines[1].startswith("s | C1 (trend) | h | 2.000 [")
    assert lines[2] == (
        "Theorem <2> | C2 (theorem) | l >= 20: met | 1.000; expected <= 2.000 | holds"
    )
    assert lines[3] == "Theorem 9 | - | constants are lost | - | not tested"
    assert len(lines) == 4
    assert "Theorem &lt;2&gt;</th><td" in bundle["text/html"]
    with pytest.raises(ValueError, match="no claim of 21_x names 1234"):
        claims.statements("1234.5678")


def test_running_a_cell_again_replaces_its_claim_in_place():
    claims = three()
    claims.theorem("C2", "limit", measured=5, at_most=1, source="again")
    assert [c.id for c in claims.claims] == ["C1", "C2", "C3"]
    assert claims.claims[1].verdict == "FAILED"
    assert claims.claims[1].source == "again"


# --- showing and writing -------------------------------------------------------------


def test_show_displays_and_writes(shown: Shown, out: Path):
    claims = three()
    claims.show()
    ((bundle, _),) = shown
    assert bundle == {"text/plain": claims.text(), "text/html": claims.html()}
    rows = read_claims(out / "claims.json")
    assert [row["id"] for row in rows] == ["C1", "C2", "C3"]
    assert rows[1]["details"] == {"hypotheses": "N > 3"}


def test_show_raises_after_table_and_json(shown: Shown, out: Path):
    claims = three()
    claims.theorem("C4", "bound", measured=2.0, at_most=1.0, source="Th. 9")
    claims.identity("C5", "same", residual=math.nan, tol=1e-9, source="me")
    with pytest.raises(ClaimError) as caught:
        claims.show()
    assert str(caught.value) == (
        "2 of 5 claims failed: C4 (bound): expected <= 1.000, measured 2.000; "
        "C5 (same): expected residual <= 1e-09, measured nan"
    )
    assert "✗ FAILED" in shown[0][0]["text/html"]
    verdicts = {row["id"]: row["verdict"] for row in read_claims(out / "claims.json")}
    assert verdicts["C4"] == verdicts["C5"] == "FAILED"
    assert verdicts["C1"] == "holds"


def test_no_trend_raises(shown: Shown, out: Path):
    claims = trend([-1.0, -1.1, -0.9])
    claims.show()
    assert read_claims(out / "claims.json")[0]["verdict"] == "opposite"
    assert "✗ opposite" in shown[0][0]["text/html"]


def test_show_without_claims(shown: Shown, out: Path):
    with pytest.raises(ValueError, match="11_x shows its claims, but has tested none"):
        Claims("11_x").show()
    assert shown == []


def strict(text: str) -> Any:
    """JSON as every reader knows it: without Python's own NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: identity(math.nan), "nan"),
        (lambda: theorem([1.0, -math.inf], at_most=2), [1.0, "-inf"]),
        (lambda: trend([1.0, math.nan, 2.0]), "nan"),
        (lambda: trend([]), "nan"),
    ],
)
def test_json_is_strict(out: Path, make: Callable[[], Claims], value: Any):
    path = make().write()
    (row,) = strict(path.read_text(encoding="utf-8"))["claims"]
    assert row["value"] == value


def test_json_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = []
    for run in ("a", "b"):
        monkeypatch.setenv("KIT_OUTPUT", str(tmp_path / run))
        texts.append(three().write().read_bytes())
    assert texts[0] == texts[1]
    assert str(tmp_path).encode() not in texts[0]


def test_claims_leave_the_gpu_for_the_provenance(
    out: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Model X")
    three().write()
    assert json.loads((out / "gpu.json").read_text()) == {"gpu": "Model X"}


def test_claims_without_a_gpu_leave_none(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    three().write()
    assert [path.name for path in out.iterdir()] == ["claims.json"]


def test_a_reader_with_a_closed_folder_still_sees_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown
):
    monkeypatch.delenv("KIT_OUTPUT", raising=False)
    (tmp_path / "results").write_text("a file where the folder should be")
    monkeypatch.setattr("lib.kit.results.RESULTS", tmp_path / "results")
    three().show()
    assert shown[0][0]["text/plain"].startswith("C1 [identity] holds")


# --- sentences -----------------------------------------------------------------------


def test_say_fills_in_what_was_measured(shown: Shown):
    say("It falls as $N^{{{slope:.2f}}}$ in *{n}* runs.", slope=-1.5, n=3)
    words = "It falls as $N^{-1.50}$ in *3* runs."
    assert shown == [({"text/markdown": words, "text/plain": words}, {})]


def test_say_does_not_read_values_as_formats(shown: Shown):
    say("{what}", what="{x}")
    assert shown[0][0]["text/plain"] == "{x}"


def test_counts_stay_integers_and_measurements_do_not():
    (claim,) = theorem([0, 12], at_most=np.array([0, 12])).claims
    assert (claim.measured, claim.expected) == ("0, 12", "<= 0, 12")
    (claim,) = theorem([0.0, 12], at_most=20.0).claims
    assert (claim.measured, claim.expected) == ("0.000, 12.00", "<= 20.00")


def test_the_table_follows_the_numbers_of_the_claims(out: Path):
    claims = Claims("11_x")
    for name in ("C10", "C2", "C1"):
        claims.identity(name, "a = b", residual=0.0, tol=1e-9, source="algebra")
    order = ["C1", "C2", "C10"]
    assert [line.split()[0] for line in claims.text().split("\n")[::4]] == order
    assert [row["id"] for row in read_claims(claims.write())] == order


def test_a_source_that_says_how_it_was_read_does_not_say_it_twice():
    claims = Claims("11_x")
    claims.identity("C1", "a = b", residual=0.0, tol=1.0, source="derived here")
    claims.identity("C2", "a = b", residual=0.0, tol=1.0, source="algebra")
    assert "source: derived here\n" in claims.text()
    assert claims.text().endswith("source: algebra (derived here)")


def test_rounding_noise_beside_a_tolerance_reads_as_zero():
    (claim,) = theorem([1.2e-11, 0.5], expected=[0.0, 0.5], atol=1e-3).claims
    assert claim.measured == "0.000, 0.5000"
    assert claim.value == [1.2e-11, 0.5]
    (claim,) = theorem([1.2e-5], expected=[0.0], atol=1e-3).claims
    assert claim.measured == "1.200e-05"
