"""Log-mel features, and what is done to sound before: resampling, tilt and noise.

Only numpy is imported: a chunk of a corpus is made by a fresh process, and scipy.signal
would cost it more time than the work itself. The tests compare with scipy.

Frames: 25 ms Hann windows every 10 ms, with 10 ms of silence in front and behind;
40 mel bands of 60 to 8000 Hz; log(energy + 1e-6); pairs averaged (20 ms); zero mean and
unit variance per band and utterance; `stack` of them side by side: (frames, 80) at
40 ms for stack 2, (frames, 40) at 20 ms for stack 1, which is the same array reshaped.
"""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from lib.kit.checks import count, need

if TYPE_CHECKING:
    import torch

RATE = 16_000  # samples per second of everything downstream
WINDOW, HOP, FFT, EDGE = 400, 160, 512, 160  # samples
MELS, LOW, HIGH = 40, 60.0, 8000.0
FLOOR = 1e-6  # of energy
LARGEST = 1 << 20  # entries of a resampling matrix; odd rates are left to scipy
SHORTEST = WINDOW - 2 * EDGE + 3 * HOP  # samples that fill four windows


def _sound(audio: np.ndarray) -> np.ndarray:
    audio = np.asarray(audio)
    need(
        audio.ndim == 1,
        f"The audio has shape {audio.shape}; give one channel (samples,).",
    )
    return audio.astype(np.float32, copy=False)


@cache
def _resampler(up: int, down: int) -> tuple[np.ndarray, int]:
    """All phases of the low-pass filter as one matrix (window, up), and its reach."""
    widest = max(up, down)
    half = 10 * widest
    at = np.arange(-half, half + 1)
    taps = np.sinc(at / widest) * np.kaiser(2 * half + 1, 5.0)
    taps *= up / taps.sum()
    reach = half // up + 1  # inputs before the first that an output may need
    inputs = np.arange(-reach, down + reach + 1)
    # Output p of a block is the sum over inputs k of taps[p * down - k * up].
    lag = np.arange(up)[None, :] * down - inputs[:, None] * up
    inside = np.abs(lag) <= half
    matrix = np.where(inside, taps[np.clip(lag + half, 0, 2 * half)], 0.0)
    return matrix.astype(np.float32), reach


def resample(audio: np.ndarray, rate: int, target: int = RATE) -> np.ndarray:
    """Change the sample rate as scipy.signal.resample_poly does with its defaults.

    audio: (samples,); rate, target: samples per second. Returns
    (ceil(samples * target / rate),) float32. Raises ValueError for another shape or a
    rate that is no positive whole number.
    """
    audio = _sound(audio)
    count("The sample rate", rate)
    count("The target rate", target)
    if rate == target or not len(audio):
        return audio
    up, down = target // gcd(rate, target), rate // gcd(rate, target)
    if up * down > LARGEST:
        from scipy.signal import resample_poly

        return resample_poly(audio, up, down)
    matrix, reach = _resampler(up, down)
    length = -(-len(audio) * up // down)
    blocks = -(-length // up)
    padded = np.zeros(reach + blocks * down + len(matrix), np.float32)
    padded[reach : reach + len(audio)] = audio[: len(padded) - reach]
    rows = np.lib.stride_tricks.sliding_window_view(padded, len(matrix))
    return (rows[: blocks * down : down] @ matrix).reshape(-1)[:length]


def tilted(audio: np.ndarray, tilt: float) -> np.ndarray:
    """Tilt the spectrum by the filter [1, tilt]: below 0 brighter, above 0 duller.

    audio: (samples,); tilt: in (-1, 1). Returns (samples,) float32. Raises ValueError.
    """
    need(-1 < tilt < 1, f"The tilt is {tilt}; give a number between -1 and 1.")
    out = _sound(audio).copy()
    out[1:] += np.float32(tilt) * _sound(audio)[:-1]
    return out


def coloured(white: np.ndarray, pole: float) -> np.ndarray:
    """The one-pole filter y_t = x_t + pole * y_{t-1}, without a loop over time.

    white: (samples,); pole: in [0, 1), 0 leaves it white. Returns (samples,) float32.
    Raises ValueError. By 1 / (1 - a z) = (1 + a z)(1 + a^2 z^2)(1 + a^4 z^4) ...
    """
    need(0 <= pole < 1, f"The pole is {pole}; give a number from 0 to below 1.")
    out, lag = _sound(white).copy(), 1
    while pole > 1e-9 and lag < len(out):
        out[lag:] += np.float32(pole) * out[:-lag]  # numpy copies what overlaps
        pole, lag = pole**2, 2 * lag
    return out


def add_noise(audio: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Add noise, or a second voice, at a signal-to-noise ratio.

    audio: (samples,); noise: at least as long; snr: in dB over the whole length, inf
    for none. Returns (samples,) float32. Raises ValueError for too short noise.
    """
    audio, noise = _sound(audio), _sound(noise)
    need(
        len(noise) >= len(audio),
        f"The noise has {len(noise)} samples, the audio {len(audio)}; give as many.",
    )
    noise = noise[: len(audio)]
    loud, hiss = (float(np.mean(x**2, dtype=np.float64)) for x in (audio, noise))
    if not loud or not hiss or np.isinf(snr):
        return audio
    return audio + noise * np.float32(np.sqrt(loud / hiss) * 10 ** (-snr / 20))


@cache
def mel_filters() -> np.ndarray:
    """Triangles on the mel scale 2595 log10(1 + f / 700), (257, 40) float32."""
    edges = 2595 * np.log10(1 + np.array([LOW, HIGH]) / 700)
    points = 700 * (10 ** (np.linspace(*edges, MELS + 2) / 2595) - 1)
    at = np.arange(FFT // 2 + 1)[:, None] * RATE / FFT
    rise = (at - points[:-2]) / np.diff(points)[:-1]
    fall = (points[2:] - at) / np.diff(points)[1:]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@cache
def _window() -> np.ndarray:
    """A periodic Hann window, (400,)."""
    at = np.arange(WINDOW) / WINDOW
    return (0.5 - 0.5 * np.cos(2 * np.pi * at)).astype(np.float32)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Log-mel energies every 10 ms.

    audio: (samples,) at 16 kHz in [-1, 1]. Returns (frames, 40) float32 with
    (samples - 80) // 160 + 1 frames. Raises ValueError for another shape, less than
    four windows (35 ms), or nan.
    """
    audio = _sound(audio)
    need(
        len(audio) >= SHORTEST,
        f"The audio has {len(audio)} samples; give at least {SHORTEST} "
        f"({1000 * SHORTEST // RATE} ms at {RATE} Hz).",
    )
    need(bool(np.isfinite(audio).all()), "The audio holds nan or infinite samples.")
    padded = np.pad(audio, EDGE)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * _window(), FFT)  # float32 stays single precision
    energy = spectrum.real**2 + spectrum.imag**2
    return np.log(energy @ mel_filters() + np.float32(FLOOR))


def _stack(stack: int) -> None:
    need(stack in (1, 2), f"The stack is {stack!r}; give 2 (40 ms) or 1 (20 ms).")


def extract_features(audio: np.ndarray, rate: int = RATE, stack: int = 2) -> np.ndarray:
    """Normalised log-mel frames of one utterance, as the module's text says.

    audio: (samples,) in [-1, 1]; rate: samples per second, resampled to 16 kHz; stack:
    2 or 1. Returns (frames, 40 * stack) float32, 40 or 20 ms a frame. Raises ValueError
    for audio that is too short, has nan or more than one channel.
    """
    _stack(stack)
    mel = log_mel(resample(audio, rate))
    mel = mel[: len(mel) // 4 * 4]  # whole 40 ms, so that both stacks are one array
    pairs = mel.reshape(-1, 2, MELS).mean(axis=1)
    spread = pairs.std(axis=0)
    pairs = (pairs - pairs.mean(axis=0)) / np.maximum(spread, 1e-3)
    return pairs.reshape(-1, MELS * stack)


def batch_features(
    audio: torch.Tensor, lengths: torch.Tensor, stack: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same features for a padded batch, in torch and on its device.

    audio: (batch, samples) at 16 kHz, padded with anything; lengths: (batch,) samples;
    stack: 2 or 1. Returns (batch, frames, 40 * stack), zero where padded, and the
    number of frames (batch,). Raises ValueError for shapes or too short audio.
    """
    import torch

    _stack(stack)
    need(
        audio.ndim == 2 and lengths.shape == audio.shape[:1],
        f"The audio has shape {tuple(audio.shape)} and the lengths "
        f"{tuple(lengths.shape)}; give (batch, samples) and (batch,).",
    )
    need(
        int(lengths.min()) >= SHORTEST and int(lengths.max()) <= audio.shape[1],
        f"The lengths reach from {int(lengths.min())} to {int(lengths.max())}; give "
        f"{SHORTEST} to {audio.shape[1]} samples.",
    )
    place = audio.device
    inside = torch.arange(audio.shape[1], device=place) < lengths[:, None]
    padded = torch.nn.functional.pad(audio * inside, (EDGE, EDGE + WINDOW))
    frames = padded.unfold(1, WINDOW, HOP) * torch.from_numpy(_window()).to(place)
    energy = torch.fft.rfft(frames, FFT).abs() ** 2
    mel = torch.log(energy @ torch.from_numpy(mel_filters()).to(place) + FLOOR)
    pairs = ((lengths - (WINDOW - 2 * EDGE)) // HOP + 1) // 4 * 2
    mel = mel[:, : 2 * int(pairs.max())].unflatten(1, (-1, 2)).mean(2)
    kept = (torch.arange(mel.shape[1], device=place) < pairs[:, None])[..., None]
    number = pairs[:, None, None]
    centred = (mel - (mel * kept).sum(1, keepdim=True) / number) * kept
    spread = (centred.square().sum(1, keepdim=True) / number).sqrt()
    out = centred / spread.clamp(min=1e-3)
    return out.unflatten(1, (-1, stack)).flatten(2), pairs // stack


def frame_times(number: int, stack: int = 2) -> np.ndarray:
    """The centres of the first frames in ms: 40 t + 17.5, or 20 t + 7.5 for stack 1.

    number: of frames; stack: 2 or 1. Returns (number,). Raises ValueError.
    """
    _stack(stack)
    count("The number of frames", number, 0)
    windows = 2 * stack  # of 10 ms in a frame
    first = 1000 * (WINDOW / 2 - EDGE + (windows - 1) * HOP / 2) / RATE
    return first + 10.0 * windows * np.arange(number)


def frame_labels(
    starts: np.ndarray, labels: np.ndarray, rate: int, number: int, stack: int = 2
) -> np.ndarray:
    """The label that is heard at the centre of each frame.

    starts: (phones,) first sample of each phone, never falling; labels: (phones,) whole
    numbers, 0 for silence; rate: of those samples; number: of frames; stack: 2 or 1.
    Returns (number,) whole numbers, 0 before the first phone. Raises ValueError.
    """
    starts, labels = np.asarray(starts), np.asarray(labels)
    need(
        starts.shape == labels.shape and starts.ndim == 1,
        f"There are {starts.shape} starts and {labels.shape} labels; give as many.",
    )
    need(bool((np.diff(starts) >= 0).all()), "The starts fall; give them in order.")
    at = frame_times(number, stack) * rate / 1000
    heard = np.searchsorted(starts, at, side="right")
    return np.concatenate([[0], labels]).astype(np.int64)[heard]
