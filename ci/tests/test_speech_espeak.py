"""Tests of the speech synthesis: voices, phones in time, and what it refuses."""

import ctypes.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lib.speech import espeak
from lib.speech.espeak import (
    SPEAKERS,
    Speech,
    SpeechError,
    clean,
    phones_of_words,
    speak,
    variants,
)
from lib.speech.grammar import LANGUAGES, draw_meanings, sentence, words
from lib.speech.vocabulary import PHONES

CATS = (4, 0, 0, 0, 1, 3, 1, 2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_heard_and_time_never_runs_back(language):
    text = sentence(CATS, language)
    speech = speak(text, language, "m3")
    assert speech.rate == 22_050
    assert speech.samples.dtype == np.int16
    assert len(speech.phones) == len(speech.starts)
    assert (np.diff(speech.starts) >= 0).all()
    assert speech.starts[0] >= 0
    assert speech.starts[-1] <= len(speech.samples)
    heard = phones_of_words(text, speech)
    assert len(heard) == len(text.split())
    assert all(heard)
    assert [p for w in heard for p in w] == [p for p in speech.phones if p]


def test_english_is_spoken_as_it_should():
    text = "two cats see five birds"
    assert phones_of_words(text, speak(text, "en")) == [
        ("t", "u"),
        ("k", "æ", "t", "s"),
        ("s", "i"),
        ("f", "aɪ", "v"),
        ("b", "ɜ", "d", "z"),
    ]


def test_a_chinese_word_of_two_characters_is_put_together():
    text = "今天 两 只"
    heard = phones_of_words(text, speak(text, "zh", "f2"))
    assert heard == [("tɕ", "i", "n", "th", "iɛ", "n"), ("l", "iɑ", "ŋ"), ("ts.", "i.")]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [4, 8])
def test_all_words_are_spoken_with_the_known_phones(language, width):
    found: set[str] = set()
    said: set[str] = set()
    for meaning in draw_meanings(100, width, [7]):
        speech = speak(sentence(meaning, language), language, "m3")
        found |= set(speech.phones) - {""}
        said |= set(words(meaning, language))
    known = {p for part in PHONES[language][: 1 + width // 8] for p in part.split()}
    assert found <= known
    assert len(known - found) <= 2  # a rare junction may be missing from 100


def test_the_speakers_exist_and_keep_the_phones():
    assert len(SPEAKERS) == len(set(SPEAKERS)) == 86
    assert set(SPEAKERS) <= set(variants())
    assert not {"whisper", "robosoft", "Demonic", "croak"} & set(SPEAKERS)
    text = sentence(CATS, "de")
    expected = speak(text, "de").phones
    loud = set()
    for speaker in SPEAKERS:
        speech = speak(text, "de", speaker)
        assert speech.phones == expected, speaker
        loud.add((len(speech.samples), int(np.abs(speech.samples.astype(int)).sum())))
    assert len(loud) == 86  # none is another one by another name


def test_rate_and_pitch_are_heard():
    slow, fast = (speak("two black cats", "en", rate=rate) for rate in (140, 210))
    assert len(slow.samples) > 1.2 * len(fast.samples)

    def period(pitch: int) -> int:
        voice = speak("ah", "en", "m3", pitch=pitch).samples.astype(float)
        middle = voice[len(voice) // 3 : len(voice) // 3 + 2048]
        same = np.correlate(middle, middle, "full")[len(middle) - 1 :]
        return int(same[120:400].argmax())

    assert period(20) > period(80)  # a longer period is a lower voice


def test_stress_length_and_a_cut_character_are_stripped():
    assert clean("ˈuː".encode()) == "u"
    assert clean("ˌɔɹ".encode()) == "ɔɹ"
    assert clean(b"") == ""
    assert clean("ˈaɪɚ".encode()[:7] + "ə".encode()[:1]) == "aɪɚ"
    assert clean("tɕ".encode()[:2]) == "t"


def test_words_without_an_event_stay_empty():
    speech = Speech(np.zeros(9, np.int16), 9, ("a", "", "b"), np.arange(3), ((0, 0),))
    assert phones_of_words("one two", speech) == [("a", "b"), ()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deux bruns", "fr"), "'bruns' with the rules of another language"),
        (("熊", "zh"), "'熊' with the rules"),
        (("two", "xx"), "language is 'xx'; choose one of en, de, fr, zh"),
        (("two", "en", "nobody"), "'nobody' is no voice variant"),
        (("two", "en", "M3"), "Did you mean"),
        (("  ", "en"), "text to speak is empty"),
        (("two", "en", "", 20), "rate is 20; give 80 to 450"),
        (("two", "en", "", 170, 100), "pitch is 100; give 0 to 99"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        speak(*arguments)


def test_a_platform_without_the_library_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(SpeechError, match=r"cannot be loaded.*shipped features"):
        espeak._library()


def test_a_library_that_does_not_load_gets_the_same_sentence(monkeypatch, tmp_path):
    wrong = tmp_path / "libespeak-ng.so"
    wrong.write_bytes(b"for another machine")
    wheel = SimpleNamespace(get_library_path=lambda: str(wrong))
    monkeypatch.setitem(sys.modules, "espeakng_loader", wheel)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(SpeechError, match="cannot be loaded on this platform"):
        espeak._library()


def test_a_language_without_a_voice_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(espeak.VOICES, "en", ("en-nowhere", "en-void"))
    with pytest.raises(SpeechError, match="tried en-nowhere, en-void"):
        speak("two", "en")


def test_a_long_path_of_the_voices_is_made_short(tmp_path):
    far = tmp_path / ("a" * 90) / ("b" * 90) / "espeak-ng-data"
    far.mkdir(parents=True)
    (far / "phontab").write_text("here")
    short = espeak._reachable(str(far))
    assert len(short) < espeak.LONGEST_PATH
    assert short.endswith("/espeak-ng-data")
    with open(short + "/phontab") as file:
        assert file.read() == "here"
    assert espeak._reachable("/short") == "/short"
