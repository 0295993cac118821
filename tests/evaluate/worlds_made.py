"""Clips of the world with their captions, and clips as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmdiff.data import media
from mmdiff.metrics.score import Clip
from mmdiff.world.clip import make_clip
from mmdiff.world.things import TIERS

TIER = TIERS["cpu"]


def save(folder: Path, name: str, clip: Clip) -> None:
    """A clip as mp4 and wav."""
    video, audio, fps, rate = clip
    media.write_clip(folder / f"{name}.mp4", torch.from_numpy(np.array(video)), fps=fps)
    media.write_wav(folder / f"{name}.wav", torch.from_numpy(np.array(audio))[None], rate=rate)


def worlds(split: str, number: int) -> list[tuple[Clip, str]]:
    """Clips of the world and the caption that states all of each."""
    made = [make_clip(seed=2, index=i, split=split, tier=TIER) for i in range(number)]
    return [((one.video, one.audio, TIER.fps, TIER.rate), one.captions[0].text) for one in made]
