"""Audio players that can be checked: sound for the ear, a digest for nbval."""

from __future__ import annotations

import base64
import html
import io
import wave

import numpy as np

from lib.kit.claims import floats, number
from lib.kit.figures import _summary


def audio(samples: np.ndarray, rate: float, alt: str) -> None:
    """Display a player for mono sound with its description and digest.

    samples: (length,) floats in [-1, 1]; louder sound is scaled down. rate: samples
    per second. alt: what is heard. Raises ValueError for another shape, nan, a rate
    that is no positive number, or no description.
    """
    from IPython.display import display

    if not alt.strip():
        raise ValueError("audio needs an alt text: say in a few words what is heard.")
    if not 1 <= rate < 2**31:
        raise ValueError(f"audio was given the rate {rate!r}: give samples per second.")
    rate = int(round(rate, 0))
    samples = floats(samples)
    if samples.ndim != 1 or not samples.size:
        raise ValueError(
            f"audio takes mono sound of shape (length,), not {samples.shape}: pass one "
            "channel."
        )
    if not np.isfinite(samples).all():
        raise ValueError(
            "audio was given nan or infinite samples: check what made them."
        )
    peak = np.abs(samples).max()
    pcm = np.round(samples / max(peak, 1.0) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm.tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    rms = float(np.sqrt(np.mean(samples**2)))
    text = (
        f"Audio: {alt}\n{number(samples.size / rate)} s at {rate} Hz, "
        f"rms {number(rms)}, {_summary(samples, points=9)}"
    )
    player = (
        f'<figure><audio controls aria-label="{html.escape(alt)}" '
        f'src="data:audio/wav;base64,{data}"></audio>'
        f"<figcaption>{html.escape(alt)}</figcaption></figure>"
    )
    display({"text/html": player, "text/plain": text}, raw=True)
