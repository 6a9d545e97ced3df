"""Tests of the features, against scipy and against loops that say what is meant."""

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.speech.features import (
    add_noise,
    batch_features,
    coloured,
    extract_features,
    frame_labels,
    frame_times,
    log_mel,
    mel_filters,
    resample,
    tilted,
)


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32) / 10


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]),
    st.integers(1, 3000),
)
def test_resampling_is_scipys(rate, length):
    sound = noise(length)
    common = np.gcd(rate, 16_000)
    up, down = 16_000 // common, rate // common
    expected = scipy.signal.resample_poly(sound.astype(float), up, down)
    mine = resample(sound, rate)
    assert mine.dtype == np.float32
    assert mine.shape == expected.shape
    np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_an_odd_rate_is_left_to_scipy_itself():
    sound = noise(5000)
    expected = scipy.signal.resample_poly(sound, 16_000, 22_051)
    np.testing.assert_array_equal(resample(sound, 22_051), expected)


def test_resampling_keeps_a_tone_and_its_level():
    at = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * at)
    heard = resample(tone, 44_100)[1000:-1000]
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)[1000:-1000]
    np.testing.assert_allclose(heard, expected, atol=2e-3)


@pytest.mark.parametrize("pole", [0.0, 0.3, 0.95, 0.999])
def test_coloured_noise_is_the_one_pole_filter(pole):
    white = noise(4321)
    expected = scipy.signal.lfilter([1], [1, -pole], white.astype(float))
    np.testing.assert_allclose(coloured(white, pole), expected, atol=1e-4)


def test_the_tilt_is_a_filter_of_two_taps():
    sound = noise(100)
    expected = scipy.signal.lfilter([1, -0.4], [1], sound.astype(float))
    np.testing.assert_allclose(tilted(sound, -0.4), expected, atol=1e-6)
    np.testing.assert_array_equal(tilted(sound, 0.0), sound)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_is_added_at_its_ratio(snr):
    sound, hiss = noise(9000, 1), 7 * noise(9999, 2)
    added = (add_noise(sound, hiss, snr) - sound).astype(float)
    ratio = np.mean(sound.astype(float) ** 2) / np.mean(added**2)
    assert 10 * np.log10(ratio) == pytest.approx(snr, abs=1e-3)
    np.testing.assert_array_equal(add_noise(sound, hiss, np.inf), sound)


def test_silence_gets_no_noise():
    assert not add_noise(np.zeros(9), noise(9), 10.0).any()


def test_mel_filters_are_triangles_between_their_neighbours():
    points = 700 * (
        10
        ** (np.linspace(*(2595 * np.log10(1 + np.array([60, 8000]) / 700)), 42) / 2595)
        - 1
    )
    expected = np.zeros((257, 40))
    for band in range(40):
        low, peak, high = points[band : band + 3]
        for k in range(257):
            f = 31.25 * k
            if low < f <= peak:
                expected[k, band] = (f - low) / (peak - low)
            elif peak < f < high:
                expected[k, band] = (high - f) / (high - peak)
    np.testing.assert_allclose(mel_filters(), expected, atol=1e-6)
    assert (mel_filters().sum(axis=0) > 0).all()  # no band is empty


def test_log_mel_is_the_definition():
    sound = noise(4000).astype(float)
    padded = np.concatenate([np.zeros(160), sound, np.zeros(160)])
    window = scipy.signal.get_window("hann", 400)
    rows = []
    for start in range(0, len(padded) - 399, 160):
        spectrum = np.fft.rfft(padded[start : start + 400] * window, 512)
        rows.append(np.log(np.abs(spectrum) ** 2 @ mel_filters() + 1e-6))
    assert len(rows) == (4000 - 80) // 160 + 1
    np.testing.assert_allclose(log_mel(sound), rows, atol=1e-4)


def test_features_are_normalised_pairs_side_by_side():
    sound = noise(16_000 * 2 + 77)
    found = extract_features(sound)
    mel = log_mel(sound)
    assert found.dtype == np.float32
    assert found.shape == (len(mel) // 4, 80)
    pairs = mel[: 4 * len(found)].reshape(-1, 2, 40).mean(1)
    expected = (pairs - pairs.mean(0)) / pairs.std(0)
    np.testing.assert_allclose(found.reshape(-1, 40), expected, atol=1e-4)
    both = found.reshape(-1, 40)
    np.testing.assert_allclose(both.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(both.std(0), 1, atol=1e-4)
    np.testing.assert_array_equal(extract_features(sound, stack=1), both)


def test_loudness_is_forgotten():
    sound = noise(20_000)
    np.testing.assert_allclose(
        extract_features(sound), extract_features(3 * sound), atol=1e-3
    )


def test_silence_has_finite_features():
    assert np.isfinite(extract_features(np.zeros(8000))).all()


def test_a_batch_in_torch_gives_the_same_features_and_ignores_padding():
    sounds = [noise(20_000, 1), noise(12_345, 2), noise(560, 3)]
    lengths = torch.tensor([len(sound) for sound in sounds])
    audio = torch.full((3, 21_000), 9.0)
    for row, sound in zip(audio, sounds):
        row[: len(sound)] = torch.from_numpy(sound)
    for stack in (1, 2):
        found, frames = batch_features(audio, lengths, stack)
        for row, number, sound in zip(found, frames.tolist(), sounds):
            expected = extract_features(sound, stack=stack)
            assert number == len(expected)
            np.testing.assert_allclose(row[:number], expected, atol=1e-3)
            assert not row[number:].any()


def test_frames_are_labelled_at_their_centres():
    np.testing.assert_allclose(frame_times(3), [17.5, 57.5, 97.5])
    np.testing.assert_allclose(frame_times(3, stack=1), [7.5, 27.5, 47.5])
    # At 1000 samples a second a sample is a millisecond.
    starts, labels = np.array([5, 40, 58, 58]), np.array([3, 0, 2, 7])
    np.testing.assert_array_equal(frame_labels(starts, labels, 1000, 4), [3, 0, 7, 7])
    early = frame_labels(starts, labels, 1000, 3, stack=1)
    np.testing.assert_array_equal(early, [3, 3, 0])
    late = frame_labels(np.array([20]), np.array([4]), 1000, 2)
    np.testing.assert_array_equal(late, [0, 4])  # silence before the first phone


def test_a_click_lies_in_the_frame_that_its_time_says():
    for at in (100.0, 257.5, 733.0):  # ms
        sound = np.zeros(16_000)
        sound[int(at * 16)] = 1.0
        energy = log_mel(sound)[:96].reshape(24, 4, 40).mean((1, 2))
        heard = frame_times(24)[energy.argmax()]
        assert abs(heard - at) <= 20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resample(np.zeros((2, 9)), 8000), "one channel"),
        (lambda: resample(np.zeros(9), 0), "sample rate is 0"),
        (lambda: resample(np.zeros(9), 22_050.5), "whole number"),
        (lambda: tilted(np.zeros(9), 1.5), "tilt is 1.5"),
        (lambda: coloured(np.zeros(9), 1.0), "pole is 1.0"),
        (lambda: add_noise(np.zeros(9), np.zeros(8), 9), "noise has 8 samples"),
        (lambda: log_mel(np.zeros(500)), r"500 samples; give at least 560 \(35 ms"),
        (lambda: log_mel(np.full(600, np.nan)), "nan or infinite"),
        (lambda: extract_features(np.zeros(600), stack=3), "stack is 3"),
        (lambda: frame_times(-1), "number of frames"),
        (lambda: frame_labels(np.array([2, 1]), np.array([1, 1]), 9, 3), "starts fall"),
        (lambda: frame_labels(np.array([2]), np.array([1, 1]), 9, 3), "as many"),
        (
            lambda: batch_features(torch.zeros(2, 900), torch.tensor([900])),
            r"give \(batch, samples\)",
        ),
        (
            lambda: batch_features(torch.zeros(1, 900), torch.tensor([901])),
            "give 560 to 900",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
