"""Bad input gets a sentence: the checks that every module shares."""

from __future__ import annotations

import numpy as np
import pytest

from lib.kit import choice, count, need


def test_need_says_its_sentence_with_the_asked_error():
    need(True, "never")
    with pytest.raises(ValueError, match=r"^dt is 0; give a positive step\.$"):
        need(False, "dt is 0; give a positive step.")
    with pytest.raises(TypeError, match="a list"):
        need(False, "a list was given", TypeError)


def test_choice_names_the_known_words_and_the_nearest():
    choice("kind", "lin", ("lin", "legs"))
    sentence = r"kind is 'lgs'; choose one of lin, legs\. Did you mean legs\?"
    with pytest.raises(ValueError, match=sentence):
        choice("kind", "lgs", ("lin", "legs"))
    with pytest.raises(ValueError, match=r"kind is 7; choose one of lin, legs\.$"):
        choice("kind", 7, ("lin", "legs"))


@pytest.mark.parametrize("given", [0, -1, 2.0, "3", True, None])
def test_count_wants_a_whole_number(given: object):
    with pytest.raises(ValueError, match=r"N is .*; give a whole number of at least 1"):
        count("N", given)


def test_count_takes_numpys_integers():
    count("N", np.int64(4), least=4)
