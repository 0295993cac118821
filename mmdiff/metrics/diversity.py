"""Diversity: how many different clips there are, and whether what a caption leaves open is left open.

The one idea: count effective numbers. The Vendi score (Friedman and Dieng, "The Vendi score", 2023, eq. 2) is the
exponential entropy of the eigenvalues of a similarity matrix: n for n clips that have nothing in common, 1 for n
copies. The free entropy asks the readers of the sounding world for every attribute that a caption does not state, over
several clips of that caption: 0 bits means that the model always fills the gap in the same way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmdiff.metrics.faithfulness import Reading, assign
from mmdiff.metrics.frechet import bandwidth
from mmdiff.world.measure import SeenObject
from mmdiff.world.things import Facts, ObjectFacts

PLACES = 4  # parts of the canvas's width in which an object may begin


def vendi(features: NDArray[np.floating], *, width: float | None = None) -> float:
    """The effective number of clips in (n d): exp of the entropy of the eigenvalues of K / n, K Gaussian.

    `width` is the kernel's bandwidth; None takes the median distance. Give the same one to sets that are compared.
    """
    x = np.asarray(features, np.float64)
    square = np.maximum(((x[:, None] - x[None]) ** 2).sum(-1), 0.0) if len(x) < 200 else _squares(x)
    values = np.linalg.eigvalsh(np.exp(-square / (2 * (width or bandwidth(x)) ** 2)) / len(x))
    kept = values[values > 1e-12]
    return float(np.exp(-(kept * np.log(kept)).sum()))


def _squares(x: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = (x**2).sum(1)
    return np.maximum(norms[:, None] + norms - 2 * x @ x.T, 0.0)


def entropy(values: Sequence[Hashable]) -> float:
    """Bits, by the counts, with the Miller-Madow correction for a small sample (1955): (kinds - 1) / (2 n ln 2)."""
    counts = np.array(list(Counter(values).values()), np.float64)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum() + (len(counts) - 1) / (2 * counts.sum() * math.log(2)))


def free_entropy(readings: Sequence[Reading], facts: Sequence[Facts], prompts: Sequence[str]) -> list[float]:
    """Mean bits of the attributes that each caption leaves open, the same number for all clips of a caption.

    nan where a caption has one clip, or where no stated object was seen twice. Attributes: the place in which an object
    begins (never stated), and its size, direction, bounces where the caption is silent.
    """
    result = [math.nan] * len(readings)
    for prompt in dict.fromkeys(prompts):
        mine = [i for i, text in enumerate(prompts) if text == prompt]
        bits = _bits([(readings[i], facts[i]) for i in mine])
        for i in mine:
            result[i] = bits
    return result


def _bits(clips: Sequence[tuple[Reading, Facts]]) -> float:
    """Mean entropy over the free attributes of the stated objects."""
    seen: dict[tuple[int, str], list[Hashable]] = {}
    for reading, facts in clips:
        for place, (one, thing) in enumerate(zip(facts, assign(reading.objects, facts), strict=True)):
            for name, value in _free(one, thing).items() if thing is not None else ():
                seen.setdefault((place, name), []).append(value)
    found = [entropy(values) for values in seen.values() if len(values) > 1]
    return float(np.mean(found)) if found else math.nan


def _free(one: ObjectFacts, thing: SeenObject) -> dict[str, Hashable]:
    """What a caption's object leaves open, as seen."""
    begin = thing.track[~np.isnan(thing.track[:, 0])][:1]
    place = int(np.clip(begin[0, 0] * PLACES, 0, PLACES - 1)) if len(begin) else -1
    free: dict[str, Hashable] = {"place": place}
    if one.size is None:
        free["size"] = thing.size
    if one.motion == "slide" and one.direction is None:
        free["direction"] = thing.direction
    if one.motion == "drop" and one.bounces is None:
        free["bounces"] = len(thing.impacts)
    return free
