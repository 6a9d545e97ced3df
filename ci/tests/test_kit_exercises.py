"""Tests of lib/kit/exercises.py."""

import pytest

from lib.kit.exercises import exercise


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "put your answer"),
        (10.05, "right."),
        (9, "not yet. It is too small."),
        (12, "not yet. It is too large."),
        ("ten", "is not a number"),
        ([1, 2], "one number expected"),
    ],
)
def test_an_answer_gets_a_sentence(answer, words, capsys):
    exercise("1", answer, lambda: 10, rtol=1e-2)
    assert words in capsys.readouterr().out


def test_several_numbers_must_all_be_right(capsys):
    exercise("2", [1.0, 2.0], lambda: [1.0, 2.0])
    exercise("2", [1.0, 3.0], lambda: [1.0, 2.0])
    assert capsys.readouterr().out == "Exercise 2: right.\nExercise 2: not yet.\n"


def test_the_truth_is_not_computed_before_there_is_an_answer():
    exercise("3", None, lambda: pytest.fail("computed"))
