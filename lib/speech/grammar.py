"""A small grammar: one meaning, spoken in English, German, French and Mandarin.

A meaning is eight numbers (SLOTS): a frame and two noun phrases around a verb, "she
says that two black cats seek five white birds". Every language has its own order of
words, so that recognition is monotone in the sound and translation is not. With
`width` values a slot there are 5 * width^7 meanings; a sentence and its meaning
determine each other (`words`, `parse`).
Mandarin is written with blanks between the words, so that words are what `split`
gives; its 他 (he) and 她 (she) sound alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lib.kit.checks import choice, count, need

Meaning = tuple[int, ...]

LANGUAGES = ("en", "de", "fr", "zh")
WIDEST = 8
SLOTS = (
    *("frame", "number1", "colour1", "animal1"),
    *("verb", "number2", "colour2", "animal2"),
)

# The first four of each are width 4. Pink stands where brown would be natural: espeak
# reads the French "bruns" with English rules, and tigers stand for bears (Mandarin).
_LISTS = {
    "en": """
        two three four five six seven eight nine
        black white red green blue yellow pink grey
        cats dogs birds horses rabbits tigers wolves rats
        see seek love hunt hear fear find meet
    """,
    "de": """
        zwei drei vier fünf sechs sieben acht neun
        schwarze weiße rote grüne blaue gelbe rosa graue
        Katzen Hunde Vögel Pferde Hasen Tiger Wölfe Ratten
        sehen suchen lieben jagen hören fürchten finden treffen
    """,
    "fr": """
        deux trois quatre cinq six sept huit neuf
        noirs blancs rouges verts bleus jaunes roses gris
        chats chiens oiseaux chevaux lapins tigres loups rats
        voient cherchent aiment chassent entendent craignent trouvent rencontrent
    """,
    "zh": """
        两 三 四 五 六 七 八 九
        黑 白 红 绿 蓝 黄 粉红 灰
        猫 狗 鸟 马 兔 虎 狼 鼠
        看见 找 爱 追 听见 怕 发现 遇见
    """,
}
KINDS = ("number", "colour", "animal", "verb")
WORDS = {
    language: dict(zip(KINDS, (row.split() for row in text.strip().splitlines())))
    for language, text in _LISTS.items()
}
FRAMES = {  # three adverbs of a main clause, two clauses that govern a subordinate one
    "en": ("today", "often", "now", "he knows that", "she says that"),
    "de": ("heute", "oft", "jetzt", "er weiß dass", "sie sagt dass"),
    "fr": ("aujourd'hui", "souvent", "maintenant", "il sait que", "elle dit que"),
    "zh": ("今天", "常常", "现在", "他 知道", "她 说"),
}
ADVERBS = 3  # frames below this are adverbs


def known(language: str) -> None:
    """Check a language. Raises ValueError naming those that the grammar speaks."""
    choice("The language", language, LANGUAGES)


def _valid(width: int) -> None:
    count("The width", width, 2)
    need(width <= WIDEST, f"The width is {width}; the lists hold {WIDEST} words each.")


def _phrase(meaning: Meaning, which: int, language: str) -> list[tuple[str, str]]:
    """Number, colour and animal of one noun phrase, as (slot, word)."""
    first = SLOTS.index(f"number{which}")
    slots = SLOTS[first : first + 3]
    number, colour, animal = (
        (slot, WORDS[language][slot[:-1]][value])
        for slot, value in zip(slots, meaning[first : first + 3])
    )
    if language == "fr":
        return [number, animal, colour]
    if language == "zh":
        classifier = "匹" if animal[1] == "马" else "只"
        return [number, (slots[0], classifier), colour, (slots[1], "的"), animal]
    return [number, colour, animal]


def ordered(meaning: Meaning, language: str) -> list[tuple[str, str]]:
    """The words of a sentence, each with the slot of the meaning that it speaks.

    meaning: eight numbers in the order of SLOTS; language: one of LANGUAGES. Returns
    (slot, word) pairs in spoken order; equal slots align two languages. Raises
    ValueError for an unknown language or a number outside its slot.
    """
    known(language)
    limits = (len(FRAMES["en"]), *[WIDEST] * (len(SLOTS) - 1))
    need(
        len(meaning) == len(SLOTS)
        and all(0 <= value < limit for value, limit in zip(meaning, limits)),
        f"The meaning is {tuple(meaning)}; give {len(SLOTS)} numbers, each below "
        f"{limits}.",
    )
    frame = int(meaning[0])
    lead = [("frame", word) for word in FRAMES[language][frame].split()]
    subject, object_ = (_phrase(meaning, which, language) for which in (1, 2))
    verb = [("verb", WORDS[language]["verb"][meaning[SLOTS.index("verb")]])]
    if frame >= ADVERBS:
        verb_last = language == "de"
        tail = [*object_, *verb] if verb_last else [*verb, *object_]
        return [*lead, *subject, *tail]
    if language == "de":  # the verb stands second
        return [*lead, *verb, *subject, *object_]
    if language == "zh":
        return [*subject, *lead, *verb, *object_]
    if language == "fr" and frame == 1:  # souvent follows the verb
        return [*subject, *verb, *lead, *object_]
    return [*lead, *subject, *verb, *object_]


def words(meaning: Meaning, language: str) -> list[str]:
    """The words of a meaning in one language, in spoken order (as for `ordered`)."""
    return [word for _, word in ordered(meaning, language)]


def sentence(meaning: Meaning, language: str) -> str:
    """The sentence of a meaning, words joined by blanks (as for `ordered`)."""
    return " ".join(words(meaning, language))


def parse(text: str, language: str) -> Meaning:
    """The meaning of a sentence: the inverse of `sentence`.

    text: words joined by blanks; language: one of LANGUAGES. Raises ValueError when
    the grammar does not make this sentence.
    """
    known(language)
    found = text.split()
    lists = WORDS[language]
    values = {
        kind: [lists[kind].index(word) for word in found if word in lists[kind]]
        for kind in KINDS
    }
    frames = [i for i, lead in enumerate(FRAMES[language]) if lead.split()[0] in found]
    sizes = [len(values[kind]) for kind in values]
    if sizes == [2, 2, 2, 1] and len(frames) == 1:
        first, second = zip(*(values[k] for k in KINDS[:3]))
        meaning = (*frames, *first, *values["verb"], *second)
        if words(meaning, language) == found:
            return meaning
    raise ValueError(
        f"{text!r} is no sentence of the grammar in {language}; one is "
        f"{sentence((4, 0, 0, 0, 1, 3, 1, 2), language)!r}."
    )


def word_types(language: str, width: int = 4) -> list[str]:
    """Every word that sentences of one width use, sorted.

    language: one of LANGUAGES; width: values a slot, 2 to 8. Raises ValueError.
    """
    known(language)
    _valid(width)
    found = {word for lead in FRAMES[language] for word in lead.split()}
    for column in WORDS[language].values():
        found |= set(column[:width])
    if language == "zh":
        found |= {"只", "的"}
        if "马" in found:
            found.add("匹")
    return sorted(found)


def number_of_meanings(width: int = 4) -> int:
    """How many meanings there are, 5 * width^7. Raises ValueError for a bad width."""
    _valid(width)
    return len(FRAMES["en"]) * width ** (len(SLOTS) - 1)


def meaning_at(index: int, width: int = 4) -> Meaning:
    """The meaning of one number below `number_of_meanings(width)`, frame first.

    Raises ValueError for a bad width or a number outside.
    """
    total = number_of_meanings(width)
    need(0 <= index < total, f"The index is {index}; give one from 0 to {total - 1}.")
    values = []
    for _ in SLOTS[1:]:
        index, value = divmod(int(index), width)
        values.append(value)
    return (index, *reversed(values))


def draw_meanings(
    number: int, width: int, seed: Sequence[int], exclude: Iterable[Meaning] = ()
) -> list[Meaning]:
    """Different random meanings; asking for more only appends to the list.

    number: how many; width: values a slot; seed: whole numbers; exclude: meanings that
    must not appear. Raises ValueError when there are not so many.
    """
    count("The number of meanings", number, 0)
    taken = {tuple(int(value) for value in meaning) for meaning in exclude}
    total = number_of_meanings(width)
    need(
        number + len(taken) <= total,
        f"{number} meanings besides {len(taken)} others were asked for, but width "
        f"{width} has {total}; ask for fewer or raise the width.",
    )
    rng = np.random.default_rng(list(seed))
    drawn: list[Meaning] = []
    while len(drawn) < number:
        # Blocks of one size, so that the stream does not depend on the number.
        for index in rng.integers(total, size=256):
            meaning = meaning_at(int(index), width)
            if meaning not in taken and len(drawn) < number:
                taken.add(meaning)
                drawn.append(meaning)
    return drawn
