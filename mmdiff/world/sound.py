"""Sounds of a scene: every impact strikes a small bank of decaying sines at its exact time, between samples.

The one idea is modal synthesis (van den Doel, Kry and Pai, "FoleyAutomatic", SIGGRAPH 2001): a timbre is a list of
frequency ratios with one decay, plus a burst of noise; size sets the pitch and the speed of the impact the gain.
All clips share one gain, so that silence stays silent and loudness carries information.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmdiff import noise
from mmdiff.world.physics import events
from mmdiff.world.things import Event, Object, Scene, Tier

GAIN = 0.36  # nine bells 80 ms apart still peak below 1
ATTACK = 0.002  # seconds
FULL_SPEED = 80.0  # units / s at a clip of 2 s, from where on the gain does not grow
PITCH = {"small": 1.25, "large": 0.75}


@dataclass(frozen=True)
class Voice:
    """Frequency of the lowest partial in Hz, ratios, amplitudes that sum to 1 - `burst`, decay in s, share of noise."""

    hertz: float
    ratios: tuple[float, ...]
    weights: tuple[float, ...]
    decay: float
    burst: float


VOICES = {
    "bell": Voice(520.0, (1.0, 2.76, 5.4), (0.5, 0.3, 0.18), 0.16, 0.02),
    "wood": Voice(400.0, (1.0, 1.58, 2.24), (0.4, 0.2, 0.1), 0.035, 0.3),
    "click": Voice(1000.0, (1.0, 2.0, 3.0), (0.4, 0.3, 0.25), 0.07, 0.05),
}


def synthesize(scene: Scene, tier: Tier) -> NDArray[np.float32]:
    """The clip's sound -> (n,) float32 with peak below 1; sample i is heard at i / rate seconds."""
    sound = np.zeros(tier.samples)
    for event in events(scene, tier.seconds):
        _strike(sound, scene.objects[event.object], event, tier)
    return sound.astype(np.float32)


def _strike(sound: NDArray[np.float64], thing: Object, event: Event, tier: Tier) -> None:
    voice, rate = VOICES[thing.timbre], tier.rate
    first = int(np.ceil(event.t * rate))
    last = min(len(sound), first + int(8 * voice.decay * rate))
    since = np.arange(first, last) / rate - event.t  # (n,) seconds after the impact, exact between samples
    envelope = np.minimum(since / ATTACK, 1) * np.exp(-since / voice.decay)
    waves = voice.burst * _burst(rate)[: len(since)] * np.exp(-since / 0.01)
    for ratio, weight in zip(voice.ratios, voice.weights, strict=True):
        waves += weight * np.sin(2 * np.pi * voice.hertz * PITCH[thing.size] * ratio * since)
    strength = min(event.speed * tier.seconds / 2 / FULL_SPEED, 1.0)
    sound[first:last] += GAIN * (0.4 + 0.6 * strength) * envelope * waves


@lru_cache(maxsize=8)
def _burst(rate: int) -> NDArray[np.float64]:
    return noise.rng(noise.key("burst", rate)).uniform(-1, 1, size=2 * rate)
