"""Tests of kit.audio: a player that holds the sound, and a digest of it."""

import base64
import io
import re
import wave
from typing import Any

import numpy as np
import pytest
import torch

from lib.kit.audio import audio

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    calls: list[dict[str, str]] = []
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, raw: calls.append(bundle)
    )
    return calls


def decoded(page: str) -> tuple[int, np.ndarray]:
    """Rate and samples of the WAV file inside a player."""
    data = re.search(r'src="data:audio/wav;base64,([^"]+)"', page)
    with wave.open(io.BytesIO(base64.b64decode(data[1]))) as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        return sound.getframerate(), pcm / 32767


@pytest.mark.parametrize("rate", [16000, 16000.0, np.int64(16000)])
def test_the_player_holds_the_sound(shown: list[dict[str, str]], rate: Any):
    audio(TONE, rate, "a tone")
    rate, samples = decoded(shown[0]["text/html"])
    assert rate == 16000
    np.testing.assert_allclose(samples, TONE, atol=1 / 32767)


def test_loud_sound_is_scaled_down_and_quiet_sound_stays(shown: list[dict[str, str]]):
    audio(6 * TONE, 16000, "loud")
    audio(TONE / 50, 16000, "quiet")
    loud, quiet = (decoded(bundle["text/html"])[1] for bundle in shown)
    assert np.abs(loud).max() == 1.0
    np.testing.assert_allclose(loud, TONE / np.abs(TONE).max(), atol=1 / 32767)
    np.testing.assert_allclose(quiet, TONE / 50, atol=1 / 32767)


def test_digest(shown: list[dict[str, str]]):
    audio(np.linspace(-0.5, 0.5, 8001), 16000, "a ramp")
    assert shown[0]["text/plain"].splitlines() == [
        "Audio: a ramp",
        "0.5001 s at 16000 Hz, rms 0.2887, n=8001 min=-0.5000 max=0.5000 mean=0.000 "
        "at=[-0.5000 -0.3750 -0.2500 -0.1250 0.000 0.1250 0.2500 0.3750 0.5000]",
    ]


def test_another_sound_has_another_digest(shown: list[dict[str, str]]):
    for sound in (TONE, TONE[::-1], TONE * 1.01, TONE[:-1]):
        audio(sound, 16000, "a tone")
    assert len({bundle["text/plain"] for bundle in shown}) == 4


def test_a_tensor_and_silence(shown: list[dict[str, str]]):
    audio(torch.zeros(160, requires_grad=True), 16000, "silence")
    assert decoded(shown[0]["text/html"])[1].tolist() == [0.0] * 160
    assert "rms 0.000, n=160 min=0.000" in shown[0]["text/plain"]


def test_the_description_is_escaped(shown: list[dict[str, str]]):
    audio(TONE, 16000, 'a "tone" <loud>')
    assert 'aria-label="a &quot;tone&quot; &lt;loud&gt;"' in shown[0]["text/html"]
    assert "<figcaption>a &quot;tone&quot; &lt;loud&gt;<" in shown[0]["text/html"]


@pytest.mark.parametrize(
    ("samples", "rate", "alt", "sentence"),
    [
        (np.zeros((2, 100)), 16000, "x", r"takes mono sound .* not \(2, 100\)"),
        (np.zeros(0), 16000, "x", r"takes mono sound .* not \(0,\)"),
        (np.array([0.0, np.nan]), 16000, "x", "given nan or infinite samples"),
        (np.array([0.0, np.inf]), 16000, "x", "given nan or infinite samples"),
        (TONE, 0, "x", "given the rate 0: give samples per second"),
        (TONE, float("nan"), "x", "given the rate nan"),
        (TONE, 16000, " ", "audio needs an alt text"),
    ],
)
def test_refusals(
    shown: list[dict[str, str]], samples: Any, rate: Any, alt: str, sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        audio(samples, rate, alt)
    assert shown == []
