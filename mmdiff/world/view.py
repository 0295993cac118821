"""What a scene is seen in: a textured ground under moving light, before a camera that shakes; or none of these.

The one idea: the world stays what it is - positions, surfaces and impacts in its own coordinates - and a view says how
it looks: what the ground is made of, how light falls, and where the camera is. Texture and shake are short sums of
waves, so that both are smooth, exact between pixels and between frames, and a function of the scene alone. A point p of
the world is seen at p - camera. Lengths are in units of the 32-unit canvas, times in seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmdiff import noise
from mmdiff.world.things import CANVAS, Scene

Floats = NDArray[np.floating]

GRAIN = 0.1  # of full white: a textured ground lies so much above its grey, give or take as much
WAVES, LENGTHS = 8, (6.0, 16.0)  # of the texture; their wavelengths
OUTSIDE = 0.5  # of its brightness is left to what lies beyond the floor and the walls
DIM = 0.35  # of the light is missing in the darkest corner
TURN = 0.2  # turns of the light about the picture, at most, in a second
SWAYS, SWAY, HERTZ = 3, 0.3, (0.3, 1.5)  # waves of the shake along an axis; its greatest excursion; their frequencies


class View(Protocol):
    """How a scene looks."""

    def camera(self, t: Floats) -> Floats:
        """Where the camera is -> (t, 2) x, y."""

    def grain(self, x: Floats, y: Floats) -> NDArray[np.float32]:
        """What the ground deviates from its colour at the world's columns x and rows y -> (y x 1)."""

    def light(self, t: float, x: Floats, y: Floats) -> NDArray[np.float32]:
        """The share of the light that falls on the picture's columns x and rows y -> (y x 1)."""


class Plain:
    """Even ground in even light before a camera at rest."""

    def camera(self, t: Floats) -> Floats:
        return np.zeros((len(t), 2))

    def grain(self, x: Floats, y: Floats) -> NDArray[np.float32]:
        return np.zeros((1, 1, 1), np.float32)

    def light(self, t: float, x: Floats, y: Floats) -> NDArray[np.float32]:
        return np.ones((1, 1, 1), np.float32)


@dataclass(frozen=True)
class Live:
    """Waves of texture (n, 4: wave vector x, y, phase, weight) and shake (2 axes, n, 3: hertz, phase, weight); lamp."""

    ground: float  # its grey
    texture: Floats
    shake: Floats
    lamp: tuple[float, float]  # its direction in turns at t = 0, and turns a second

    def camera(self, t: Floats) -> Floats:
        hertz, phase, weight = np.moveaxis(self.shake[..., None, :], -1, 0)  # 2 n 1
        return (weight * np.sin(2 * np.pi * (hertz * t + phase))).sum(axis=1).T  # t 2

    def grain(self, x: Floats, y: Floats) -> NDArray[np.float32]:
        across, down, phase, weight = self.texture.T[..., None]  # n 1
        u, v = across * x + phase, down * y  # n x, n y
        waves = np.cos(v).T @ (weight * np.sin(u)) + np.sin(v).T @ (weight * np.cos(u))  # y x: sin(u + v)
        inside = _inside(y)[:, None] * _inside(x)
        seen = (self.ground + GRAIN + waves) * (OUTSIDE + (1 - OUTSIDE) * inside) - self.ground
        return seen[..., None].astype(np.float32)  # y x 1

    def light(self, t: float, x: Floats, y: Floats) -> NDArray[np.float32]:
        angle = 2 * np.pi * (self.lamp[0] + self.lamp[1] * t)
        far = np.cos(angle) * (x / CANVAS - 0.5) + np.sin(angle) * (y / CANVAS - 0.5)[:, None]  # y x
        return (1 - DIM * (0.5 + far / np.sqrt(2)))[..., None].astype(np.float32)


def _inside(x: Floats) -> Floats:
    """The share of each pixel about x, evenly spaced, that lies between floor and top, or between the walls."""
    pixel = x[1] - x[0]
    return np.clip(np.minimum(x, CANVAS - x) / pixel + 0.5, 0, 1)  # type: ignore[no-any-return]


def view_of(scene: Scene, kind: str) -> View:
    """The view of a tier upon a scene: "plain", or "live", drawn from the scene."""
    return Plain() if kind == "plain" else _live(scene)


def _live(scene: Scene) -> Live:
    rng = noise.rng(noise.key("view", json.dumps(scene.to_json())))
    angle, length = rng.uniform(0, 2 * np.pi, WAVES), rng.uniform(*LENGTHS, WAVES)
    vectors = 2 * np.pi / length * np.stack([np.cos(angle), np.sin(angle)])  # 2 n
    texture = np.stack([*vectors, rng.uniform(0, 2 * np.pi, WAVES), _weights(rng, (WAVES,), GRAIN)], axis=1)
    sways = (rng.uniform(*HERTZ, (2, SWAYS)), rng.uniform(0, 1, (2, SWAYS)), _weights(rng, (2, SWAYS), SWAY))
    lamp = (float(rng.uniform(0, 1)), float(rng.uniform(-TURN, TURN)))
    return Live(float(np.mean(scene.background)), texture, np.stack(sways, axis=-1), lamp)


def _weights(rng: np.random.Generator, shape: tuple[int, ...], most: float) -> Floats:
    """Positive weights whose sum along the last axis is `most`."""
    drawn = rng.uniform(0.5, 1, shape)
    return np.asarray(most * drawn / drawn.sum(axis=-1, keepdims=True))
