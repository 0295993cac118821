"""The reader of sound: samples back to onset times and to what was struck.

The one idea: an impact is a sudden rise of log energy in some bands, whatever rings on in others, so onsets are peaks
of the half-wave rectified difference of a log-band spectrogram (spectral flux, Bello et al., "A tutorial on onset
detection in music signals", 2005), placed between hops by a parabola. Every function takes any samples and never fails:
silence, noise and NaN give an answer (usually the empty one). Sample n is at n / rate seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmdiff import noise
from mmdiff.world.sound import PITCH, VOICES

Floats = NDArray[np.float64]

HOP, WINDOW, BANDS = 0.004, 0.032, 12  # s, s, log-spaced bands
FLOOR_DB = 40.0  # below the loudest moment of a band nothing is heard
ABSOLUTE_DB = -75.0  # of full scale: digital near-silence has no onsets
RISE, RISE_DB, APART = 0.012, 2.5, 0.060  # s, mean rise over bands in dB, s between onsets
GAIN, WEAK_DB = (
    0.040,
    18.0,
)  # s over which a stroke gains power; one that gains this much less than the strongest is none
RESTLESS = 1.6  # of the median rise, which is that of a bed of noise: a stroke must stand out from it
LATE = 0.0048  # s, added to the steepest rise: measured on our strikes
LISTEN = 30  # hops after an onset that tell its timbre


def mono(audio: ArrayLike) -> Floats:
    """Any samples ((n,), (1, n) or (c, n), float or int16) -> (n,) float64, finite, int16 scaled to [-1, 1]."""
    raw = np.asarray(audio)
    x = raw.astype(np.float64) / (32768.0 if raw.dtype == np.int16 else 1.0)
    x = x.mean(axis=0) if x.ndim > 1 else x.reshape(-1)
    return np.clip(np.nan_to_num(x, nan=0.0, posinf=1.0, neginf=-1.0), -8.0, 8.0)


@lru_cache(maxsize=8)
def _bands(rate: int, width: int) -> Floats:
    """Log-spaced bands from 120 Hz to Nyquist, each the mean of its bins -> (width // 2 + 1, BANDS) weights."""
    frequency = np.fft.rfftfreq(width, 1.0 / rate)
    edges = np.geomspace(120.0, rate / 2 + 1.0, BANDS + 1)
    index = np.searchsorted(edges, frequency, side="right") - 1
    weights = (index[:, None] == np.arange(BANDS)).astype(np.float64)
    return weights / np.maximum(weights.sum(axis=0), 1.0)


def seconds_a_hop(rate: int) -> float:
    """A hop is a whole number of samples: at 44.1 kHz 176 of them, and 5 s of 4 ms would be 11 ms late."""
    return max(1, round(HOP * rate)) / rate


def spectrogram(audio: ArrayLike, rate: int) -> Floats:
    """Hann power spectrogram, frame j centred on sample j * hop, full-scale sine about 0 dB -> (frames, bins)."""
    hop, width = max(1, round(HOP * rate)), max(8, round(WINDOW * rate))
    x = np.pad(mono(audio), width // 2)  # n + width
    frames = np.lib.stride_tricks.sliding_window_view(x, width)[::hop]  # frames width
    window = np.hanning(width + 1)[:-1]
    return np.abs(np.fft.rfft(frames * window, axis=1) * (2.0 / window.sum())) ** 2  # frames bins


def loudness(audio: ArrayLike, rate: int) -> Floats:
    """Power in log-spaced bands -> (frames, bands); bands that hold no bin at a low rate are left out."""
    weights = _bands(rate, max(8, round(WINDOW * rate)))
    return spectrogram(audio, rate) @ weights[:, weights.sum(axis=0) > 0]


def novelty(power: Floats) -> Floats:
    """Mean rise over the bands in dB during the `RISE` seconds around each hop: (frames, bands) -> (frames,)."""
    level = 10.0 * np.log10(power + 1e-20)
    level = np.maximum(level, max(level.max(initial=-200.0) - FLOOR_DB, ABSOLUTE_DB))
    return np.maximum(_step(level, round(RISE / HOP)), 0.0).mean(axis=1)


def _step(curve: Floats, lag: int) -> Floats:
    """What is gained during `lag` rows around each row, the ends repeated -> the shape of `curve`."""
    wide = np.pad(curve, ((lag // 2 + lag % 2, lag // 2), (0, 0)), mode="edge")
    return wide[lag:] - wide[: len(wide) - lag]


def _peaks(curve: Floats, *, height: float, apart: int) -> list[int]:
    """Indices of local maxima of at least `height`, highest first kept when closer than `apart`, in order of time."""
    padded = np.pad(curve, 1, constant_values=-np.inf)
    top = np.flatnonzero((curve >= height) & (padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]))
    kept: list[int] = []
    for index in top[np.argsort(-curve[top], kind="stable")]:
        if all(abs(int(index) - other) >= apart for other in kept):
            kept.append(int(index))
    return sorted(kept)


def read_onsets(audio: ArrayLike, rate: int) -> list[float]:
    """Times in seconds at which something is struck; [] for silence and for what is too short to have a beginning."""
    power = loudness(audio, rate)
    rise, times = novelty(power), []
    force = np.maximum(_step(power, round(GAIN / HOP)), 0.0).sum(axis=1)
    found = _peaks(rise, height=RISE_DB + RESTLESS * float(np.median(rise)), apart=round(APART / HOP))
    weakest = max(force[found], default=0.0) * 10 ** (-WEAK_DB / 10)
    for index in [i for i in found if force[i] >= weakest]:
        left, top, right = (float(rise[i]) if 0 <= i < len(rise) else 0.0 for i in (index - 1, index, index + 1))
        bend = left - 2 * top + right
        shift = float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0
        times.append(max(0.0, (index + shift) * seconds_a_hop(rate) + LATE))
    return times


@dataclass(frozen=True)
class Strike:
    """One sound: when it begins in seconds, of which timbre it is and the size that its pitch tells."""

    t: float
    timbre: str
    size: str


def read_strikes(audio: ArrayLike, rate: int) -> list[Strike]:
    """Every onset of a clip with its timbre and size, in order of time."""
    onsets = read_onsets(audio, rate)
    spectrum = spectrogram(audio, rate) if onsets else np.zeros((0, 0))
    ends = [*onsets[1:], np.inf][: len(onsets)]
    return [Strike(t, *_identify(spectrum, rate, t, end)) for t, end in zip(onsets, ends, strict=True)]


def read_timbre(audio: ArrayLike, rate: int, t: float) -> tuple[str, str]:
    """(timbre, size) of the sound that begins at `t` seconds: the voice whose spectrogram is most like it."""
    later = [other for other in read_onsets(audio, rate) if other > t + APART / 2]
    return _identify(spectrogram(audio, rate), rate, t, min(later, default=np.inf))


def _identify(spectrum: Floats, rate: int, t: float, end: float) -> tuple[str, str]:
    """The most similar voice from the onset on, up to the next one, less what rang before."""
    hop = seconds_a_hop(rate)
    first = round(t / hop)
    stop = min(first + LISTEN, len(spectrum), max(first + 6, round(min(end, 1e6) / hop) - 3))
    heard = spectrum[first:stop]
    before = spectrum[max(0, first - 8) : max(0, first - 4)]
    heard = np.maximum(heard - (before.mean(axis=0) if len(before) else 0.0), 0.0)
    mine = _tones(heard, rate)
    scores = {}
    for name, template in voices(rate).items():
        theirs = template[: len(mine)]
        scores[name] = float((mine * theirs).sum() / (np.linalg.norm(mine) * np.linalg.norm(theirs) + 1e-12))
    return max(scores, key=lambda name: scores[name])


def _tones(power: Floats, rate: int) -> Floats:
    """Root magnitudes of power (frames, bins), which gives soft partials and late decay a say."""
    return power**0.25


@lru_cache(maxsize=8)
def voices(rate: int) -> dict[tuple[str, str], Floats]:
    """Spectrogram of every (timbre, size), struck at frame 0 -> {(timbre, size): (LISTEN, bins)}."""
    hop, ahead = max(1, round(HOP * rate)), 10
    since = np.arange(-ahead * hop, (LISTEN + ahead) * hop) / rate
    bank = {}
    for timbre, voice in VOICES.items():
        for size, pitch in PITCH.items():
            tones = [
                w * np.sin(2 * np.pi * voice.hertz * pitch * r * since)
                for r, w in zip(voice.ratios, voice.weights, strict=True)
            ]
            hiss = voice.burst * noise.rng(noise.key("hiss", rate)).uniform(-1, 1, len(since)) * np.exp(-since / 0.01)
            sound = np.where(since >= 0, (sum(tones) + hiss) * np.exp(-since / voice.decay), 0.0)
            bank[timbre, size] = _tones(spectrogram(sound, rate)[ahead : ahead + LISTEN], rate)
    return bank
