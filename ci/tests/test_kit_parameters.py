"""Tests of kit.parameters: what a notebook may be given, and what is refused how."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.kit.parameters import (
    Parameter,
    ParameterError,
    matches,
    parse_value,
    read_parameters,
    read_rules,
    validate,
)

# --- reading the cells ---------------------------------------------------------------


def test_read_parameters_keeps_type_default_and_help():
    source = (
        "# what this run takes\n"
        "steps: int = 400  # optimiser steps\n"
        'init: str = "a # b"  # which basis, # included\n'
        "lr: float = -1e-3\n"
        "depth: int | None = None  #: no limit\n"
        "sizes: list[int] = [\n    1,\n    2,\n]  # of the layers\n"
    )
    assert read_parameters(source) == [
        Parameter("steps", "int", 400, "optimiser steps"),
        Parameter("init", "str", "a # b", "which basis, # included"),
        Parameter("lr", "float", -1e-3, ""),
        Parameter("depth", "int | None", None, ": no limit"),
        Parameter("sizes", "list[int]", [1, 2], "of the layers"),
    ]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("steps: int = 4\nlr = 0.1", "line 2 of the parameters cell is not a typed"),
        ("steps: int = 4\nprint(steps)", "line 2 .* `name: type = value  # help`"),
        ("steps: int = 2 * 2", "default of parameter 'steps' is not a literal"),
        ("x: float = float('nan')", "default of parameter 'x' is not a literal"),
        ("steps: int", "default of parameter 'steps' is not a literal"),
        ("steps: int =", r"the parameters cell is not Python \(line 1"),
        ("%matplotlib inline\nsteps: int = 4", "leave magics and shell lines out"),
        ("steps: int = 4\n  lr: float = 1.0", r"is not Python \(line 2: unexpected"),
    ],
)
def test_read_parameters_refuses_in_a_sentence(source: str, sentence: str):
    with pytest.raises(ParameterError, match=sentence):
        read_parameters(source)


def test_read_rules():
    source = (
        "import numpy as np\n\n"
        "kit.check(\n    steps=(1, None),\n    init=('legs', 'lin'),\n    N=[2, 4])\n"
    )
    expected = {"steps": (1, None), "init": ("legs", "lin"), "N": [2, 4]}
    assert read_rules(source) == expected
    assert read_rules("kit.check()") == {}


@pytest.mark.parametrize(
    "source", ["x = 1", "other.check(a=(1, 2))", "check(a=(1, 2))"]
)
def test_read_rules_without_a_call(source: str):
    assert read_rules(source) is None


@pytest.mark.parametrize(
    "call", ["steps=(1, LIMIT)", "**rules", "**{'steps': (1, 2)}", "(1, 2)"]
)
def test_read_rules_takes_only_literals(call: str):
    with pytest.raises(ParameterError, match="takes name=literal only"):
        read_rules(f"kit.check({call})")


def test_read_rules_refuses_magics():
    with pytest.raises(ParameterError, match="leave magics and shell lines out"):
        read_rules("%time kit.check(steps=(1, 2))")


# --- types ---------------------------------------------------------------------------

FITS = {
    "int": [0, -3, 10**30],
    "float": [1.5, 2, float("nan"), float("inf")],
    "bool": [True, False],
    "str": ["", "legs"],
    "int | None": [None, 4],
    "None | str": [None, "a"],
    "list[int]": [[], [1, 2], (3,)],
    "list[float]": [[1, 2.5]],
    "list": [[1, "a", None], []],
    "tuple[int, ...]": [(1, 2), []],
    "list[list[int]]": [[[1], [2, 3]], []],
    "list[int | None]": [[1, None]],
    "list[int] | list[str]": [[1], ["a"]],
    "list[int] | None": [None, [1]],
    "Any": [1, "a", None, [1]],
}
MISFITS = {
    "int": [1.0, True, "1", None, [1]],
    "float": [True, "1.0", None],
    "bool": [0, 1, "True", None],
    "str": [1, None, ["a"], True],
    "int | None": [1.5, "None", False],
    "list[int]": [[1, 2.5], [True], 1, "12", None],
    "list": [1, "ab"],
    "list[list[int]]": [[1], [["a"]]],
    "list[int] | list[str]": [[1, "a"], [1.5]],
}


@pytest.mark.parametrize("kind", FITS)
def test_values_that_match_their_type(kind: str):
    assert [v for v in FITS[kind] if not matches(v, kind)] == []


@pytest.mark.parametrize("kind", MISFITS)
def test_values_that_do_not_match_their_type(kind: str):
    assert [v for v in MISFITS[kind] if matches(v, kind)] == []


# --- words of the command line -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5", "int", 5),
        (" -5 ", "int", -5),
        ("5", "float", 5.0),
        ("1e-3", "float", 1e-3),
        ("TRUE", "bool", True),
        (" no ", "bool", False),
        ("0", "bool", False),
        ("legs", "str", "legs"),
        ("none", "int | None", None),
        ("", "int | None", None),
        ("7", "int | None", 7),
        ("1,2", "list[int]", [1, 2]),
        ("[1, 2]", "list[int]", [1, 2]),
        ("[1, 2]", "list[float]", [1.0, 2.0]),
        ("[]", "list[int]", []),
        ("3", "list[int]", [3]),
        ("legs, lin", "list[str]", ["legs", "lin"]),
        ("['a,b', \"c\"]", "list[str]", ["a,b", "c"]),
        ("[[1], [2, 3]]", "list[list[int]]", [[1], [2, 3]]),
        ("[1, None]", "list[int | None]", [1, None]),
        ("[1, 'a', 2.5]", "list", [1, "a", 2.5]),
        ("1,a", "list", [1, "a"]),
        ("none", "list[int] | None", None),
        ("auto", "int | str", "auto"),
        ("8", "int | str", 8),
        ("{'a': 1}", "Any", {"a": 1}),
    ],
)
def test_parse_value(text: str, kind: str, value: Any):
    found = parse_value(text, kind)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, list):
        assert [type(x) for x in found] == [type(x) for x in value]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("5.0", "int"),
        ("five", "float"),
        ("maybe", "bool"),
        ("", "int"),
        ("1,x", "list[int]"),
        ("1,,2", "list[int]"),
        ("true", "int | None"),
    ],
)
def test_parse_value_refuses(text: str, kind: str):
    with pytest.raises(ParameterError) as caught:
        parse_value(text, kind, "steps")
    assert str(caught.value) == (
        f"parameter 'steps' was given as {text!r}, but must be of type {kind}."
    )


SCALARS = {
    "int": st.integers(),
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
}


@given(st.data(), st.sampled_from(sorted(SCALARS)))
def test_scalars_survive_the_command_line(data: st.DataObject, kind: str):
    value = data.draw(SCALARS[kind])
    assert parse_value(str(value), kind) == value
    assert parse_value(str(value), f"{kind} | None") == value
    assert matches(parse_value(str(value), kind), kind)


@given(st.data(), st.sampled_from(sorted(SCALARS)))
def test_lists_survive_the_command_line(data: st.DataObject, kind: str):
    values = data.draw(st.lists(SCALARS[kind].filter(lambda x: abs(x) < 1e300)))
    assert parse_value(str(values), f"list[{kind}]") == values
    assert parse_value(",".join(map(str, values)), f"list[{kind}]") == values
    assert parse_value(str(values), "list") == values


@given(st.lists(st.text()))
def test_lists_of_words_survive_the_command_line(words: list[str]):
    assert parse_value(repr(words), "list[str]") == words


@given(st.text())
def test_a_word_stays_as_it_is(word: str):
    assert parse_value(word, "str") == word


def test_nan_is_a_float_until_a_range_refuses_it():
    value = parse_value("nan", "float")
    validate({"lr": value}, {"lr": "float"}, {})
    with pytest.raises(ParameterError, match="'lr' is nan, but must be at least 0"):
        validate({"lr": value}, {"lr": "float"}, {"lr": (0, None)})


# --- rules ---------------------------------------------------------------------------

TYPES = {
    "steps": "int",
    "lr": "float",
    "init": "str",
    "N": "list[int]",
    "k": "int | None",
}
RULES = {
    "steps": (1, 100),
    "lr": (None, 1.0),
    "init": ("legs", "lin"),
    "N": (2, None),
    "k": [2, 4],
}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 1, "lr": -5, "init": "lin", "N": [2, 64]},
        {"steps": 100, "lr": 1.0, "N": [], "k": None},
        {"k": 4},
    ],
)
def test_validate_accepts(values: dict[str, Any]):
    validate(values, TYPES, RULES)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "parameter 'steps' is 0, but must be between 1 and 100."),
        ({"steps": 101}, "parameter 'steps' is 101, but must be between 1 and 100."),
        ({"lr": 1.5}, "parameter 'lr' is 1.5, but must be at most 1.0."),
        ({"lr": float("nan")}, "parameter 'lr' is nan, but must be at most 1.0."),
        ({"N": [4, 1]}, "parameter 'N' is 1, but must be at least 2."),
        ({"k": 3}, "parameter 'k' is 3, but must be one of 2, 4."),
        (
            {"init": "leg"},
            "parameter 'init' is 'leg', but must be one of 'legs', 'lin'. "
            "Did you mean legs?",
        ),
        ({"steps": True}, "parameter 'steps' is True (bool), but must be of type int."),
        ({"steps": "5"}, "parameter 'steps' is '5' (str), but must be of type int."),
        (
            {"step": 5},
            "11_hippo has no parameter 'step'. Did you mean steps? It takes: steps, "
            "lr, init, N, k.",
        ),
        (
            {"zzz": 5},
            "11_hippo has no parameter 'zzz'. It takes: steps, lr, init, N, k.",
        ),
    ],
)
def test_validate_refuses_in_one_sentence(values: dict[str, Any], sentence: str):
    with pytest.raises(ParameterError) as caught:
        validate(values, TYPES, RULES, "11_hippo")
    assert str(caught.value) == sentence


def test_a_notebook_without_parameters_says_so():
    with pytest.raises(
        ParameterError, match=r"has no parameter 'seed'. It takes: none"
    ):
        validate({"seed": 1}, {}, {})


def test_a_range_refuses_a_word_of_a_mixed_type():
    with pytest.raises(ParameterError, match="'N' is 'auto', but must be at least 1"):
        validate({"N": "auto"}, {"N": "int | str"}, {"N": (1, None)})


def test_choices_of_several_types_suggest_only_words():
    with pytest.raises(ParameterError, match=r"of 'auto', 1\. Did you mean auto"):
        validate({"N": "aut"}, {"N": "int | str"}, {"N": ("auto", 1)})


@pytest.mark.parametrize("rule", ["legs", 5, None])
def test_a_rule_that_is_neither_range_nor_choices(rule: Any):
    # ("legs") without its comma would accept "leg" as a part of the word.
    with pytest.raises(ParameterError, match=r"one choice is written \('a',\)"):
        validate({"init": "leg"}, {"init": "str"}, {"init": rule})


# --- kit.check in a kernel -----------------------------------------------------------


class Kernel:
    """A namespace in which cells are executed one after the other, as IPython does."""

    def __init__(self) -> None:
        self.space: dict[str, Any] = {"__name__": "__main__", "In": [""], "Out": {}}
        self.run("import os\n_url = 'x'\nfrom lib import kit")

    def run(self, cell: str) -> None:
        exec(compile(cell, "<cell>", "exec"), self.space)


PARAMETERS = """
steps: int = 400  # optimiser steps
lr: float = 0.1
init: str = "legs"
sizes: list[int] = [1, 2]
depth: int | None = None
fast: bool = False
"""
CHECK = "kit.check(steps=(1, None), init=('legs', 'lin'), sizes=(1, 64))"


@pytest.fixture
def kernel() -> Kernel:
    kernel = Kernel()
    kernel.run(PARAMETERS)
    return kernel


def test_check_accepts_the_defaults(kernel: Kernel):
    kernel.run(CHECK)


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ("steps = 0", "'steps' is 0, but must be at least 1"),
        ("steps = 2.5", r"'steps' is 2.5 \(float\), but must be of type int"),
        ("steps = True", r"'steps' is True \(bool\), but must be of type int"),
        ("lr = '0.1'", r"'lr' is '0.1' \(str\), but must be of type float"),
        ("init = 'lim'", "'init' is 'lim'.*Did you mean lin"),
        ("sizes = [1, 65]", "'sizes' is 65, but must be between 1 and 64"),
        (
            "sizes = ['a']",
            r"'sizes' is \['a'\] \(list\), but must be of type list\[int",
        ),
        ("depth = 'deep'", r"must be of type int \| None"),
        ("fast = 1", r"'fast' is 1 \(int\), but must be of type bool"),
        ("step = 5", "this notebook has no parameter 'step'. Did you mean steps"),
        ("inits = ['legs']", "this notebook has no parameter 'inits'"),
    ],
)
def test_check_stops_what_papermill_let_in(
    kernel: Kernel, injected: str, sentence: str
):
    kernel.run(injected)
    with pytest.raises(ParameterError, match=sentence):
        kernel.run(CHECK)


@pytest.mark.parametrize("injected", ["sizes = (3, 4)", "depth = 3", "lr = 1"])
def test_check_accepts_injected_values(kernel: Kernel, injected: str):
    kernel.run(injected)
    kernel.run(CHECK)


def test_check_refuses_a_rule_for_nothing(kernel: Kernel):
    with pytest.raises(ParameterError, match="names 'step', which is no parameter"):
        kernel.run("kit.check(step=(1, None))")


def test_check_runs_again_after_later_cells(kernel: Kernel):
    kernel.run(CHECK)
    kernel.run("total = 3\nnames = ['a']")
    kernel.run("import numpy as np\nw: np.ndarray = np.ones(3)\nn: int = 'no matter'")
    kernel.run(CHECK)
    kernel.run("steps = -1")
    with pytest.raises(ParameterError, match="'steps' is -1"):
        kernel.run(CHECK)


def test_check_after_a_refusal_and_later_cells(kernel: Kernel):
    kernel.run("steps = -1")
    with pytest.raises(ParameterError, match="'steps' is -1"):
        kernel.run(CHECK)
    kernel.run("total = 3")  # the reader went on, then mended the parameter
    kernel.run("steps = 3")
    kernel.run(CHECK)


def test_a_misspelt_name_is_refused_until_it_is_gone(kernel: Kernel):
    kernel.run("step = 5")
    for _ in range(2):
        with pytest.raises(ParameterError, match="no parameter 'step'"):
            kernel.run(CHECK)
    kernel.run("del step")
    kernel.run(CHECK)


def test_check_reads_postponed_annotations():
    kernel = Kernel()
    kernel.run("from __future__ import annotations\n" + PARAMETERS + "\nsizes = [0.5]")
    with pytest.raises(ParameterError, match=r"must be of type list\[int\]"):
        kernel.run(CHECK)


def test_check_reads_the_annotations_of_python_3_14():
    # PEP 649: no __annotations__ until a function of the namespace is called.
    kernel = Kernel()
    kernel.run("steps = 2.5\n__annotate__ = lambda form: {'steps': int}")
    with pytest.raises(ParameterError, match="must be of type int"):
        kernel.run("kit.check(steps=(1, None))")
