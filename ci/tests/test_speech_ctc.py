"""CTC against all alignments, decoders against exhaustive search, bad transcripts."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import edit_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.speech.ctc import (
    Lexicon,
    check_targets,
    collapse,
    ctc_loss,
    frames_needed,
    greedy,
    prefix_beam,
    unfit,
)


def log_probs(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=g, dtype=torch.float64)
    return (2 * x).log_softmax(-1)


def posterior(frames):
    """p(y) of every transcript, over all alignments: frames (T, V + 1)."""
    found = {}
    for path in itertools.product(range(frames.shape[1]), repeat=len(frames)):
        p = math.exp(sum(float(frame[s]) for frame, s in zip(frames, path)))
        y = tuple(collapse(path))
        found[y] = found.get(y, 0.0) + p
    return found


# -- the loss (O15, O16) ------------------------------------------------------------


@pytest.mark.parametrize(("T", "V"), [(1, 1), (3, 2), (5, 2), (4, 3), (5, 3)])
def test_the_loss_is_the_sum_over_all_alignments(T, V):
    frames = log_probs(1, T, V + 1, seed=T + V)
    for y, p in posterior(frames[0]).items():
        if y:
            loss = ctc_loss(frames, None, [list(y)])
            assert float(loss[0]) == pytest.approx(-math.log(p), abs=1e-10)


def test_a_batch_gives_every_utterance_its_own_loss_whatever_the_padding():
    frames = log_probs(3, 6, 4)
    lengths, targets = torch.tensor([6, 4, 3]), [[1, 2, 2], [3], [1, 3]]
    together = ctc_loss(frames, lengths, targets)
    for i, T in enumerate(lengths.tolist()):
        p = posterior(frames[i, :T])[tuple(targets[i])]
        assert float(together[i]) == pytest.approx(-math.log(p), abs=1e-10)


def test_uniform_frames_count_the_paths():
    T, V = 5, 3
    frames = torch.full((1, T, V + 1), -math.log(V + 1), dtype=torch.float64)
    paths = itertools.product(range(V + 1), repeat=T)
    n = sum(collapse(path) == [1, 1, 2] for path in paths)
    expected = -math.log(n / (V + 1) ** T)
    assert float(ctc_loss(frames, None, [[1, 1, 2]])[0]) == pytest.approx(expected)


def test_numpy_transcripts_are_as_good_as_lists():
    frames = log_probs(1, 6, 4)
    a, b = (ctc_loss(frames, None, [y]) for y in ([1, 1, 3], np.array([1, 1, 3])))
    assert torch.equal(a, b)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_frames_needed_is_exactly_where_the_loss_becomes_finite(y):
    least = frames_needed(y)
    assert math.isfinite(float(ctc_loss(log_probs(1, least, 4), None, [y])[0]))
    if least > 1:
        short = torch.nn.functional.ctc_loss(
            log_probs(least - 1, 1, 4),
            torch.tensor([y]),
            torch.tensor([least - 1]),
            torch.tensor([len(y)]),
            reduction="none",
        )
        assert math.isinf(float(short[0]))
        with pytest.raises(ValueError, match=f"needs {least} frames"):
            ctc_loss(log_probs(1, least - 1, 4), None, [y])


def test_misfits_are_counted_with_both_numbers():
    targets = [[1, 1], [1, 2], [2, 2, 2]]
    assert unfit(torch.tensor([3, 2, 4]), targets) == [(2, 5, 4)]
    assert unfit([2, 2, 5], targets) == [(0, 3, 2)]


BAD = [
    ([4, 4], [[1], []], "transcript of utterance 1 is empty; leave"),
    ([4], [[0, 1]], "runs from 0 to 1; symbols are 1 to 3"),
    ([4], [[1, 4]], "runs from 1 to 4"),
    ([4], [[1], [2]], "1 utterances and 2 transcripts"),
    (
        [4, 3, 2],
        [[1], [1, 1, 1], [1, 1]],
        r"2 of 3 .* utterance 1 needs 5 frames \(3 symbols and 2 repeats\) and has 3",
    ),
]


@pytest.mark.parametrize(("lengths", "targets", "words"), BAD)
def test_bad_transcripts_get_a_sentence(lengths, targets, words):
    with pytest.raises(ValueError, match=words):
        check_targets(lengths, targets, 3)


# -- greedy and prefix beam ---------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 1, 0, 1, 2, 2, 0], [1, 1, 2]),
        ([3, 0, 3, 3], [3, 3]),
    ],
)
def test_collapse(path, said):
    assert collapse(path) == said


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4
    ),
    st.data(),
)
def test_greedy_collapses_the_best_path_within_the_length(paths, data):
    frames = torch.nn.functional.one_hot(torch.tensor(paths), 4).float()
    lengths = [data.draw(st.integers(1, 5)) for _ in paths]
    said = greedy(frames, torch.tensor(lengths))
    assert said == [collapse(path[:T]) for path, T in zip(paths, lengths)]
    assert greedy(frames) == [collapse(path) for path in paths]


@pytest.mark.parametrize(("T", "V"), [(1, 2), (4, 2), (5, 3), (6, 2)])
def test_a_beam_that_is_wide_enough_is_the_exact_posterior(T, V):
    frames = log_probs(T, V + 1, seed=T)
    found = prefix_beam(frames, width=10_000)
    exact = posterior(frames)
    assert {tuple(y) for y, _ in found} == set(exact)
    for y, value in found:
        assert value == pytest.approx(math.log(exact[tuple(y)]), abs=1e-10)
    values = [value for _, value in found]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_narrow_beam_is_a_lower_bound_and_a_wide_one_agrees_with_the_loss(seed):
    frames = log_probs(8, 4, seed=seed)
    narrow, wide = prefix_beam(frames, 2), prefix_beam(frames, 10_000)
    assert len(narrow) == 2
    for found, exact in ((narrow, False), (wide[:50], True)):
        for y, value in found:
            if y:
                true = -float(ctc_loss(frames[None], None, [y])[0])
                assert value <= true + 1e-10
                assert not exact or value == pytest.approx(true, abs=1e-10)
    assert wide[0][1] >= narrow[0][1] - 1e-10
    assert sum(math.exp(value) for _, value in wide) == pytest.approx(1)


def test_the_beam_finds_what_the_greedy_path_misses():
    # Blank is best in both frames (0.6 * 0.6), but "1" has three alignments.
    frames = torch.tensor([[0.6, 0.4], [0.6, 0.4]], dtype=torch.float64).log()
    assert greedy(frames[None]) == [[]]
    best, value = prefix_beam(frames)[0]
    assert best == [1]
    assert value == pytest.approx(math.log(0.64))


def test_impossible_symbols_do_not_enter_the_beam():
    frames = torch.tensor([[0.5, 0.5, 0.0]] * 3, dtype=torch.float64).log()
    assert all(2 not in y for y, _ in prefix_beam(frames, 50))


def test_wrong_shapes_for_the_beam_are_named():
    with pytest.raises(ValueError, match="give one utterance"):
        prefix_beam(log_probs(1, 3, 4))
    with pytest.raises(ValueError, match="width is 0"):
        prefix_beam(log_probs(3, 4), 0)


# -- words --------------------------------------------------------------------------

WORDS = {"to": ["tu"], "two": ["tuu"], "cat": ["kat", "ket"], "a": ["a"]}
WORDS = {word: [tuple(p) for p in many] for word, many in WORDS.items()}


def spoken(words):
    """All phone sequences of some words."""
    return [sum(p, ()) for p in itertools.product(*(WORDS[word] for word in words))]


@settings(max_examples=40, deadline=None)
@given(st.text("tukaex", max_size=7))
def test_the_words_are_the_nearest_of_all_word_sequences(phones):
    heard, cost = Lexicon(WORDS).decode(list(phones))
    least = min(
        edit_distance(phones, p)
        for n in range(5)
        for words in itertools.product(WORDS, repeat=n)
        for p in spoken(words)
    )
    assert cost == least
    assert min(edit_distance(phones, p) for p in spoken(heard)) == cost


def test_exact_speech_gives_back_its_words():
    lexicon = Lexicon(WORDS)
    assert lexicon.decode(list("ketatuukat")) == (["cat", "a", "two", "cat"], 0)
    assert lexicon.decode([]) == ([], 0)
    assert lexicon.decode(["x"])[1] == 1


def test_numbers_serve_as_phones():
    assert Lexicon({"w": [(3, 4)], "v": [(5,)]}).decode([3, 4, 5, 3, 9, 4]) == (
        ["w", "v", "w"],
        1,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "lexicon is empty"),
        ({"cat": []}, "lexicon is empty"),
        ({"cat": [()]}, "give a list of phones"),
        ({"cat": ["k", "a", "t"]}, "pronunciation of 'cat' is 'k'"),
    ],
)
def test_a_bad_lexicon_gets_a_sentence(words, said):
    with pytest.raises(ValueError, match=said):
        Lexicon(words)
