"""lib.language: corpora, tokenizers, prompts, n-grams, and how the texts were made."""

from __future__ import annotations

import ast
import json
import struct
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.kit.cache import CacheError
from lib.kit.start import ROOT
from lib.language import (
    EOS,
    Bytes,
    Ngram,
    Table,
    bytes_of,
    copy_prompts,
    corpora,
    corpus,
    load_bpe,
    prompts,
    same,
    shipped_bpe,
    shipped_corpus,
    shipping,
    stream,
    train_bpe,
)
from lib.language.tokens import digest, tokenizer

CODE = '''"""A module."""


def area(width, height):
    """The area of a rectangle."""
    total = 0
    for step in range(width):
        total = total + height
    box.width = width
    return total


class Box:
    def fill(self, amount, widths=None):
        self.amount = amount
        return [amount for k in range(3)]
'''
PROSE = (
    "It was a fine morning, and everybody in the house had already gone out to walk.\n"
    "Nobody remained but the cat.\n\nShort one.\n\n"
    "The second paragraph has, like the first, more than eight words in it, so it can\n"
    "be repeated as a whole.\n"
)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([CODE * 3, PROSE * 3], 300, "small")


@pytest.fixture
def folder(tmp_path):
    """A data folder with a small shipped corpus."""
    texts = {f"m{k}/file_{k}.py": f"{CODE}\n# {k}\n" for k in range(40)}
    (tmp_path / "language").mkdir()
    path = tmp_path / corpora.SHIPPED["python"]
    corpora.write_archive(path, texts, "python", ("PSF-2.0", "the licence"))
    (tmp_path / "manifest.json").write_text("{}")
    shipping.enter_all(tmp_path)
    return tmp_path


# -- corpora --------------------------------------------------------------------------


def test_the_split_follows_from_names_alone():
    """By the rule itself, written out: three known names of the standard library."""
    import hashlib

    names = [f"a/{k}.py" for k in range(400)]
    held = [n for n in names if corpora.is_held_out(n)]
    assert held == [n for n in names if hashlib.sha256(n.encode()).digest()[0] < 16]
    a = corpora.made("x", {n: "text" for n in names})
    b = corpora.made("x", {n: "other" for n in reversed(names)})
    parts = [{d.name for d in a.part(part)} for part in ("train", "held_out")]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == {d.name for d in a.part("all")} == set(names)
    assert parts[1] == set(held) == {d.name for d in b.part("held_out")}


def test_a_corpus_always_has_both_parts():
    few = corpora.made("x", {"a": "one", "b": "two", "c": "three", "empty": " \n"})
    assert len(few.part("held_out")) == 1
    assert len(few.part("train")) == 2
    assert few.bytes("all") == 11
    with pytest.raises(ValueError, match="at least two"):
        corpora.made("x", {"a": "one"})
    with pytest.raises(ValueError, match="Did you mean held_out"):
        few.part("heldout")


def test_an_archive_keeps_its_texts_and_repeats_its_bytes(folder, tmp_path):
    found = shipped_corpus("python", folder)
    assert found.kind == "python"
    assert found.licence == "PSF-2.0"
    assert len(found.documents) == 40
    assert found.documents[0].text == f"{CODE}\n# 0\n"
    path, texts = tmp_path / "b.xz", {d.name: d.text for d in found.documents}
    corpora.write_archive(path, texts, "python", ("PSF-2.0", "the licence"))
    assert path.read_bytes() == (folder / corpora.SHIPPED["python"]).read_bytes()
    assert (
        json.loads((folder / "manifest.json").read_text())[corpora.SHIPPED["python"]][
            "licence"
        ]
        == "PSF-2.0"
    )


def test_a_damaged_archive_is_named(folder, monkeypatch):
    path = folder / corpora.SHIPPED["python"]
    monkeypatch.setattr(corpora, "is_held_out", lambda name: False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    shipped_corpus.cache_clear()
    with pytest.raises(CacheError, match="is damaged"):
        shipped_corpus("python", folder)
    with pytest.raises(ValueError, match=r"python.tar.xz cannot be read"):
        corpora.read_archive(path, "python")


def test_a_file_that_differs_from_the_inner_manifest_is_named(tmp_path, monkeypatch):
    class Other:
        def __init__(self, data):
            self.data = data

        def hexdigest(self):
            return "0"

    path = tmp_path / "a.tar.xz"
    with monkeypatch.context() as patch:
        patch.setattr(corpora.hashlib, "sha256", Other)
        corpora.write_archive(path, {"a.txt": "a", "b.txt": "b"}, "prose", ("x", "y"))
    with pytest.raises(ValueError, match=r"a.txt inside a.tar.xz differs"):
        corpora.read_archive(path, "a")


def test_a_text_file_is_cut_at_empty_lines(tmp_path):
    text = "\n\n".join(f"Paragraph {k} of a long text. " * 40 for k in range(60))
    (tmp_path / "book.txt").write_text(text)
    found = corpus(str(tmp_path / "book.txt"))
    assert "".join(found.texts("all")) == text
    assert len(found.documents) == 5
    assert found.kind == "prose"
    assert all(d.text.endswith("\n\n") for d in found.documents[:-1])


def test_a_folder_of_text_files(tmp_path):
    for k in range(5):
        (tmp_path / f"{k}.py").write_text(f"x = {k}\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xff")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "h.py").write_text("h")
    found = corpus(str(tmp_path))
    assert [d.name for d in found.documents] == [f"{k}.py" for k in range(5)]
    assert found.kind == "python"


def test_corpora_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="Did you mean python"):
        corpus("pyton")
    with pytest.raises(ValueError, match="No corpus 'x' is shipped"):
        shipped_corpus("x")
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a.bin cannot be read as UTF-8"):
        corpus(str(tmp_path / "a.bin"))


def test_a_hub_that_cannot_be_reached_gets_a_sentence(monkeypatch):
    class Absent:
        @staticmethod
        def load_dataset(*words, **options):
            raise ConnectionError("no network\nand more")

    monkeypatch.setitem(sys.modules, "datasets", Absent)
    with pytest.raises(ValueError, match=r"'a/b' with a column 'text' .*no network"):
        corpus("hub:a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        corpus("hub:a/b")


def test_rows_of_a_hub_become_documents(monkeypatch):
    class Rows(list):
        def take(self, number):
            return Rows(self[:number])

    class Present:
        @staticmethod
        def load_dataset(name, split, streaming):
            return Rows({"body": f"{name} {k}"} for k in range(9))

    monkeypatch.setitem(sys.modules, "datasets", Present)
    found = corpus("hub:a/b", column="body", most=4)
    assert found.texts("all") == [f"a/b {k}" for k in range(4)]


# -- how they were made ---------------------------------------------------------------


def test_the_library_is_read_without_tests_and_what_a_build_made():
    if sys.version_info[:2] != shipping.VERSION:
        with pytest.raises(ValueError, match=r"the snapshot is of 3\.11"):
            shipping.library_source()
        return
    texts, licence = shipping.library_source()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in licence
    assert "json/decoder.py" in texts
    assert not any("/test" in n or "_sysconfigdata" in n for n in texts)


def test_another_python_is_refused(monkeypatch):
    monkeypatch.setattr(shipping, "VERSION", (2, 7))
    with pytest.raises(ValueError, match=r"the snapshot is of 2.7"):
        shipping.library_source()


def novel(chapters: int, last: str) -> bytes:
    """A novel as R's package keeps it."""
    lines = ["TITLE", "", "VOLUME I"]
    for k in range(chapters):
        lines += [f"CHAPTER {k + 1}", "", f"Text {k}, the end of which", "is é here."]
        lines += ["", "VOLUME II"] if k == 0 else []
    lines += last.split("\n")
    plain = b"X\n" + bytes(12) + b"\0\0\0\x10" + struct.pack(">I", len(lines))
    for line in lines:
        plain += struct.pack(">Ii", 0x40009, len(line.encode())) + line.encode()
    return struct.pack(">I", len(plain)) + zlib.compress(plain)


def test_chapters_are_read_from_the_packages_data_file():
    endings = (
        "\n\nFINIS",
        "THE END\n\n",
        "\nA NOTE ON THE TEXT\nwas late.",
        "",
        "",
        "",
    )
    found = shipping.novel_chapters(b"".join(novel(3, end) for end in endings))
    assert len(found) == 18
    assert set(found.values()) == {
        f"CHAPTER {k + 1}\n\nText {k}, the end of which\nis é here.\n" for k in range(3)
    }
    assert "emma/chapter_01.txt" in found
    with pytest.raises(ValueError, match="The file holds 1 texts"):
        shipping.novel_chapters(novel(2, ""))
    with pytest.raises(ValueError, match=r"not janeaustenr's Rdata.rdb"):
        shipping.novel_chapters(b"something else")


MANIFEST = json.loads((ROOT / "data" / "manifest.json").read_text())


@pytest.mark.skipif(
    corpora.SHIPPED["python"] not in MANIFEST, reason="not shipped (yet)"
)
def test_what_is_shipped_is_what_the_specification_says():
    python, austen = corpus("python"), corpus("austen")
    assert (python.kind, python.licence) == ("python", "PSF-2.0")
    assert (austen.kind, austen.licence) == ("prose", "public domain")
    assert python.bytes("held_out") == 349_497
    assert len(austen.documents) == 269
    table = shipped_bpe()
    assert len(table.table) == 1024
    text = python.texts("held_out")[0]
    assert table.decode(table.encode(text)) == text
    assert len(copy_prompts(python, table, 60)) == 60
    assert len(copy_prompts(austen, table, 60)) == 60


# -- tokenizers -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_survive_bpe(bpe, data):
    tokens = bpe.encode(data)
    assert bytes_of(bpe, tokens) == data
    assert all(0 < token < 300 for token in tokens)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_both(bpe, text):
    text = text.encode("utf-8", "ignore").decode()
    assert bpe.decode(bpe.encode(text)) == text
    plain = text.replace("\0", "")
    assert Bytes().decode(Bytes().encode(plain)) == plain


def test_the_name_of_eos_in_a_text_is_plain_text(bpe):
    tokens = bpe.encode("a <eos> b")
    assert EOS not in tokens
    assert bpe.decode(tokens) == "a <eos> b"


def test_learning_is_deterministic_and_a_file_gives_the_same_table(bpe, tmp_path):
    again = train_bpe([CODE * 3, PROSE * 3], 300, "again")
    bpe.save(tmp_path / "t.json")
    for other in (again, load_bpe(tmp_path / "t.json"), tokenizer(tmp_path / "t.json")):
        same(bpe, other)
        assert other.encode(CODE) == bpe.encode(CODE)
        assert digest(other) == digest(bpe)
    assert len(bpe.table) == 300
    assert len(bpe.encode(CODE)) < len(CODE) / 1.5
    assert tokenizer("bytes").name == "bytes"


def test_equal_size_is_not_equal_tokenizer(bpe):
    other = train_bpe(["zyx wvu " * 40, PROSE], 300, "other")
    with pytest.raises(ValueError, match="equally many tokens, but token"):
        same(bpe, other)
    with pytest.raises(ValueError, match="small has 300 tokens and bytes 256"):
        same(bpe, Bytes())


def test_a_document_begins_behind_eos(bpe):
    row = stream(bpe, ["a", "b"]).tolist()
    assert row == [EOS, *bpe.encode("a"), EOS, *bpe.encode("b")]


def test_files_and_tokens_that_are_none(bpe, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a.json cannot be read as a tokenizer"):
        load_bpe(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"b.json cannot be read as a tokenizer"):
        load_bpe(tmp_path / "b.json")
    with pytest.raises(ValueError, match="Token \\[300\\] is not of small"):
        bpe.decode([5, 300])
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(["a"], 200)
    with pytest.raises(ValueError, match="NUL"):
        Bytes().encode("a\0b")


# -- prompts --------------------------------------------------------------------------


def test_prompts_are_windows_of_held_out_documents(folder):
    python, table = shipped_corpus("python", folder), Bytes()
    found = prompts(python, table, 5, 30, follow=20, seed=1)
    texts = {d.name: [EOS, *table.encode(d.text)] for d in python.part("held_out")}
    for one in found:
        text, window = texts[one.document], one.tokens + one.reference
        assert (len(one.tokens), len(one.reference)) == (30, 20)
        assert any(text[k : k + 50] == window for k in range(len(text)))
    assert found == prompts(python, table, 5, 30, follow=20, seed=1)
    assert found != prompts(python, table, 5, 30, follow=20, seed=2)
    first = [one.document for one in found[: len(texts)]]
    assert len(set(first)) == len(first)
    with pytest.raises(ValueError, match="has 100020 tokens"):
        prompts(python, table, 5, 10**5, follow=20)


def test_an_edit_repeats_the_function_with_one_name_changed(folder):
    python, table = shipped_corpus("python", folder), Bytes()
    one = next(
        one
        for one in copy_prompts(python, table, 4, least=40, most=400)
        if "def area" in table.decode(one.tokens)
    )
    question, answer = table.decode(one.tokens), table.decode(one.reference)
    assert question.endswith(
        "# The same function, with width renamed to given:\ndef area(given, height):"
    )
    edited = "def area(given, height):" + answer
    ast.parse(edited)
    assert "range(given)" in answer
    assert "box.width = given" in answer
    original = CODE[CODE.index("def area") : CODE.index("class Box")]
    assert edited.replace("given", "width").strip() == original.strip()


def test_a_passage_is_repeated_from_its_first_words():
    prose = corpora.made("p", {f"{k}.txt": PROSE for k in range(4)})
    table = Bytes()
    one = copy_prompts(prose, table, 2, least=10, most=400)[0]
    question, answer = table.decode(one.tokens), table.decode(one.reference)
    passage, head = question.split("\n\nThe same passage once more:\n\n")
    assert len(head.split()) == 8
    assert head + answer == passage + "\n"
    with pytest.raises(ValueError, match=r"9 copying prompts .* has 2"):
        copy_prompts(prose, table, 9, least=10, most=400)


def test_a_file_that_does_not_parse_has_no_functions():
    from lib.language.prompts import functions

    assert functions("def broken(:") == []
    assert [q.splitlines()[0] for q, _ in functions(CODE)] == [
        "def area(width, height):",
        "def fill(self, amount, widths=None):",
    ]


# -- n-grams --------------------------------------------------------------------------


def brute(text: list[int], context: list[int], V: int) -> np.ndarray:
    """Witten-Bell by counting runs in dictionaries, from the shortest context up."""
    p = np.full(V, 1 / V)
    for k in range(len(context) + 1):
        h = tuple(context[len(context) - k :])
        seen = Counter(
            text[i + k] for i in range(len(text) - k) if tuple(text[i : i + k]) == h
        )
        if seen:
            n, t = sum(seen.values()), len(seen)
            p = np.array([(seen[c] + t * p[c]) / (n + t) for c in range(V)])
    return p


@pytest.mark.parametrize(("V", "order"), [(2, 0), (3, 2), (5, 4), (300, 3)])
def test_laws_are_those_of_counting(V, order):
    rng = np.random.default_rng(V)
    text = rng.integers(0, min(V, 6), 120).tolist()
    model = Ngram(text, V, order)
    for _ in range(25):
        context = rng.integers(0, min(V, 7), int(rng.integers(0, order + 3))).tolist()
        law = model.law(context)
        used = context[max(len(context) - order, 0) :]
        assert law.sum() == pytest.approx(1, abs=1e-13)
        np.testing.assert_allclose(law, brute(text, used, V), atol=1e-14)
    # The very end of the text is counted too.
    np.testing.assert_allclose(
        model.law(text[-order - 1 : -1]),
        brute(text, text[-1 - order : -1] if order else [], V),
        atol=1e-14,
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=6, max_size=60),
    st.lists(st.integers(0, 3), max_size=8),
    st.integers(0, 5),
)
def test_any_law_sums_to_one_and_leaves_nothing_out(text, context, order):
    law = Ngram(text, 4, order).law(context)
    assert law.sum() == pytest.approx(1, abs=1e-13)
    assert law.min() > 0


def test_the_loss_is_that_of_the_laws():
    rng = np.random.default_rng(0)
    text, other = rng.integers(0, 4, 300), rng.integers(0, 4, 60)
    model = Ngram(text, 4, 3)
    laws = model.laws(other[:3].tolist(), other[3:].tolist())[:-1]
    direct = -np.log(laws[np.arange(57), other[3:]]).mean()
    assert model.loss(other) == pytest.approx(direct, abs=1e-13)
    assert model.loss(text) < direct


def test_a_table_is_the_most_frequent_continuation():
    rng = np.random.default_rng(1)
    text = rng.integers(0, 4, 200).tolist()
    table = Table(text, 4, 3)
    for _ in range(60):
        context = rng.integers(0, 4, int(rng.integers(0, 5))).tolist()
        expected = None
        for k in range(min(3, len(context)), 0, -1):
            h = context[len(context) - k :]
            seen = Counter(
                text[i + k] for i in range(len(text) - k) if text[i : i + k] == h
            )
            best = max(seen, key=lambda c: (seen[c], -c), default=None)
            if best is not None and seen[best] >= 2:
                expected = (best, (seen[best] - 0.5) / sum(seen.values()))
                break
        found = table.next(context)
        if expected is None:
            assert found is None
        else:
            assert found == pytest.approx(expected)


def test_a_draft_goes_on_until_it_is_unsure():
    table = Table([1, 2, 3, 0] * 10, 4, 2)
    drafted, sure = table.draft([3, 0], 6)
    assert drafted == [1, 2, 3, 0, 1, 2]
    assert len(sure) == 6
    short, sure = table.draft([3, 0], 6, threshold=0.9)
    assert 0 < len(short) < 6
    assert np.prod(sure) >= 0.9
    assert table.draft([3, 0], 0) == ([], [])
    assert table.draft([], 4) == ([], [])
    assert table.bytes > 0
    assert table.entries == 8


def test_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match="give an order of at most 5"):
        Ngram([1] * 20, 1024, 6)
    with pytest.raises(ValueError, match="more than the order"):
        Ngram([1, 2], 4, 3)
    with pytest.raises(ValueError, match="span 0 to 9; V is 4"):
        Table([0, 9, 1, 2, 3, 0, 1], 4)
    with pytest.raises(ValueError, match="a symbol outside 0 to 3"):
        Ngram([0, 1, 2, 3] * 3, 4, 2).law([7])


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_a_table_that_looks_ahead_against_counting(ahead):
    rng = np.random.default_rng(ahead)
    text, order = rng.integers(0, 5, 300), 2
    table = Table(text, 5, order, least=1, ahead=ahead)
    for context in ((3,), (1, 4), (0, 0)):
        n = len(context)
        after = [
            int(text[t + n - 1 + ahead])
            for t in range(len(text) - n + 1 - ahead)
            if tuple(text[t : t + n]) == context
        ]
        counts = np.bincount(after, minlength=5)
        symbol, sure = table.next(context)
        assert symbol == counts.argmax()
        assert sure == pytest.approx((counts.max() - 0.5) / counts.sum())
