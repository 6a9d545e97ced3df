"""Tests of batches: what is in them, that they repeat, and the masks."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.kit.start import ROOT
from lib.speech import shipped
from lib.speech.batches import (
    Stream,
    bucketed,
    epoch_of,
    in_order,
    padded,
    spec_augment,
)

LENGTHS = np.random.default_rng(0).integers(20, 120, 200)


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 300))
def test_every_utterance_is_in_one_batch_within_the_frames(lengths, frames):
    batches = bucketed(np.array(lengths), frames, 0, 0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= frames


def test_batches_hold_like_lengths_and_waste_little():
    batches = bucketed(LENGTHS, 1000, 0, 0)
    padding = sum(LENGTHS[b].max() * len(b) for b in batches) / LENGTHS.sum()
    assert padding < 1.2
    # In random order of length: the first are not the shortest.
    means = [LENGTHS[b].mean() for b in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.6


def test_batches_follow_from_seed_and_epoch():
    def flat(*numbers):
        return [tuple(batch) for batch in bucketed(LENGTHS, 1000, *numbers)]

    assert flat(0, 1) == flat(0, 1)
    assert len({tuple(flat(*pair)) for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_a_stream_repeats_from_any_step_and_passes_over_all():
    stream = Stream(LENGTHS, 1000, 3)
    steps = [tuple(stream.at(k)) for k in range(60)]
    late = Stream(LENGTHS, 1000, 3)
    assert tuple(late.at(59)) == steps[59]
    assert tuple(late.at(2)) == steps[2]  # backwards too
    epochs = [stream.epoch(k) for k in range(60)]
    assert epochs == sorted(epochs)
    for epoch in range(epochs[-1]):
        here = [i for k in range(60) if epochs[k] == epoch for i in steps[k]]
        assert sorted(here) == list(range(200))


def test_a_batch_is_padded_and_says_where():
    corpus = shipped("en").select(split="test")
    batch = padded(corpus, np.array([3, 0, 7]))
    assert len(batch) == 3
    assert batch.features.dtype == torch.float32
    assert batch.indices.tolist() == [3, 0, 7]
    for row, index in enumerate([3, 0, 7]):
        utterance, frames = corpus[index], int(batch.lengths[row])
        assert frames == len(utterance.features)
        np.testing.assert_array_equal(batch.features[row, :frames], utterance.features)
        assert not batch.features[row, frames:].any()
        symbols = int(batch.target_lengths[row])
        np.testing.assert_array_equal(batch.targets[row, :symbols], utterance.target)
        assert not batch.targets[row, symbols:].any()
        np.testing.assert_array_equal(
            batch.alignment[row, :frames], utterance.alignment
        )
        assert (batch.alignment[row, frames:] == -1).all()
    assert batch.to("cpu").features.shape == batch.features.shape


def test_ctc_takes_a_batch():
    corpus = shipped("zh").select(split="labelled", number=4)
    batch = padded(corpus)
    logits = torch.zeros(*batch.features.shape[:2], len(corpus.vocabulary))
    loss = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        batch.targets,
        batch.lengths,
        batch.target_lengths,
    )
    assert torch.isfinite(loss)


def test_all_utterances_once_in_order_and_in_random_order():
    corpus = shipped("fr").select(split="test")
    ordered = [i for batch in in_order(corpus, 600) for i in batch.indices]
    assert ordered == list(range(40))
    assert (
        max(b.features.shape[0] * b.features.shape[1] for b in in_order(corpus, 600))
        <= 600
    )
    mixed = [i for batch in epoch_of(corpus, 600, seed=1) for i in batch.indices]
    assert sorted(mixed) == ordered != mixed


def test_masks_hide_time_and_bands_and_leave_padding():
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(200, 60, 80)
    lengths = torch.full((200,), 50)
    hidden = spec_augment(ones, lengths, g) == 0
    assert not hidden[:, 50:].any()
    rows = hidden.all(-1)
    assert rows.any(1).all()
    spans = rows.sum(1)
    assert spans.max() <= 4  # one span of four in 50 frames
    bands = hidden[:, :50].all(1).reshape(200, 2, 40)
    assert (bands[:, 0] == bands[:, 1]).all()  # both halves of a frame alike
    widths = bands[:, 0].sum(1)
    assert set(widths.tolist()) == set(range(7))
    first = bands[:, 0].int().argmax(1)[widths > 0]
    assert first.min() < 4
    assert first.max() > 30


def test_the_share_of_hidden_frames_is_that_which_is_asked_for():
    g = torch.Generator().manual_seed(0)
    lengths = torch.full((400,), 400)
    out = spec_augment(torch.ones(400, 400, 40), lengths, g, 0.1, 4, 0)
    share = float((out == 0).all(-1).float().mean())
    assert 0.09 < share <= 0.1  # overlaps take a little


def test_masks_follow_from_the_generator_and_not_from_padding():
    x = torch.randn(3, 70, 80, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([70, 40, 55])
    wide = torch.cat([x, torch.zeros(3, 30, 80)], 1)
    one = spec_augment(x, lengths, torch.Generator().manual_seed(5), bands=0)
    two = spec_augment(wide, lengths, torch.Generator().manual_seed(5), bands=0)
    for row, length in enumerate(lengths):
        assert torch.equal(one[row, :length], two[row, :length])
    other = spec_augment(x, lengths, torch.Generator().manual_seed(6), bands=0)
    assert not torch.equal(one, other)


def test_no_masks_change_nothing():
    x = torch.randn(2, 9, 80)
    g = torch.Generator().manual_seed(0)
    assert torch.equal(spec_augment(x, torch.tensor([9, 4]), g, 0.0, 4, 0), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bucketed(LENGTHS, 0, 0, 0), "frames of a batch"),
        (lambda: bucketed(LENGTHS[:0], 9, 0, 0), "no utterances"),
        (lambda: bucketed(np.array([3, 0]), 9, 0, 0), "has no frames"),
        (lambda: Stream(LENGTHS, 9, 0).at(-1), "step is -1"),
        (lambda: padded(shipped("en"), np.array([], int)), "at least one utterance"),
        (lambda: next(in_order(shipped("en"), 0)), "frames of a batch"),
        (
            lambda: spec_augment(torch.ones(1, 9, 80), torch.tensor([9]), None, 1.0),
            "share is 1.0",
        ),
        (
            lambda: spec_augment(
                torch.ones(1, 9, 80), torch.tensor([9]), None, 0.1, 4, 41
            ),
            "bands is 41; there are 40",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_room_is_entered_without_torch():
    heavy = "[m for m in ('torch', 'scipy') if m in sys.modules]"
    code = f"import sys, lib.speech; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
