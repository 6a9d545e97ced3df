"""Speech from espeak-ng, with the exact time of every phone, through its C interface.

The library and its voices come with the wheel `espeakng-loader`; a system's espeak-ng
serves too, with other bytes. espeak-ng keeps a state, so the same call gives other
samples the second time: only the same sequence of calls in a fresh process repeats,
which is how `chunks` uses it. One thread at a time.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lib.kit.checks import choice, nearest, need

# Names differ between versions: 1.52 knows no fr-fr, and the `cmn` of 1.51 reads
# characters as English letters.
VOICES = {
    "en": ("en-us",),
    "de": ("de",),
    "fr": ("fr", "fr-fr"),
    "zh": ("cmn-latn-pinyin", "cmn"),
}
# The wheel's voice variants without those that are effects (whisper, robots, echoes).
_NAMES = """
    Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee
    Marco Mario Michael Mike Mr_serious Nguyen Reed RicishayMax RicishayMax2
    RicishayMax3 adam anika announcer antonio aunty belinda benjamin boris caleb
    david ed edward edward2 f1 f2 f3 f4 f5 grandma grandpa gustave ian iven iven2
    iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 klatt5 klatt6 linda m1 m2
    m3 m4 m5 m6 m7 m8 marcelo max michel miguel mike2 norbert pablo paul pedro
    quincy rob robert sandro shelby steph steph2 steph3 travis victor zac
"""
SPEAKERS = tuple(name.replace("_", " ") for name in _NAMES.split())
MARKS = "ˈˌːˑ"  # stress and length would split a phone into rare classes
LONGEST_PATH = 150  # bytes: with a longer one espeak-ng 1.52 looks elsewhere, silently


class SpeechError(RuntimeError):
    """Speech cannot be made or read here; the text says why and what to do."""


@dataclass(frozen=True)
class Speech:
    """One spoken text: its samples and what is heard when.

    samples: (length,) int16; rate: samples per second; phones: symbols without stress
    and length marks, "" for silence; starts: (phones,) first sample of each; words:
    (character of the text from 0, index of the first phone) of each word event.
    """

    samples: np.ndarray
    rate: int
    phones: tuple[str, ...]
    starts: np.ndarray
    words: tuple[tuple[int, int], ...]


class _Value(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("id", ctypes.c_uint),
        ("position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("time", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("value", _Value),
    )


SYNCHRONOUS, UTF8, OK = 2, 1, 0
EVENTS = 1 | 2 | 1 << 15  # phoneme events, as IPA, and an error must not end Python
RATE, PITCH = 1, 3
SEED = 1
END_OF_LIST, WORD, PHONEME = 0, 1, 7
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)

_one_at_a_time = threading.Lock()
_blocks: list[bytes] = []
_events: list[tuple[int, int, int, bytes]] = []


def _receive(wave, length: int, events) -> int:
    """What espeak calls with each block of samples and the events in it."""
    if wave and length > 0:
        _blocks.append(ctypes.string_at(wave, 2 * length))
    i = 0
    while events[i].type != END_OF_LIST:
        event = events[i]
        # A phone fills its 8 bytes without a final 0 when it is long.
        string = ctypes.string_at(ctypes.addressof(event.value), 8).split(b"\0")[0]
        _events.append((event.type, event.position, event.sample, string))
        i += 1
    return 0


_callback = CALLBACK(_receive)  # kept alive as long as the library may call it


def _reachable(data: str) -> str:
    """A path of the voices that is short enough for espeak-ng."""
    if len(os.fsencode(data)) < LONGEST_PATH:
        return data
    link = Path(tempfile.mkdtemp(prefix="espeak-")) / "espeak-ng-data"
    link.symlink_to(data)
    return str(link)


def _library() -> tuple[ctypes.CDLL, str | None]:
    """The shared library and the folder of its voices (None: where it looks)."""
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        return library, espeakng_loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error)
    if name := ctypes.util.find_library("espeak-ng"):
        return ctypes.CDLL(name), None
    raise SpeechError(
        f"espeak-ng cannot be loaded on this platform ({reason}). The notebooks do not "
        "need it: lib.speech.shipped() gives the shipped features. For other corpora "
        "install espeak-ng on the system, or copy data/cache/speech from a machine "
        "that has it."
    )


@cache
def _engine() -> tuple[ctypes.CDLL, int]:
    """The initialised library and its sample rate."""
    library, data = _library()
    path = None if data is None else _reachable(data).encode()
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, path, EVENTS)
    need(
        rate > 0,
        f"espeak-ng found no voices in {data or 'its own folder'}; install the wheel "
        "espeakng-loader again.",
        SpeechError,
    )
    library.espeak_SetSynthCallback(_callback)
    # The breath of some voices (f2, f5, Alicia ...) is noise seeded by the clock.
    if hasattr(library, "espeak_ng_SetRandSeed"):
        library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))
    library.espeak_Info.restype = ctypes.c_char_p
    return library, rate


def version() -> str:
    """The version of espeak-ng, "1.52.0". Raises SpeechError where there is none."""
    return _engine()[0].espeak_Info(None).decode().split()[0]


def variants() -> list[str]:
    """The voice variants that lie beside this espeak-ng, effects among them, sorted.

    Raises SpeechError where there is no espeak-ng.
    """
    path = ctypes.c_char_p()
    _engine()[0].espeak_Info(ctypes.byref(path))
    return sorted(
        p.name for p in (Path(os.fsdecode(path.value)) / "voices/!v").iterdir()
    )


def _set_voice(library: ctypes.CDLL, language: str, speaker: str) -> None:
    choice("The language", language, VOICES)
    # espeak-ng takes an unknown variant without a word and speaks with another voice.
    names = variants()
    need(
        not speaker or speaker in names,
        f"The speaker {speaker!r} is no voice variant of espeak-ng {version()}; it has "
        f"{len(names)}, f1 to f5 and m1 to m8 among them.{nearest(speaker, names)}",
    )
    for voice in VOICES[language]:
        name = f"{voice}+{speaker}" if speaker else voice
        if library.espeak_SetVoiceByName(name.encode()) == OK:
            return
    raise SpeechError(
        f"espeak-ng {version()} has no voice for {language!r}: tried "
        f"{', '.join(VOICES[language])}. Install espeak-ng 1.51 or later."
    )


def clean(symbol: bytes) -> str:
    """A phone as espeak writes it, decoded, without stress and length marks.

    symbol: up to 8 bytes, perhaps cut inside a character. Returns "" for silence.
    """
    text = symbol.decode("utf-8", errors="ignore")
    return "".join(letter for letter in text if letter not in MARKS).strip()


def speak(
    text: str, language: str, speaker: str = "", rate: int = 170, pitch: int = 50
) -> Speech:
    """Speak a text and tell when each phone begins.

    text: what to say; language: en, de, fr or zh; speaker: a voice variant ("" for
    none); rate: words per minute, 80 to 450; pitch: 0 to 99. Raises ValueError for an
    empty text, an unknown speaker or language, a number outside, or a word that the
    voice speaks with another language's rules; SpeechError where there is no
    espeak-ng. The samples depend on all earlier calls of this process.
    """
    need(bool(text.strip()), "The text to speak is empty; give at least one word.")
    need(80 <= rate <= 450, f"The rate is {rate}; give 80 to 450 words per minute.")
    need(0 <= pitch <= 99, f"The pitch is {pitch}; give 0 to 99.")
    with _one_at_a_time:
        library, hertz = _engine()
        _set_voice(library, language, speaker)
        _blocks.clear()
        _events.clear()
        library.espeak_SetParameter(RATE, int(rate), 0)
        library.espeak_SetParameter(PITCH, int(pitch), 0)
        raw = text.encode() + b"\0"
        status = library.espeak_Synth(raw, len(raw), 0, 0, 0, UTF8, None, None)
        need(status == OK, f"espeak-ng could not speak {text!r}.", SpeechError)
        samples = np.frombuffer(b"".join(_blocks), "<i2")
        events = list(_events)
    need(len(samples) > 0, f"espeak-ng made no sound of {text!r}.", SpeechError)
    return _speech(text, language, samples, hertz, events)


def _speech(text: str, language: str, samples, rate: int, events: list) -> Speech:
    """Sort the events of one text into phones and words."""
    phones, starts, words = [], [], []
    for kind, position, sample, string in events:
        if kind == WORD:
            words.append((position - 1, len(phones)))
        elif kind == PHONEME:
            need(
                not string.startswith(b"("),
                f"The {language} voice speaks {_word_at(text, words)!r} with the rules "
                "of another language; use another word.",
            )
            phones.append(clean(string))
            starts.append(sample)
    return Speech(samples, rate, tuple(phones), np.array(starts, int), tuple(words))


def _word_at(text: str, words: list[tuple[int, int]]) -> str:
    begin = words[-1][0] if words else 0
    return text[begin:].split(maxsplit=1)[0]


def phones_of_words(text: str, speech: Speech) -> list[tuple[str, ...]]:
    """The phones of each word of a text, silence left out.

    text: as it was given to `speak`; speech: what that returned. Returns one tuple of
    symbols for every word of `text.split()`; a word spoken in several parts (of a
    Chinese word each character may be one) is put together.
    """
    tokens = text.split()
    begins, at = [], 0
    for token in tokens:
        begins.append(text.index(token, at))
        at = begins[-1] + len(token)
    spoken: list[list[str]] = [[] for _ in tokens]
    ends = [first for _, first in speech.words[1:]] + [len(speech.phones)]
    for (character, first), end in zip(speech.words, ends):
        index = int(np.searchsorted(begins, character, side="right")) - 1
        spoken[index] += [phone for phone in speech.phones[first:end] if phone]
    return [tuple(phones) for phones in spoken]
