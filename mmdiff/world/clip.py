"""One call from a seed to a finished clip of the sounding world: scene, picture, sound, captions and events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmdiff import noise
from mmdiff.world.caption import Caption, captions
from mmdiff.world.render import render
from mmdiff.world.scene import Event, Scene, Tier, events, sample_scene
from mmdiff.world.sound import synthesize
from mmdiff.world.view import view_of

WORDING = {"val": "val", "para": "para"}  # split -> templates; every other split speaks like train


@dataclass(frozen=True)
class Clip:
    """A scene with its media: video (t h w 3) uint8, audio (n,) float32, captions with stated facts, exact events.

    camera: (t 2) x, y of the camera at each frame, in canvas units; a point p of the world is seen at p - camera.
    """

    scene: Scene
    tier: Tier
    video: NDArray[np.uint8]
    audio: NDArray[np.float32]
    captions: list[Caption]
    events: list[Event]
    camera: NDArray[np.floating]


def make_clip(*, seed: int, index: int, split: str, tier: Tier, binding: str = "by_shape") -> Clip:
    """Clip number `index` of a split: a pure function of its arguments. An unknown split or binding is a UserError."""
    scene = sample_scene(seed=seed, index=index, split=split, tier=tier, binding=binding)
    k = noise.key(seed, "captions", split, tier.name, binding, index)
    said = captions(scene, seconds=tier.seconds, key=k, template_split=WORDING.get(split, "train"))
    camera = view_of(scene, tier.view).camera((np.arange(tier.frames) + 0.5) / tier.fps)
    return Clip(scene, tier, render(scene, tier), synthesize(scene, tier), said, events(scene, tier.seconds), camera)
