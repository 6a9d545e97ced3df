"""Masks and generators: rates in closed form, padding, repeatability, bad input."""

import pytest
import torch

from lib.speech.masking import (
    generator,
    masked_fraction,
    seeded,
    span_mask,
    unmasked_probability,
    with_embedding,
    with_noise,
)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("p", "span", "T", "inside", "whole", "none"),
    [
        (0.08, 6, 66, 0.394, 0.380, None),
        (0.04, 10, 66, 0.335, 0.314, 0.068),
        (0.01, 40, 264, 0.331, 0.308, 0.070),
    ],
)
def test_the_masked_fraction_is_the_closed_form(p, span, T, inside, whole, none):
    assert masked_fraction(p, span) == pytest.approx(inside, abs=6e-4)
    assert masked_fraction(p, span, T) == pytest.approx(whole, abs=6e-4)
    masks = span_mask(torch.full((8000,), T), p, span, g())
    assert float(masks.float().mean()) == pytest.approx(whole, abs=6e-3)
    if none:
        assert unmasked_probability(p, T) == pytest.approx(none, abs=6e-4)
        missing = (~masks.any(1)).float().mean()
        assert float(missing) == pytest.approx(none, abs=0.012)


def test_a_mask_is_the_union_of_the_spans():
    lengths = torch.tensor([30, 17])
    starts = torch.rand(47, generator=g(3)) < 0.2
    masks, first = span_mask(lengths, 0.2, 4, g(3)), 0
    for row, n in zip(masks, lengths.tolist()):
        own, expected = starts[first : first + n], torch.zeros(30, dtype=torch.bool)
        for t in own.nonzero()[:, 0].tolist():
            expected[t : min(t + 4, n)] = True
        assert torch.equal(row, expected)
        first += n


def test_masks_differ_within_a_batch_and_spare_the_padding():
    masks = span_mask(torch.tensor([40, 40, 12]), 0.2, 5, g(), T=50)
    assert masks.shape == (3, 50)
    assert not torch.equal(masks[0], masks[1])
    assert not masks[2, 12:].any()
    assert not masks[:, 40:].any()


def test_longer_padding_changes_neither_mask_nor_noise():
    lengths, x = torch.tensor([20, 13]), torch.zeros(2, 20, 3)
    a, b = g(1), g(1)
    short = span_mask(lengths, 0.2, 4, a)
    long = span_mask(lengths, 0.2, 4, b, T=31)
    assert torch.equal(short, long[:, :20])
    padded = torch.nn.functional.pad(x, (0, 0, 0, 11))
    noisy = with_noise(padded, long, b)[:, :20]
    assert torch.equal(with_noise(x, short, a), noisy)


@pytest.mark.parametrize(("p", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_of_p(p, share):
    assert float(span_mask(torch.tensor([9]), p, 3, g()).float().mean()) == share


def test_noise_stands_only_where_the_mask_is_and_x_is_not_changed():
    x, mask = torch.ones(2, 500, 8), span_mask(torch.tensor([500, 300]), 0.1, 5, g())
    y = with_noise(x, mask, g(2))
    assert torch.equal(y[~mask], x[~mask])
    assert bool((x == 1).all())
    assert float(y[mask].std()) == pytest.approx(0.1, rel=0.05)
    assert abs(float(y[mask].mean())) < 0.01


def test_a_learned_vector_gets_the_gradient_of_the_masked_frames():
    x, mask = torch.zeros(1, 4, 2), torch.tensor([[True, False, True, False]])
    vector = torch.tensor([1.0, 2.0], requires_grad=True)
    y = with_embedding(x, mask, vector)
    assert y[0].tolist() == [[1, 2], [0, 0], [1, 2], [0, 0]]
    y.sum().backward()
    assert vector.grad.tolist() == [2, 2]


def test_generators_of_one_purpose_repeat_and_differ_from_others():
    draws = [
        torch.rand(4, generator=generator(*numbers))
        for numbers in ((1, 2), (1, 2), (2, 1), (1, 2, "mask"), (1, 2, "noise"))
    ]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(d.tolist()) for d in draws}) == 4


def test_global_draws_inside_follow_the_numbers_and_leave_no_trace_outside():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(5, "a") as own:
        inside = torch.rand(2), torch.rand(2, generator=own)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    with seeded(5, "a") as own:
        assert torch.equal(torch.rand(2), inside[0])
        assert torch.equal(torch.rand(2, generator=own), inside[1])
    assert not torch.equal(*inside)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: span_mask(torch.tensor([4]), 1.5, 2, g()), "p is 1.5"),
        (lambda: span_mask(torch.tensor([4]), 0.5, 0, g()), "span is 0"),
        (lambda: span_mask(torch.tensor([4, 0]), 0.5, 2, g()), "lengths run from 0"),
        (lambda: span_mask(torch.tensor([4]), 0.5, 2, g(), T=3), "batch holds 3"),
        (
            lambda: with_noise(torch.ones(1, 3, 2), torch.ones(1, 2).bool(), g()),
            "one mask entry a frame",
        ),
        (lambda: masked_fraction(0.1, 4, 0), "T is 0"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
