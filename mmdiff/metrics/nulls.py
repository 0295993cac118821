"""Null models: ways to cheat that a table of results must show failing beside the model.

The one idea: each is a plain function from real clips and their captions to clips that lack exactly one virtue (sync,
sound, motion, attention to the caption, novelty), so that a metric that does not drop on its row measures nothing. A
clip is (video (t h w 3) uint8, audio (n,) float32 in [-1, 1], fps, rate), as in `score.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from mmdiff import noise as draws
from mmdiff.errors import UserError
from mmdiff.metrics.score import Clip, pairings

SPAM_SECONDS = 0.1  # between the clicks of `onset_spam`


def shuffled(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """Every picture with the sound of another clip: right objects, wrong times. Needs two clips of one length."""
    others = _elsewhere(clips, seed=seed)
    return [(video, clips[k][1], fps, rate) for (video, _, fps, rate), k in zip(clips, others, strict=True)]


def caption_ignoring(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """Perfect clips, each given to the caption of another one."""
    return [clips[k] for k in _elsewhere(clips, seed=seed)]


def silent(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """Every picture with digital silence."""
    return [(video, np.zeros_like(audio), fps, rate) for video, audio, fps, rate in clips]


def noise(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """White noise for picture (uniform bytes) and sound (normal, .1 of full scale)."""
    found = []
    for i, (video, audio, fps, rate) in enumerate(clips):
        rng = draws.rng(draws.key(seed, "null noise", i))
        hiss = np.clip(0.1 * rng.standard_normal(audio.shape), -1, 1).astype(np.float32)
        found.append((rng.integers(0, 256, video.shape, dtype=np.uint8), hiss, fps, rate))
    return found


def static(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """The first frame throughout, under the right sound."""
    return [(np.repeat(video[:1], len(video), axis=0), audio, fps, rate) for video, audio, fps, rate in clips]


def onset_spam(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """The right picture with a click every SPAM_SECONDS, so that some sound is near every impact."""
    found = []
    for video, audio, fps, rate in clips:
        since = (np.arange(len(audio)) / rate) % SPAM_SECONDS
        click = 0.3 * np.sin(2 * np.pi * 1000.0 * since) * np.exp(-since / 0.03)
        found.append((video, click.astype(np.float32), fps, rate))
    return found


def mean_clip(clips: Sequence[Clip], captions: Sequence[str], *, seed: int) -> list[Clip]:
    """The mean picture and the mean sound of all clips for every caption: the guess of least squared error."""
    video = np.rint(np.mean([clip[0] for clip in clips], axis=0, dtype=np.float32)).astype(np.uint8)
    audio = np.asarray(np.mean([clip[1] for clip in clips], axis=0), np.float32)
    return [(video, audio, fps, rate) for _, _, fps, rate in clips]


def copier(training: Sequence[Clip], captions: Sequence[str], *, known: Sequence[str]) -> list[Clip]:
    """For every caption the training clip whose own caption (`known`) shares most words with it (Jaccard, first wins).

    It is strong where the combination was seen, and is told from a model by unseen combinations and by memorisation.
    """
    if len(training) != len(known) or not known:
        raise UserError(f"{len(training)} training clips but {len(known)} captions: give one a clip, and at least one.")
    bags = [_words(text) for text in known]

    def likeness(text: str) -> list[float]:
        mine = _words(text)
        return [len(mine & bag) / max(len(mine | bag), 1) for bag in bags]

    return [training[int(np.argmax(likeness(text)))] for text in captions]


NULLS: dict[str, Callable[..., list[Clip]]] = {
    "shuffled pairing": shuffled,
    "silent": silent,
    "noise": noise,
    "static": static,
    "onset spam": onset_spam,
    "mean clip": mean_clip,
    "caption-ignoring": caption_ignoring,
}


def applicable(clips: Sequence[Clip]) -> dict[str, Callable[..., list[Clip]]]:
    """The nulls that differ from these clips: what has no sound cannot be silenced, and one clip is its own mean."""
    moves, sounds = min(len(clip[0]) for clip in clips) > 1, all(len(clip[1]) for clip in clips)
    needs = {"shuffled pairing": moves and sounds, "silent": sounds, "onset spam": sounds, "static": moves}
    return {name: make for name, make in NULLS.items() if len(clips) > 1 and needs.get(name, True)}


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _elsewhere(clips: Sequence[Clip], *, seed: int) -> list[int]:
    if len(clips) < 2:
        raise UserError("This null row pairs clips with one another: give at least two clips.")
    return pairings(len(clips), seed=seed)[0]
