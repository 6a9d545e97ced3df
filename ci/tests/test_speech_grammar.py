"""Tests of the spoken grammar: meanings, words in four orders, and the way back."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.speech.grammar import (
    FRAMES,
    KINDS,
    LANGUAGES,
    SLOTS,
    WORDS,
    draw_meanings,
    meaning_at,
    number_of_meanings,
    ordered,
    parse,
    sentence,
    word_types,
    words,
)

CATS = (4, 0, 0, 0, 1, 3, 1, 2)
SENTENCES = {
    "en": "she says that two black cats seek five white birds",
    "de": "sie sagt dass zwei schwarze Katzen fünf weiße Vögel suchen",
    "fr": "elle dit que deux chats noirs cherchent cinq oiseaux blancs",
    "zh": "她 说 两 只 黑 的 猫 找 五 只 白 的 鸟",
}
OFTEN = {
    "en": "often two black horses seek five white birds",
    "de": "oft suchen zwei schwarze Pferde fünf weiße Vögel",
    "fr": "deux chevaux noirs cherchent souvent cinq oiseaux blancs",
    "zh": "两 匹 黑 的 马 常常 找 五 只 白 的 鸟",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_has_its_own_order(language):
    assert sentence(CATS, language) == SENTENCES[language]
    assert sentence((1, 0, 0, 3, 1, 3, 1, 2), language) == OFTEN[language]


def test_other_adverbs_stand_first_in_french():
    assert sentence((0, *CATS[1:]), "fr").startswith("aujourd'hui deux chats")


@given(
    st.sampled_from(LANGUAGES),
    st.tuples(st.integers(0, 4), *[st.integers(0, 7)] * 7),
)
def test_a_sentence_and_its_meaning_determine_each_other(language, meaning):
    assert parse(sentence(meaning, language), language) == meaning


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_meanings_of_width_two_give_different_sentences(language):
    said = {sentence(meaning_at(i, 2), language) for i in range(number_of_meanings(2))}
    assert len(said) == 5 * 2**7


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_of_a_kind_are_different_and_eight(language):
    columns = [WORDS[language][kind] for kind in KINDS]
    assert [len(column) for column in columns] == [8] * 4
    everything = [w for c in columns for w in c]
    everything += [w for lead in FRAMES[language] for w in lead.split()]
    # "that" and the like appear in two frames, no word in two kinds.
    assert len(set(everything)) >= len(everything) - 2
    assert len({w for c in columns for w in c}) == 32


def test_word_types_are_those_that_sentences_use():
    for language, width, number in [("en", 4, 24), ("fr", 8, 40), ("zh", 4, 26)]:
        kinds = word_types(language, width)
        used = {
            word
            for meaning in draw_meanings(400, width, [1])
            for word in words(meaning, language)
        }
        assert used == set(kinds)
        assert len(kinds) == number


def test_slots_align_two_languages():
    english, german = (ordered(CATS, language) for language in ("en", "de"))
    assert {slot for slot, _ in english} == {slot for slot, _ in german} == set(SLOTS)
    assert german[-1] == ("verb", "suchen")
    assert ("verb", "seek") in english
    assert english[-1] == ("animal2", "birds")


def test_meanings_are_counted_in_order():
    assert number_of_meanings(4) == 81_920
    first = [meaning_at(i) for i in islice(range(81_920), 5)]
    assert first[:2] == [(0,) * 8, (0,) * 7 + (1,)]
    assert meaning_at(81_919) == (4,) + (3,) * 7


def test_drawn_meanings_are_different_and_more_only_append():
    many = draw_meanings(600, 2, [3])
    assert len(set(many)) == 600
    assert draw_meanings(100, 2, [3]) == many[:100]
    assert draw_meanings(100, 2, [4]) != many[:100]
    rest = draw_meanings(40, 2, [3], exclude=many)
    assert not set(rest) & set(many)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sentence(CATS, "es"), "language is 'es'; choose one of en, de"),
        (lambda: sentence(CATS[:5], "en"), "give 8 numbers"),
        (lambda: sentence((5, *CATS[1:]), "en"), "each below"),
        (lambda: parse("two cats", "en"), "no sentence of the grammar in en; one is"),
        (lambda: parse(SENTENCES["de"], "en"), "no sentence"),
        (lambda: parse("black two cats seek five white birds often", "en"), "sentence"),
        (lambda: word_types("en", 9), "lists hold 8 words"),
        (lambda: number_of_meanings(1), "at least 2"),
        (lambda: meaning_at(81_920), "from 0 to 81919"),
        (lambda: draw_meanings(641, 2, [0]), "width 2 has 640"),
        (lambda: draw_meanings(1, 2, [0], draw_meanings(640, 2, [0])), "has 640"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
